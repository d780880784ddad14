"""What a method says of its evidence is there: golden vectors, or a test against a plain computation."""

from __future__ import annotations

import ast
import json
from collections import Counter
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from foveate.core import Counts, PlanRng, methods
from foveate.encode.tokens.divprune import DivPrune
from tests.methods.synthetic import segment

TESTS = Path(__file__).parents[1]
# These hold every method to the contract and compute no method's formula.
GENERAL = {"test_contract.py", "test_sweep.py", "test_edge_cases.py"}
ENCODE: dict[str, Any] = {
    name: cls
    for stage in ("pixels", "tower", "tokens")
    for name, cls in methods(stage).items()
    if cls.__module__.startswith("foveate.")
}
pytestmark = pytest.mark.claim("C1")


def imported_by(folder: Path) -> dict[str, set[str]]:
    """Modules of the package by the test files of a folder that import from them."""
    found: dict[str, set[str]] = {}
    for file in sorted(folder.rglob("test_*.py")):
        if file.name in GENERAL:
            continue
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and node.module:
                found.setdefault(node.module, set()).add(file.name)
    return found


def test_every_method_has_the_evidence_it_names(
    record_property: Callable[[str, object], None],
) -> None:
    """Golden methods have authors' vectors that a test reads; all others but controls have a test
    against a plain computation.
    """
    golden, every = imported_by(TESTS / "golden"), imported_by(TESTS)
    seen: Counter[str] = Counter()
    for name, cls in ENCODE.items():
        seen[cls.evidence] += 1
        if cls.evidence == "golden":
            assert cls.__module__ in golden, f"{name}: no test of its golden vectors"
            data = TESTS / "golden" / "data" / f"{cls.__module__.rpartition('.')[2]}.json"
            assert json.loads(data.read_text(encoding="utf-8")), name
        elif cls.evidence != "control":
            assert cls.__module__ in every, f"{name}: no test computes what it should give"
    record_property("figure", ", ".join(f"{n} {word}" for word, n in sorted(seen.items())))
    record_property("bound", f"all of {len(ENCODE)} methods")


@pytest.mark.parametrize("grid", [(1, 5, 6), (1, 4, 4), (1, 1, 9)])
@pytest.mark.parametrize("style", ["random", "repeated"])
@pytest.mark.parametrize("keep", [Fraction(1, 9), Fraction(1, 3), Fraction(2, 3)])
def test_divprune_against_plain_loops(
    grid: tuple[int, int, int], style: str, keep: Fraction
) -> None:
    """First the token whose nearest other is furthest, then always the one furthest from all kept."""
    item = segment(DivPrune, grid, style=style)
    x = np.asarray(item.features, dtype=np.float64)
    x /= np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12)
    step = 2.0**-20  # distances are compared on a grid, so that equal tokens tie
    apart = np.round((1 - x @ x.T) / step)
    n, k = len(x), max(1, int(keep * len(x) + Fraction(1, 2)))
    nearest = [min(apart[i, j] for j in range(n) if j != i) for i in range(n)]
    chosen = [int(np.argmax(nearest))]
    while len(chosen) < k:
        rest = [i for i in range(n) if i not in chosen]
        gaps = [min(apart[i, j] for j in chosen) for i in rest]
        chosen.append(rest[int(np.argmax(gaps))])
    got = DivPrune(keep=keep).select([item], Counts(k, (k,)), None, PlanRng(0))[0]
    assert got.anchor.tolist() == sorted(chosen)
