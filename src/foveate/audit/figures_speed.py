"""How many times better a candidate is than the baseline, by load: ratios over paired blocks.

A pair is one block, in which every arm had its turn with the same requests: what drifts between
blocks hits both and cancels in the ratio. Each turn gives one number, a median, a quantile or a
rate; the figure is the geometric mean of the ratios with a t interval of their logarithms. Above 1,
the candidate is better: less time, more throughput, less CPU.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from foveate.audit.figures_load import (
    CONFIDENCE,
    LATENCIES,
    QUANTILES,
    Turn,
    error_rate,
    span,
)
from foveate.measure.paired import newcombe
from foveate.measure.ratio import Ratio

RATES = ("throughput", "goodput", "tokens_per_s")
"""Rates, of which more is better."""

COUNTERS = {"cpu": "cpu_s", "device": "device_s", "energy": "joules"}
"""Counters a request, of which less is better, and their names in Gauges."""

SPEED_METRICS = tuple(
    f"{name}{suffix}" for name in LATENCIES for suffix in ("", "_p95", "_p99")
) + (*RATES, *COUNTERS)
"""What a speed ratio can be of. A latency without suffix is its median."""


def least_requests(q: float) -> int:
    """Requests a turn must have asked for its q-quantile to be more than its slowest request: 20 for
    p95, 100 for p99. Asked, not answered: blocks must not be chosen by how few failures they had.
    """
    return max(1, round(1 / (1 - q))) if q > 0.5 else 1


def turn_value(
    turn: Turn, metric: str, slo: Mapping[str, float] | None, add: float = 0.0
) -> float | None:
    """The number of one turn; None where it was not measured or the turn is too short for it.
    `add` goes to the count of a rate before it is divided by the window.
    """
    if metric in COUNTERS:
        return turn.per_request(COUNTERS[metric])
    if metric in RATES:
        count: int | None = None
        if turn.rows and metric == "throughput":
            count = len(turn.succeeded)
        elif turn.rows and metric == "goodput" and slo:
            count = turn.good(slo)
        elif turn.rows and metric == "tokens_per_s":
            count = turn.output_tokens()
        return None if count is None else turn.rate(count + add)
    name, _, suffix = metric.partition("_")
    q = QUANTILES[suffix or "p50"]
    values = turn.latency_ms(name)
    enough = len(turn.rows) >= least_requests(q)
    return float(np.quantile(values, q)) if enough and len(values) else None


def speed_figures(
    baseline: Mapping[int, Turn], candidate: Mapping[int, Turn], slo: Mapping[str, float] | None
) -> dict[str, Any]:
    """Ratios of one candidate under one load by metric; a metric that no pair of blocks has is
    missing. Where a turn's rate is zero, half a request (or token) is added to every turn's count,
    so that a collapse counts as one and is not left out. Blocks in which one arm has no latency at
    all are left out, as `n_blocks` shows; the error rate tells why.
    """
    found: dict[str, Any] = {}
    both = [(baseline[b], candidate[b]) for b in sorted(set(baseline) & set(candidate))]
    for metric in SPEED_METRICS:
        pairs = _known((turn_value(a, metric, slo), turn_value(b, metric, slo)) for a, b in both)
        if metric in RATES and any(0 in pair for pair in pairs):
            pairs = _known(
                (turn_value(a, metric, slo, 0.5), turn_value(b, metric, slo, 0.5)) for a, b in both
            )
        kept = [(x, y) for x, y in pairs if x > 0 and y > 0]
        if not kept:
            continue
        old, new = zip(*kept, strict=True)
        ratio = Ratio.of(new, old) if metric in RATES else Ratio.of(old, new)
        found[metric] = {
            "ratio": span(ratio.interval(CONFIDENCE)),
            "n_blocks": ratio.n,
            "log_mean": ratio.log_mean,
            "log_sd": ratio.log_sd,
            "p": ratio.p_equal(),
        }
    return found


def _known(
    pairs: Iterable[tuple[float | None, float | None]],
) -> list[tuple[float, float]]:
    return [(x, y) for x, y in pairs if x is not None and y is not None]


def error_figures(
    baseline: Mapping[int, Turn], candidate: Mapping[int, Turn]
) -> dict[str, Any] | None:
    """Candidate's error rate less the baseline's (above 0 is worse), Newcombe's interval."""
    if not all(any(turn.rows for turn in turns.values()) for turns in (baseline, candidate)):
        return None
    return span(newcombe(error_rate(baseline)[0], error_rate(candidate)[0]))


def ratio_of(figure: Mapping[str, Any]) -> Ratio:
    """The ratio behind a figure, for tests at other bounds than 1."""
    return Ratio(int(figure["n_blocks"]), float(figure["log_mean"]), float(figure["log_sd"]))
