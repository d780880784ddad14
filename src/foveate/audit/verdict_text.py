"""The sentences of a verdict: what was found, how sure that is, and what to do about it."""

from __future__ import annotations

from foveate.audit.figures_quality import ALL
from foveate.audit.verdict_tests import NO_DROP_ALPHA, BoundTest


def sentence(test: BoundTest, outcome: str, needed: int | None) -> str:
    """One test in words. outcome: "holds", "broken" or "open"."""
    if test.estimate is None:
        bound = f"the bound of {_bound(test)} cannot be judged"
        return f"{_subject(test)}: not measured, so {bound}. {_why(test)}"
    told = f"{_subject(test)}: {_estimate(test)}"
    if outcome == "holds":
        return f"{told}; the bound of {_bound(test)} holds."
    if outcome == "broken":
        return f"{told}; that breaks the bound of {_bound(test)}. {_advice(test)}"
    return f"{told}; {_open(test, needed)}"


def _subject(test: BoundTest) -> str:
    if test.family == "quality":
        return "quality" if test.subject == ALL else f"quality of {test.subject}"
    if test.family == "errors":
        return f"errors at {test.subject}"
    return test.subject


def _bound(test: BoundTest) -> str:
    if test.family == "quality":
        return f"{_points(test.bound)} points"
    if test.family == "errors":
        return f"{100 * test.bound:g} %"
    return f"{test.bound:g} times"


def _estimate(test: BoundTest) -> str:
    assert test.estimate is not None
    note = f"; {test.note}" if test.note else ""
    if test.family == "quality":
        side = "below" if test.estimate >= 0 else "above"
        text = f"{_points(abs(test.estimate))} points {side} the baseline"
        ends = f"drop of {_end(test.low, 100)} to {_end(test.high, 100)} points"
        return f"{text} (95 % interval: {ends}; {_count(test.n, 'item')}{note})"
    if test.family == "errors":
        ends = f"{_end(test.low, 100)} to {_end(test.high, 100)} %"
        return (
            f"{100 * test.estimate:.2f} % of requests failed "
            f"(95 % interval: {ends}; {_count(test.n, 'request')}{note})"
        )
    if test.n < 2:
        return f"{test.estimate:.3f} times the baseline's speed in one block"
    ends = f"{_end(test.low, 1, 3)} to {_end(test.high, 1, 3)}"
    return (
        f"{test.estimate:.3f} times the baseline's speed "
        f"(95 % interval: {ends}; {_count(test.n, 'block')})"
    )


def _open(test: BoundTest, needed: int | None) -> str:
    bound = f"the bound of {_bound(test)}"
    unit = {"quality": "items", "speed": "blocks", "errors": "requests"}[test.family]
    if needed is None:
        what = {"quality": "drop", "speed": "ratio", "errors": "rate"}[test.family]
        return (
            f"cannot be decided: the observed {what} lies on {bound}, and no sensible number of "
            f"{unit} would tell them apart. Move the bound."
        )
    if test.family == "speed" and test.n < 2:
        return f"one block tells nothing about the spread between blocks: run at least {needed}."
    if test.holds_as_observed:
        which = f"within {bound}, but that is not shown yet"
    elif test.family == "quality" and test.p_none > NO_DROP_ALPHA:
        which = f"more than {bound}, but that may still be chance"
    else:
        which = f"beyond {bound}, but that is not shown yet"
    return (
        f"{which}: about {needed:,} {unit} would decide it, with a probability of 80 % if what was "
        "observed is the truth."
    )


def _why(test: BoundTest) -> str:
    if test.family == "quality":
        return "No item has a score in both arms."
    if test.family == "errors":
        return "The candidate was not asked under this load."
    return (
        "Both arms need a block with this metric: a p95 needs 20 answers a block and a p99 100, tokens "
        "need a server that counts them, and counters a target that shows them."
    )


def _advice(test: BoundTest) -> str:
    if test.family == "quality":
        key = "max_quality_drop" if test.subject == ALL else f"the bound on {test.subject}"
        return f"Use a plan that keeps more, or raise {key}."
    if test.family == "errors":
        return "See the errors by kind, or lower the load."
    return "Use a plan that saves more, look at other loads, or lower the bound."


def _points(fraction: float) -> str:
    return (
        f"{100 * fraction:.1f}"
        if abs(fraction) >= 0.001 or fraction == 0
        else f"{100 * fraction:.2g}"
    )


def _end(value: float | None, scale: float, digits: int = 1) -> str:
    return "unbounded" if value is None else f"{scale * value:.{digits}f}"


def _count(n: int, name: str) -> str:
    return f"{n:,} {name}" if n == 1 else f"{n:,} {name}s"
