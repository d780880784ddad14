"""Questions on which candidates and baseline answered differently: which ones the report shows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from foveate.audit.metrics import JUDGED, LOYALTY, agree, score
from foveate.audit.records import Row
from foveate.audit.report_data import Audit
from foveate.audit.target import BASELINE

EXAMPLES = 6


@dataclass(frozen=True)
class Told:
    """One arm's answer to a question: the text, and its score where there is one."""

    arm: str
    text: str
    score: float | None


@dataclass(frozen=True)
class Example:
    """A question, the baseline's answer, the candidates that answered otherwise and those that
    agreed.
    """

    item: str
    category: str
    references: tuple[str, ...]
    pictures: tuple[str, ...]  # digests
    baseline: Told
    differing: tuple[Told, ...]
    agreeing: tuple[str, ...]

    @property
    def lost(self) -> int:
        """How many candidates did worse than the baseline here."""
        return sum(_less(t.score, self.baseline.score) for t in self.differing)


def _less(a: float | None, b: float | None) -> bool:
    return a is not None and b is not None and a < b


def examples(audit: Audit, limit: int = EXAMPLES) -> tuple[list[Example], int]:
    """Up to `limit` questions, and on how many some candidate answered differently.

    Every candidate that ever differed is shown first of all, then categories not seen yet, then
    losses; ties go to the item's id. Each arm speaks by its first measured answer to a question.
    """
    first = _first_answers(audit)
    found = [e for item in sorted(first) if (e := _example(first[item], audit)) is not None]
    chosen: list[Example] = []
    left = list(found)
    while left and len(chosen) < limit:
        shown = {t.arm for e in chosen for t in e.differing}
        seen = [e.category for e in chosen]

        def worth(
            e: Example, shown: set[str] = shown, seen: Sequence[str] = seen
        ) -> tuple[int, ...]:
            new = len({t.arm for t in e.differing} - shown)
            return (-new, seen.count(e.category), -e.lost, -len(e.differing))

        best = min(left, key=lambda e: (worth(e), e.item))
        chosen.append(best)
        left.remove(best)
    return chosen, len(found)


def _first_answers(audit: Audit) -> dict[str, dict[str, Row]]:
    order = {load: i for i, load in enumerate(audit.loads)}
    first: dict[str, dict[str, Row]] = {}
    for row in sorted(audit.measured, key=lambda r: (order.get(r.load, 0), r.block, r.sequence)):
        if row.observed.error is None:
            first.setdefault(row.item, {}).setdefault(row.arm, row)
    return first


def _example(rows: Mapping[str, Row], audit: Audit) -> Example | None:
    base = rows.get(BASELINE)
    if base is None:
        return None
    told = {a: _told(rows[a], base) for a in audit.candidates if a in rows}
    same = {a for a, t in told.items() if agree(t.text, base.observed.text)}
    if len(same) == len(told):
        return None
    return Example(
        item=base.item,
        category=base.category,
        references=base.references,
        pictures=base.pictures,
        baseline=_told(base, base),
        differing=tuple(t for a, t in told.items() if a not in same),
        agreeing=tuple(a for a in told if a in same),
    )


def _told(row: Row, base: Row) -> Told:
    text = row.observed.text
    if row.metric == LOYALTY:
        # Agreement with itself says nothing about the baseline.
        value = None if row is base else agree(text, base.observed.text)
    elif row.judged is not None or row.metric == JUDGED:
        value = row.judged
    else:
        value = score(row.metric, text, row.references)
    return Told(row.arm, text, value)
