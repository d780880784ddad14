"""Accepted, refused or undecided: bounds held against figures, with reasons.

For each bound there are two hypotheses, and each needs evidence (verdict_tests.py):

- *refused*: the data show that a bound is broken. A candidate is refused if any of its tests shows
  that, so chances to err add up over tests, and p_refuse is adjusted by Holm over one family
  (quality, speed, errors) of all arms, categories and loads together. A drop in quality must also
  differ from no drop at all by an exact test at 0.5 %, adjusted by Holm over the same family: so an
  arm compared with itself loses by quality in at most about 0.5 % of audits, however few the pairs.
- *accepted*: the data show that every required bound holds. All must hold at once, which only makes
  it harder for one arm (an intersection-union test, R. L. Berger, Technometrics 24, 1982: no
  adjustment over its tests), but trying many arms makes it easier for one of them; p_accept is
  adjusted by Holm over the arms, with the largest p of an arm as that arm's.
- *undecided*: neither. `needed` says how many samples would decide, if what was observed is true.

A speed bound of 1 has no margin: two equal arms lie on it and stay undecided for ever.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

from foveate.audit.bounds import Bounds
from foveate.audit.figures_quality import ALL
from foveate.audit.verdict_tests import (
    FAMILIES,
    NO_DROP_ALPHA,
    UNITS,
    BoundTest,
    Family,
    all_loads,
    collect,
)
from foveate.audit.verdict_text import sentence
from foveate.core.errors import InputError
from foveate.measure.stats import holm

Decision = Literal["accepted", "refused", "undecided"]
Outcome = Literal["holds", "broken", "open"]

EXIT_CODES: dict[Decision, int] = {"accepted": 0, "refused": 3, "undecided": 4}
"""What the command line leaves with."""

_WORST: tuple[Decision, ...] = ("accepted", "undecided", "refused")


@dataclass(frozen=True)
class Finding:
    """The outcome of one test. p_refuse and p_accept are adjusted by Holm; needed: samples (pairs,
    blocks or requests) that would decide an open test, None if none would or it is decided.
    """

    family: Family
    subject: str
    bound: float
    estimate: float | None
    low: float | None
    high: float | None
    n: int
    required: bool
    p_refuse: float
    p_accept: float
    outcome: Outcome
    needed: int | None
    reason: str


@dataclass(frozen=True)
class Verdict:
    """A decision on one candidate. reasons: sentences, the deciding ones first. needed: for what is
    open, how many "pairs" (items answered by both arms), "blocks" or "requests" the whole audit
    would need; a value is None where no number would do. None where nothing is open.
    """

    decision: Decision
    reasons: tuple[str, ...]
    needed: Mapping[str, int | None] | None
    tests: tuple[Finding, ...]

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        found = asdict(self)
        return found | {"reasons": list(self.reasons), "tests": list(found["tests"])}


def judge_arms(figures: Mapping[str, Any], bounds: Bounds) -> dict[str, Verdict]:
    """A verdict for every candidate, from figures and bounds alone.

    A bound on a category that no item was asked of stays open. InputError if there is no candidate,
    or a bound is on a load that is not in the figures.
    """
    if not figures["pairs"]:
        raise InputError("the rows hold no candidate, so there is nothing to judge")
    bounds.check(all_loads(figures))
    tests = collect(figures, bounds)
    findings: dict[str, list[Finding]] = {arm: [] for arm in tests}
    for family in FAMILIES:
        of = {arm: [t for t in found if t.family == family] for arm, found in tests.items()}
        for arm, found in _decide(of, family, getattr(bounds.confidence, family)).items():
            findings[arm] += found
    totals = {
        arm: found["quality"].get(ALL, {}).get("n", 0) for arm, found in figures["pairs"].items()
    }
    return {arm: _verdict(found, totals[arm]) for arm, found in findings.items()}


def worst(decisions: Iterable[Decision], *, any_: bool = False) -> Decision:
    """The decision over several candidates: the worst (refused, undecided, accepted); with `any_`
    the best, for "is there one that holds?".
    """
    order = sorted(decisions, key=_WORST.index)
    if not order:
        raise InputError("there is no decision to sum up")
    return order[0] if any_ else order[-1]


def _decide(
    tests: Mapping[str, list[BoundTest]], family: Family, confidence: float
) -> dict[str, list[Finding]]:
    """Outcomes of one family over all arms."""
    alpha = 1 - confidence
    every = [t for found in tests.values() for t in found]
    refuse = dict(zip(map(id, every), holm([t.p_refuse for t in every]), strict=True))
    no_drop = dict(zip(map(id, every), holm([t.p_none for t in every]), strict=True))
    accept, factors = _accept(tests)
    found: dict[str, list[Finding]] = {}
    for arm, own in tests.items():
        found[arm] = []
        for test in own:
            outcome: Outcome = "open"
            if refuse[id(test)] <= alpha and no_drop[id(test)] <= NO_DROP_ALPHA:
                outcome = "broken"
            elif accept[id(test)] <= alpha:
                outcome = "holds"
            needed = None
            if outcome == "open":
                needed = test.needed(alpha / factors[arm], alpha / len(every))
            found[arm].append(
                Finding(
                    family, test.subject, test.bound, test.estimate, test.low, test.high, test.n,
                    test.required, refuse[id(test)], accept[id(test)], outcome, needed,
                    sentence(test, outcome, needed),
                )
            )  # fmt: skip
    return found


def _accept(tests: Mapping[str, list[BoundTest]]) -> tuple[dict[int, float], dict[str, int]]:
    """Adjusted p_accept by test, and the factor that Holm gives each arm."""
    largest = {
        arm: max((t.p_accept for t in own if t.required), default=0.0) for arm, own in tests.items()
    }
    adjusted: dict[int, float] = {}
    factors: dict[str, int] = {}
    reached = 0.0
    for rank, arm in enumerate(sorted(largest, key=lambda a: largest[a])):
        factors[arm] = len(largest) - rank
        for test in tests[arm]:
            adjusted[id(test)] = max(reached, min(1.0, factors[arm] * test.p_accept))
        reached = max(reached, min(1.0, factors[arm] * largest[arm]))
    return adjusted, factors


def _verdict(findings: list[Finding], pairs: int) -> Verdict:
    broken = [f for f in findings if f.outcome == "broken"]
    undecided = [f for f in findings if f.outcome == "open" and f.required]
    decision: Decision = "refused" if broken else "undecided" if undecided else "accepted"
    required = [f for f in findings if f.required]
    told = required if decision == "accepted" else broken + undecided
    needed = _needed(undecided, pairs) if decision == "undecided" else None
    return Verdict(decision, tuple(f.reason for f in told), needed, tuple(findings))


def _needed(undecided: Iterable[Finding], pairs: int) -> dict[str, int | None]:
    """The most of each unit. A category's share of the workload is taken to stay as it is."""
    found: dict[str, int | None] = {}
    for finding in undecided:
        unit, n = UNITS[finding.family], finding.needed
        if n is not None and finding.family == "quality" and finding.n:
            n = -(-n * max(pairs, finding.n) // finding.n)
        before = found.get(unit, 0)
        found[unit] = None if n is None or before is None else max(n, before)
    return found
