"""Claims L1 and L2 of the bundled models, from their own results and from bench.lab: what lab-nano
answers with all tokens, and whether the tasks show what dropping tokens destroys.

    python -m bench.lab_model [--keep 1/4] [--n 100]
"""

from __future__ import annotations

import argparse
import json
from typing import Any

import torch

from bench.common import RESULTS, publish
from foveate.engine.engine import Engine
from foveate.lab import FAMILIES, nano_path
from foveate.lab.paired import FULL, compare

LEAST = {
    "shape": 0.95, "colour": 0.95, "count": 0.90, "exists": 0.95, "quadrant": 0.95, "leftof": 0.95,
    "nearest": 0.95, "ground": 0.95, "code": 0.80, "bar": 0.80, "easyvqa": 0.90,
}  # fmt: skip
FINE_FROM, FINE_LOSS, COARSE_LESS = 0.60, 0.15, 0.10


def answered() -> list[dict[str, Any]]:
    """One claim a family with a bound: accuracy on the test split with all tokens, easy level."""
    found = {
        (row["family"], row["level"]): row
        for row in json.loads((nano_path() / "results.json").read_text("utf-8"))
    }
    out = []
    for name, least in LEAST.items():
        row = found.get((name, 0))
        figure = "not measured"
        if row is not None:
            figure = f"{row['accuracy']:.3f} ({row['low']:.3f} to {row['high']:.3f}), n {row['n']}"
            figure += f", prior {row['prior']:.2f}"
        out.append(
            {
                "id": "L1",
                "what": f"lab-nano, all tokens, test split, easy: {name}",
                "figure": figure,
                "bound": f"at least {least:.2f}",
                "holds": None if row is None else row["accuracy"] >= least,
            }
        )
    return out


def losses(engine: Engine, keep: str, n: int) -> tuple[list[dict[str, Any]], list[list[Any]]]:
    """What `random` costs by family, fine ones against coarse ones."""
    names = [f for f, known in FAMILIES.items() if known.group in ("coarse", "place", "fine")]
    found = compare(engine, [f"random:keep={keep}"], names, n, batch_size=16)
    other = next(e.name for e in found.entries if e.name != FULL and "random" in str(e.plan))
    rows, fine, coarse = [], {}, {}
    for cell in found.cells:
        full, less = found.runs.get((FULL, cell)), found.runs.get((other, cell))
        if full is None or less is None:
            continue
        a, b = full.row.accuracy, less.row.accuracy
        rows.append([cell.family, cell.group, a, b, round(a - b, 3)])
        if cell.group == "fine" and a >= FINE_FROM:
            fine[cell.family] = a - b
        elif cell.group == "coarse":
            coarse[cell.family] = a - b
    claims = [
        {
            "id": "L2",
            "what": f"random at {keep} of the tokens loses points on {name}",
            "figure": f"{loss:.3f}, n {n}",
            "bound": f"at least {FINE_LOSS}",
            "holds": loss >= FINE_LOSS,
        }
        for name, loss in fine.items()
    ]
    if fine and coarse:
        gap = sum(fine.values()) / len(fine) - sum(coarse.values()) / len(coarse)
        claims.append(
            {
                "id": "L2",
                "what": "random loses less on coarse families than on fine ones, on average",
                "figure": f"{gap:.3f} less",
                "bound": f"at least {COARSE_LESS} less",
                "holds": gap >= COARSE_LESS,
            }
        )
    return claims, rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--keep", default="1/4")
    parser.add_argument("--n", type=int, default=100)
    args = parser.parse_args()
    torch.set_num_threads(1)
    engine = Engine.from_pretrained(nano_path())
    claims, rows = losses(engine, args.keep, args.n)
    publish(
        "lab-model",
        f"lab-nano, what random at {args.keep} costs, {args.n} questions a family (test split)",
        ["family", "group", "all tokens", "random", "loss"],
        rows,
        {"claims": [*answered(), *claims], "n": args.n, "keep": args.keep},
    )
    print(RESULTS / "lab-model.json")


if __name__ == "__main__":
    main()
