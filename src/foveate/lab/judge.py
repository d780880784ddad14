"""What follows from a comparison: accuracy with intervals, differences with exact tests, agreement,
and the evidence kept.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from foveate.measure.stats import holm, mcnemar_exact, wilson

from .evaluate import Cell, Row
from .paired import FULL, Comparison, Entry, Run

ALPHA = 0.05
ALL = Cell("all", "", 0)
"""All cells of a comparison together."""


@dataclass(frozen=True)
class Pair:
    """Two runs on the same n samples: how many only the first and only the second got right, the p of
    McNemar's exact test, and that p adjusted by Holm over the comparisons it stands with.
    """

    n: int
    only_first: int
    only_second: int
    p: float
    p_holm: float

    @property
    def significant(self) -> bool:
        return self.p_holm < ALPHA

    @property
    def difference(self) -> float:
        """Accuracy of the second less that of the first."""
        return (self.only_second - self.only_first) / self.n


@dataclass(frozen=True)
class Result:
    """One entry on one cell, or on all together. `against_full` pairs all tokens (first) with the
    entry (second); None for all tokens themselves.

    agreement: share of answers that are the same text as with all tokens. evidence_kept: mean share
    of evidence tokens kept, over the samples of which it can be told. tokens: means a request.
    """

    entry: Entry
    cell: Cell
    row: Row
    agreement: float | None
    evidence_kept: float | None
    tokens_in: float
    tokens_kept: float
    against_full: Pair | None


@dataclass(frozen=True)
class AgainstControl:
    """One of a plan's controls (first) and the plan (second) over all cells that both answered."""

    plan: Entry
    control: Entry
    pair: Pair


@dataclass(frozen=True)
class Judged:
    """Results by cell and entry, in the order of the comparison; `pooled` holds the cells that every
    entry answered, where those are several. `tests` counts the comparisons that Holm's adjustment
    covers: of plans, and of controls.
    """

    results: list[Result]
    pooled: list[Result]
    against_controls: list[AgainstControl]
    tests: dict[str, int]

    def lines(self) -> list[Result]:
        return [*self.results, *self.pooled]


def judge(found: Comparison) -> Judged:
    """The statistics of a comparison.

    The tests of the plans against all tokens (every cell, and all together) are adjusted as one
    set, those of the controls as another, and those of plans against their controls as a third.
    """
    results = [
        _result(found, entry, cell, [cell])
        for cell in found.cells
        for entry in found.entries
        if (entry.name, cell) in found.runs
    ]
    able = [e for e in found.entries if e.error is None]
    shared = [c for c in found.cells if all((e.name, c) in found.runs for e in able)]
    pooled = [_result(found, e, ALL, shared) for e in able] if len(shared) > 1 else []
    lines = [*results, *pooled]
    tests = {}
    for role in ("plan", "control"):
        mine = [(i, r.against_full) for i, r in enumerate(lines) if r.entry.role == role]
        pairs = [(i, pair) for i, pair in mine if pair is not None]
        for (i, _), pair in zip(pairs, _adjusted([pair for _, pair in pairs]), strict=True):
            lines[i] = replace(lines[i], against_full=pair)
        tests[role] = len(pairs)
    against = _against_controls(found)
    return Judged(lines[: len(results)], lines[len(results) :], against, tests)


def _result(found: Comparison, entry: Entry, cell: Cell, over: Sequence[Cell]) -> Result:
    """One entry on one cell, or over several that it answered."""
    runs = [found.runs[entry.name, c] for c in over]
    row = runs[0].row if cell is not ALL else _sum(runs)
    entered = [x for run in runs for x in run.tokens_in]
    kept = [x for run in runs for x in run.tokens_kept]
    shares = [x for run in runs for x in run.evidence if x is not None]
    pair, agreement = None, None
    both = [c for c in over if (FULL, c) in found.runs]
    if entry.role != "full" and both:
        full = [found.runs[FULL, c] for c in both]
        mine = [found.runs[entry.name, c] for c in both]
        pair = _pair(full, mine)
        same = [
            a == b
            for f, m in zip(full, mine, strict=True)
            for a, b in zip(f.texts, m.texts, strict=True)
        ]
        agreement = sum(same) / len(same)
    return Result(
        entry,
        cell,
        row,
        agreement,
        sum(shares) / len(shares) if shares else None,
        sum(entered) / len(entered),
        sum(kept) / len(kept),
        pair,
    )


def _sum(runs: Sequence[Run]) -> Row:
    n, right = sum(r.row.n for r in runs), sum(r.row.right for r in runs)
    interval = wilson(right, n)
    prior = sum(r.row.prior * r.row.n for r in runs) / n
    return Row(
        ALL.family,
        ALL.group,
        0,
        n,
        right,
        right / n,
        interval.low,
        interval.high,
        prior,
        None,
        None,
    )


def _pair(first: Sequence[Run], second: Sequence[Run]) -> Pair:
    sides = [
        (a, b)
        for f, s in zip(first, second, strict=True)
        for a, b in zip(f.right, s.right, strict=True)
    ]
    only_first = sum(a and not b for a, b in sides)
    only_second = sum(b and not a for a, b in sides)
    p = mcnemar_exact(only_first, only_second)
    return Pair(len(sides), only_first, only_second, p, p)


def _adjusted(pairs: Sequence[Pair]) -> list[Pair]:
    found = holm([pair.p for pair in pairs])
    return [replace(pair, p_holm=p) for pair, p in zip(pairs, found, strict=True)]


def _against_controls(found: Comparison) -> list[AgainstControl]:
    known = {e.name: e for e in found.entries}
    rows: list[AgainstControl] = []
    for control in found.entries:
        for name in control.controls:
            both = [
                c
                for c in found.cells
                if (name, c) in found.runs and (control.name, c) in found.runs
            ]
            if not both:
                continue
            mine = [found.runs[control.name, c] for c in both]
            pair = _pair(mine, [found.runs[name, c] for c in both])
            rows.append(AgainstControl(known[name], control, pair))
    rows.sort(key=lambda r: found.entries.index(r.plan))
    pairs = _adjusted([r.pair for r in rows])
    return [replace(r, pair=pair) for r, pair in zip(rows, pairs, strict=True)]
