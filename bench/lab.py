"""What methods cost in answers on the bundled model: accuracy by task family at one keep ratio,
with the controls beside, and which differences from all tokens are significant. The figures speak
of lab-nano and rendered pictures alone.

    python -m bench.lab [--methods a,b] [--keep 1/4] [--n 100] [--families shape,code,...]
"""

from __future__ import annotations

import argparse
from typing import Any

import torch

from bench.common import publish
from foveate.engine.engine import Engine
from foveate.lab import nano_path
from foveate.lab.judge import judge
from foveate.lab.paired import FULL, compare
from foveate.lab.tables import as_dict, notes, refusals

METHODS = "visionzip,fastervlm,vispruner,divprune,scope,trimtokenator,hiprune,idpruner,uniform"
FAMILIES = "shape,colour,count,exists,quadrant,leftof,nearest,bar,code,table,form"
SETTINGS = {"hiprune": "middle=3"}


def plan_text(method: str, keep: str) -> str:
    extra = SETTINGS.get(method, "")
    return f"{method}:keep={keep}" + (f",{extra}" if extra else "")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--methods", default=METHODS)
    parser.add_argument("--families", default=FAMILIES)
    parser.add_argument("--keep", default="1/4")
    parser.add_argument("--n", type=int, default=100)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--name", default="lab")
    args = parser.parse_args()
    torch.set_num_threads(1)
    plans = [plan_text(name, args.keep) for name in args.methods.split(",")]
    families = args.families.split(",")
    engine = Engine.from_pretrained(nano_path())
    found = compare(engine, plans, families, args.n, batch_size=args.batch)
    judged = judge(found)
    rows: list[list[Any]] = []
    for entry in found.entries:
        name = "none" if entry.name == FULL else entry.plan.methods[0].name
        runs = [found.runs.get((entry.name, cell)) for cell in found.cells]
        rows.append([name, *["n/a" if run is None else run.row.accuracy for run in runs]])
    for text in [*notes(found, judged), *refusals(found)]:
        print(text)
    publish(
        args.name,
        f"accuracy on lab-nano, keep {args.keep}, {args.n} questions a family (test split)",
        ["method", *families],
        rows,
        {"keep": args.keep, "n": args.n, "comparison": as_dict(found, judged)},
    )


if __name__ == "__main__":
    main()
