"""One selection, all doors: the installed third-party method keeps the same tokens through attach
and Engine as when called alone. Run by .ci/run in an environment that holds both wheels:

    python tests/third_party/check_doors.py

Leaves with an error text and a code other than 0 if the method is missing or a door differs.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
METHOD, PLAN, FAMILIES = "example-corner", "example-corner:keep=1/4", ("llava", "qwen2_5_vl")


def kept_by_doors(family: str, folder: Path) -> dict[str, list[list[int]]]:
    """Kept indices of a request with two pictures, by door."""
    from PIL import Image

    from foveate.core import PlanRng, resolve
    from foveate.core.plan import Plan
    from foveate.engine.attach import attach
    from foveate.engine.engine import Engine
    from foveate.engine.request import Request
    from tests.models.tiny_processors import save_folder
    from tests.support import tiny

    noise = np.random.default_rng(0)
    sizes = ((40, 60), (56, 30))
    pictures = [
        Image.fromarray(noise.integers(0, 255, (h, w, 3), dtype=np.uint8)) for h, w in sizes
    ]
    request = Request("what is in the picture ?", images=pictures)
    engine = Engine.from_pretrained(save_folder(family, tiny.make_model(family), folder))
    answer = engine.generate([request], PLAN, max_new_tokens=1)[0]
    if answer.error is not None:
        raise SystemExit(f"{family}: the engine answered {answer.error}")
    ready = engine.prepare(request)
    inputs = engine.processor(images=ready.pictures, text=[ready.text], return_tensors="pt")
    with attach(engine.model, PLAN, processor=engine.processor) as state:
        engine.model.generate(**inputs, max_new_tokens=1, do_sample=False)
    if state.last is None:
        raise SystemExit(f"{family}: attach did not act")
    row = state.last.rows[0]
    method = Plan.parse(PLAN).stage("tokens")
    images = sorted({s.image for s in row.segments})
    counts = resolve(
        method.budget, [[s.n for s in row.segments if s.image == image] for image in images]
    )
    alone = method.select(list(row.segments), counts, None, PlanRng(0))
    return {
        "alone": [r.anchor.tolist() for r in alone],
        "attach": [r.anchor.tolist() for r in row.reductions],
        "engine": [np.asarray(s.anchors).tolist() for s in answer.kept],
    }


def main() -> None:
    from foveate.core.registry import broken, methods

    if METHOD in broken():
        raise SystemExit(f"{METHOD} is installed but broken: {broken()[METHOD]}")
    if METHOD not in methods("tokens"):
        raise SystemExit(f"{METHOD} is not registered: is its wheel installed?")
    import foveate

    print(f"foveate {foveate.__version__} from {Path(foveate.__file__).parent}")
    for family in FAMILIES:
        with tempfile.TemporaryDirectory() as folder:
            doors = kept_by_doors(family, Path(folder))
        for name, kept in doors.items():
            if kept != doors["alone"]:
                raise SystemExit(f"{family}: {name} kept {kept}, alone it keeps {doors['alone']}")
        print(f"{family}: {', '.join(doors)} keep the same {sum(map(len, doors['alone']))} tokens")


if __name__ == "__main__":
    main()
