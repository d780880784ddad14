"""Write the support matrix that `foveate list --families` and docs/matrix.md show: what was seen of
each family, here, now.

    python -m tests.engine.make_matrix [--check]

--check compares with the committed file and fails where a cell that ran was lost.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import torch

from foveate.core import Need
from foveate.core.errors import FoveateError
from foveate.models import compat
from foveate.models.adapter import adapter_for
from foveate.models.encoded import encoder_view
from tests.engine.matrix import EXACT, check_family
from tests.engine.matrix_inside import check_inside
from tests.support import tiny

TARGET = Path(__file__).parents[2] / "src" / "foveate" / "models" / "support.json"
FACTS = {
    "features": Need("features", -2),
    "cls": Need("cls", -2),
    "received": Need("received", -2),
    "keys": Need("keys", -2),
}
WINDOW = "a sliding window shorter than the prompt counts kept tokens, as published methods do"
RECURRENT = (
    "recurrent layers: no mask can imitate a dropped token, so a batch is held to single runs"
)


def facts_of(name: str) -> list[str]:
    """Which encoder facts this family gives a method."""
    adapter = adapter_for(tiny.make_model(name))
    found = []
    for what, need in FACTS.items():
        try:
            encoded = adapter.encode(tiny.image_inputs(name), needs=frozenset({need}))
        except FoveateError:
            continue
        views = [encoder_view(encoded, p, frozenset({need})) for p in encoded.pieces]
        if all(v is not None and (v.hidden if what == "features" else v.at) for v in views) and (
            what != "cls" or all(v is not None and v.at[-2].cls is not None for v in views)
        ):
            found.append(what)
    return found


def row(name: str) -> dict[str, Any]:
    model = tiny.make_model(name)
    entry: dict[str, Any] = {"model_type": model.config.model_type, "class": type(model).__name__}
    try:
        adapter = adapter_for(model)
        entry["inside"] = check_inside(name)
        result = check_family(name)
    except FoveateError as error:
        return {**entry, "encode": "refused", "reason": str(error)}
    if result.worst > EXACT:
        return {
            **entry,
            "encode": "refused",
            "reason": f"differs from its reference by {result.worst:.1e}",
        }
    bites = [c.bite for c in result.cells if c.bite is not None]
    reason = ""
    if result.status != "exact":
        reason = RECURRENT if adapter.recurrent else WINDOW
    return {
        **entry,
        "encode": result.status,
        "reason": reason,
        "worst": float(f"{result.worst:.1e}"),
        "bite": float(f"{min(bites):.1e}") if bites else None,
        "cells": len(result.cells),
        "facts": facts_of(name),
        "merge_before_projector": adapter.tokenwise,
        "mrope": adapter.mrope,
        "video": tiny.video_inputs(name) is not None,
        "blocks": len(compat.tower_blocks(adapter.vision)),
    }


def statuses(entry: dict[str, Any]) -> dict[str, str]:
    """What an entry says of each stage."""
    inside = entry.get("inside", {})
    found = {k: inside[k] for k in ("prefill", "policy", "codec", "continuous") if k in inside}
    return {"encode": entry.get("encode", "missing"), **found}


def reasons(entry: dict[str, Any]) -> str:
    return "; ".join([entry.get("reason", ""), *entry.get("inside", {}).get("reasons", [])])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true")
    args = parser.parse_args()
    torch.set_num_threads(1)
    import transformers

    families = {name: row(name) for name in tiny.FAMILIES}
    data = {"transformers": transformers.__version__, "families": families}
    exact = sum(f["encode"] == "exact" for f in families.values())
    lost = []
    if args.check:
        before = json.loads(TARGET.read_text())["families"]
        lost = [
            (n, stage)
            for n, f in before.items()
            for stage, status in statuses(f).items()
            if status != "refused" and statuses(families.get(n, {})).get(stage) != status
        ]
    else:
        TARGET.write_text(json.dumps(data, indent=1) + "\n")
    for name, stage in lost:
        now = families.get(name, {})
        print(f"lost: {name}, {stage}: now {statuses(now).get(stage)}: {reasons(now)}")
    print(json.dumps({"families": len(families), "exact": exact, "lost": lost}))
    return 1 if lost else 0


if __name__ == "__main__":
    sys.exit(main())
