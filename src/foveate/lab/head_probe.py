"""Which heads look at what a model reads out: SparseMM's probe on rendered text.

    python -m foveate.lab.head_probe --out heads.json [--model PATH] [--n 200] [--seed 0]

J. Wang, Z. Liu, Y. Rao, J. Lu, SparseMM, ICCV 2025, arXiv 2506.05344: a head scores where the visual
token it attends to most lies in the box of the character that is being written. Here pictures are of
the task "code", split train, and the right answer is given to the model token by token, so that each
row belongs to a known character. A character's box is its equal share of the text's width. The file
is what `sparsemm:heads=` reads.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch

from foveate.core.errors import FoveateError, InputError, SettingError, UnsupportedError
from foveate.core.language import CachePolicy, KVView
from foveate.core.plan import Plan
from foveate.engine.draw import field_of_view
from foveate.engine.engine import Engine
from foveate.engine.language_door import begin, language_run
from foveate.engine.request import Request
from foveate.memory.sparsemm import head_hits, normalised

from .canvas import Box
from .evidence import evidence_tokens
from .nano import nano_path
from .tasks import Sample, samples

FAMILY = "code"


@dataclass(frozen=True)
class Watching(CachePolicy):
    """Evicts nothing and keeps each layer's rows of the last `window` queries, with the grid cells of
    the entries, in `found`: (rows (H, window, n), cell (n,)) by layer.
    """

    name: ClassVar[str] = "head-probe"
    summary: ClassVar[str] = "reads attention for the probe of heads"
    reads: ClassVar[frozenset[Any]] = frozenset({"window"})

    window: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "found", [])

    found: ClassVar[list[tuple[np.ndarray, np.ndarray]]]

    def observe(self, layer: int, view: KVView) -> None:
        n = len(view.keys[0])
        rows = view.rows(np.arange(n - self.window, n))
        self.found.append((rows.cpu().numpy(), np.asarray(view.cell_of(0))))


def character_boxes(box: Box, pieces: list[str]) -> list[Box]:
    """Boxes of the pieces of a text that fills `box`, each as wide as its share of the characters."""
    left, top, right, bottom = box
    ends = np.cumsum([0, *(len(p) for p in pieces)]) / max(1, sum(len(p) for p in pieces))
    edges = [left + (right - left) * float(e) for e in ends]
    return [
        (int(a), top, max(int(a) + 1, int(np.ceil(b))), bottom)
        for a, b in zip(edges[:-1], edges[1:], strict=True)
    ]


@torch.no_grad()
def sample_hits(engine: Engine, sample: Sample) -> np.ndarray | None:
    """Hits (layers, heads) of one sample's answer; None where its tokens do not spell it out.

    Errors: UnsupportedError for a model that does not see the whole picture on one grid.
    """
    tokenizer = engine.processor.tokenizer
    ids = tokenizer(sample.answer, add_special_tokens=False)["input_ids"]
    pieces = [tokenizer.decode([i]).strip() for i in ids]
    if "".join(pieces) != sample.answer or not all(pieces):
        return None
    if field_of_view(getattr(engine.processor, "image_processor", None), sample.image.size):
        raise UnsupportedError(
            "the probe of heads needs a model that sees whole pictures, uncropped"
        )
    policy = Watching(keep=Fraction(1), window=len(ids))
    plan = Plan((policy,))
    ready = engine.preprocessed(
        [engine.prepare(Request(sample.question, images=sample.images))], plan
    )
    more = torch.tensor([ids[:-1]], dtype=torch.long, device=ready.inputs["input_ids"].device)
    for name, value in list(ready.inputs.items()):
        if torch.is_tensor(value) and value.shape == ready.inputs["attention_mask"].shape:
            fill = {"input_ids": more, "attention_mask": torch.ones_like(more)}
            extra = fill.get(name, torch.zeros_like(more)).to(value.dtype)
            ready.inputs[name] = torch.cat([value, extra], 1)
    short = engine.compressed(ready).short
    segments = short.rows[0].segments
    if len(segments) != 1 or segments[0].grid[0] != 1:
        raise UnsupportedError("the probe of heads needs a model that shows a picture on one grid")
    with language_run(engine.adapter, plan) as run:
        assert run is not None
        engine.model(**short.kwargs, **begin(run, short, engine.special_ids), use_cache=True)
    hits = []
    masks = [
        evidence_tokens([box], sample.image.size, segments[0].grid[1:])
        for box in character_boxes(sample.boxes[0], pieces)
    ]
    for rows, cell in policy.found:
        places = [np.flatnonzero((cell >= 0) & mask[np.maximum(cell, 0)]) for mask in masks]
        hits.append(sum(head_hits(rows[:, i], p) for i, p in enumerate(places)))
    return np.stack([np.asarray(h, np.float64) for h in hits])


def probe_heads(engine: Engine, n: int = 200, seed: int = 0) -> np.ndarray:
    """Scores (layers, heads) that sum to 1, from n samples of rendered text.

    Errors: SettingError for n below 1, or where no head ever hit; UnsupportedError as `sample_hits`;
    InputError where the model's tokens spell out no answer.
    """
    found = [sample_hits(engine, s) for s in samples(FAMILY, "train", n, seed)]
    told = [h for h in found if h is not None]
    if not told:
        raise InputError("the model's tokens do not spell out the answers one after another")
    return normalised(np.sum(told, 0))


def write_scores(scores: np.ndarray, path: Path) -> None:
    """Write scores (layers, heads) as JSON; InputError if the file cannot be written."""
    try:
        path.write_text(
            json.dumps({"scores": np.round(scores, 9).tolist()}, indent=1) + "\n", encoding="utf-8"
        )
    except OSError as error:
        raise InputError(f"{path} cannot be written to: {error.strerror}") from None


def main() -> int:
    """The command; bad input is one line on stderr and the error's exit code."""
    parser = argparse.ArgumentParser(description="Score a model's heads for sparsemm.")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--model", default=None, help="a model; the bundled one by default")
    parser.add_argument("--n", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    try:
        _check(args)
        engine = Engine.from_pretrained(args.model or nano_path())
        scores = probe_heads(engine, args.n, args.seed)
        write_scores(scores, args.out)
    except FoveateError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    top = np.sort(scores.reshape(-1))[::-1]
    print(
        f"wrote {args.out}; the best tenth of the heads hold {top[: -(-top.size // 10)].sum():.0%}"
    )
    return 0


def _check(args: argparse.Namespace) -> None:
    """Refuse what is wrong before a model is loaded and probed."""
    if args.out.suffix != ".json":
        raise SettingError(f"--out {args.out} must end in .json")
    if not args.out.parent.is_dir():
        raise InputError(f"--out {args.out}: there is no folder {args.out.parent}; make it first")
    if args.n < 1:
        raise SettingError(f"--n {args.n} is out of range: at least 1")


if __name__ == "__main__":
    sys.exit(main())
