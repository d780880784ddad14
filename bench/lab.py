"""What methods cost in answers on the bundled model: accuracy by task family at one keep ratio,
with the controls beside. The figures speak of lab-nano and rendered pictures alone.

    python -m bench.lab [--methods a,b] [--keep 1/4] [--n 100] [--families shape,code,...]
"""

from __future__ import annotations

import argparse
from typing import Any

import torch

from bench.common import publish
from foveate.core.errors import FoveateError
from foveate.engine.engine import Engine
from foveate.engine.request import Request
from foveate.lab import nano_path
from foveate.lab.evaluate import evaluate

METHODS = "visionzip,fastervlm,vispruner,divprune,scope,trimtokenator,hiprune,idpruner"
CONTROLS = "random,uniform,pool,downscale"
FAMILIES = "shape,colour,count,exists,quadrant,leftof,bar,code,word,form"
SETTINGS = {"hiprune": "middle=3", "downscale": ""}


def plan_text(method: str, keep: str) -> str:
    extra = SETTINGS.get(method, "")
    return f"{method}:keep={keep}" + (f",{extra}" if extra else "")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--methods", default=f"{METHODS},{CONTROLS}")
    parser.add_argument("--families", default=FAMILIES)
    parser.add_argument("--keep", default="1/4")
    parser.add_argument("--n", type=int, default=100)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--name", default="lab")
    args = parser.parse_args()
    torch.set_num_threads(1)
    engine = Engine.from_pretrained(nano_path())
    families = args.families.split(",")

    def accuracy(plan: str) -> dict[str, float]:
        def answers(images: Any, questions: Any) -> list[str]:
            requests = [Request(q, images=[i]) for i, q in zip(images, questions, strict=True)]
            found = engine.generate(requests, plan, max_new_tokens=8, batch_size=args.batch)
            for answer in found:
                if answer.error is not None:
                    raise answer.error
            return [a.text for a in found]

        return {r.family: r.accuracy for r in evaluate(answers, families, args.n)}

    rows: list[list[Any]] = []
    for name in ["none", *args.methods.split(",")]:
        try:
            found = accuracy("none" if name == "none" else plan_text(name, args.keep))
        except FoveateError as error:
            print(f"{name}: n/a, {error}")
            rows.append([name, *["n/a"] * len(families)])
            continue
        rows.append([name, *[found[f] for f in families]])
    publish(
        args.name,
        f"accuracy on lab-nano, keep {args.keep}, {args.n} questions a family (test split)",
        ["method", *families],
        rows,
        {"keep": args.keep, "n": args.n},
    )


if __name__ == "__main__":
    main()
