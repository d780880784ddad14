"""Rows and blocks by hand, for tests of figures and verdicts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from foveate.audit.figures_quality import drop_figure
from foveate.audit.records import Block, ErrorKind, Gauges, Observed, Row


def row(
    arm: str = "baseline",
    item: str = "q0",
    *,
    load: str = "closed:2",
    block: int = 0,
    sequence: int = 0,
    text: str = "yes",
    references: tuple[str, ...] = ("yes",),
    metric: str = "exact",
    category: str = "",
    sent_s: float = 10.0,
    intended_s: float | None = None,
    first_s: float | None = 0.1,
    e2e_s: float = 0.3,
    chunks: Sequence[float] | None = None,
    tokens: int | None = 3,
    error: ErrorKind | None = None,
    warmup: bool = False,
    judged: float | None = None,
    **observed: Any,
) -> Row:
    """first_s, e2e_s and chunks count from sent_s."""
    if error is not None:
        first_s, text, tokens = None, "", None
    if chunks is None:
        chunks = () if first_s is None else (first_s, e2e_s)
    seen = Observed(
        sent_s,
        sent_s + e2e_s,
        None if first_s is None else sent_s + first_s,
        tuple(sent_s + c for c in chunks),
        text,
        completion_tokens=tokens,
        error=error,
        **observed,
    )
    return Row(
        arm, load, block, 0, sequence, warmup, item, category, metric, references, (),
        sent_s if intended_s is None else intended_s, seen, judged,
    )  # fmt: skip


def block(
    arm: str = "baseline", *, load: str = "closed:2", number: int = 0, start_s: float = 10.0,
    length_s: float = 2.0, requests: int = 4, **gained: Any,
) -> Block:  # fmt: skip
    return Block(arm, load, number, 0, start_s, start_s + length_s, requests, Gauges(**gained))


def binary_scores(n: int, lost: int, won: int) -> tuple[list[float], list[float]]:
    """Scores of baseline and candidate: `lost` right only before, `won` right only after."""
    old = [1.0] * lost + [0.0] * won + [1.0] * (n - lost - won)
    new = [0.0] * lost + [1.0] * won + [1.0] * (n - lost - won)
    return old, new


def figures_of(
    candidates: dict[str, dict[str, tuple[Sequence[float], Sequence[float]]]],
    speed: dict[str, dict[str, dict[str, Any]]] | None = None,
    errors: dict[str, dict[str, tuple[int, int]]] | None = None,
    effect: float = 1.0,
) -> dict[str, Any]:
    """Figures as `foveate.audit.figures.figures` gives them, from item scores by candidate and
    category, speed figures by candidate, load and metric, and (failed, requests) by arm and load.
    """
    from foveate.audit.figures_load import span
    from foveate.measure.stats import wilson

    def load_figures(failed: int, n: int) -> dict[str, Any]:
        kinds = {"http": failed} if failed else {}
        rate = span(wilson(failed, n))
        return {"requests": n, "errors": kinds, "error_rate": rate, "error_design_effect": effect}

    speed, errors = speed or {}, errors or {}
    loads = {load for arm in speed.values() for load in arm}
    arms: dict[str, Any] = {}
    for arm in ("baseline", *candidates):
        found = {load: load_figures(0, 100) for load in sorted(loads)}
        found |= {load: load_figures(*counts) for load, counts in errors.get(arm, {}).items()}
        groups = candidates.get(arm, {})
        arms[arm] = {"loads": found, "quality": {c: {"failed": 0} for c in groups}}
    return {
        "arms": arms,
        "pairs": {
            arm: {
                "speed": speed.get(arm, {}),
                "quality": {c: drop_figure(a, b, seed=0) for c, (a, b) in groups.items()},
                "errors": {},
            }
            for arm, groups in candidates.items()
        },
    }


def speed_figure(n: int, log_mean: float, log_sd: float) -> dict[str, Any]:
    from foveate.audit.figures_load import span
    from foveate.measure.ratio import Ratio

    ratio = Ratio(n, log_mean, log_sd)
    return {
        "ratio": span(ratio.interval()),
        "n_blocks": n,
        "log_mean": log_mean,
        "log_sd": log_sd,
        "p": ratio.p_equal(),
    }
