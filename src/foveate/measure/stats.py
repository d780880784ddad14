"""Statistics of paired comparisons: Wilson, exact McNemar, paired bootstrap, Holm.

scipy does the distributions and is loaded late; NumPy-free inputs (lists) are welcome.
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from foveate.core.errors import InputError, MissingExtraError


@dataclass(frozen=True)
class Interval:
    """An estimate with the two-sided interval of a confidence level."""

    estimate: float
    low: float
    high: float
    confidence: float

    def __contains__(self, value: float) -> bool:
        return self.low <= value <= self.high


def _scipy_stats() -> Any:
    try:
        return importlib.import_module("scipy.stats")
    except ImportError:
        raise MissingExtraError("scipy", "hf", "statistics") from None


def _level(confidence: float) -> float:
    if not 0 < confidence < 1:
        raise InputError(f"confidence = {confidence} is out of range: above 0 and below 1")
    return confidence


def wilson(
    successes: int, trials: int, confidence: float = 0.95, *, design_effect: float = 1.0
) -> Interval:
    """Score interval of a proportion (Wilson 1927), without continuity correction.

    design_effect: how many times the variance exceeds that of independent trials, at least 1; both
    counts are divided by it (J. N. K. Rao and A. J. Scott, Biometrics 48, 1992). InputError unless
    0 <= successes <= trials and trials >= 1.
    """
    _level(confidence)
    if trials < 1 or not 0 <= successes <= trials:
        raise InputError(
            f"{successes} successes of {trials} trials: needs 0 <= successes <= trials, trials >= 1"
        )
    if not design_effect >= 1:
        raise InputError(f"design_effect = {design_effect} is out of range: at least 1")
    p = successes / trials
    if design_effect == 1:
        found = _scipy_stats().binomtest(successes, trials)
        ends = found.proportion_ci(confidence, method="wilson")
        return Interval(p, float(ends.low), float(ends.high), confidence)
    # The same in closed form: scipy takes whole numbers only.
    n, z = trials / design_effect, float(_scipy_stats().norm.ppf(0.5 + confidence / 2))
    middle = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    return Interval(p, max(0.0, middle - half), min(1.0, middle + half), confidence)


def mcnemar_exact(only_first: int, only_second: int) -> float:
    """Two-sided exact p of McNemar (1947): pairs that only one side got right, a fair coin's split.

    With no such pair there is no evidence of a difference: 1.0. InputError for negative counts.
    """
    if only_first < 0 or only_second < 0:
        raise InputError(f"counts must not be negative: {only_first}, {only_second}")
    n = only_first + only_second
    if n == 0:
        return 1.0
    # The distribution is symmetric, so twice the smaller tail, once where both tails meet.
    return float(min(1.0, 2.0 * _scipy_stats().binom.cdf(min(only_first, only_second), n, 0.5)))


def paired_bootstrap(
    first: Sequence[float],
    second: Sequence[float],
    *,
    statistic: Callable[..., Any] = np.mean,
    confidence: float = 0.95,
    resamples: int = 9999,
    seed: int = 0,
) -> Interval:
    """Percentile bootstrap interval of statistic(first - second), pairs drawn together.

    statistic takes `axis`, as NumPy's reductions do. The same seed gives the same interval.
    InputError for fewer than two pairs, unequal lengths or values that are not finite.
    """
    _level(confidence)
    a = np.asarray(first, dtype=np.float64).reshape(-1)
    b = np.asarray(second, dtype=np.float64).reshape(-1)
    if a.shape != b.shape or a.size < 2:
        raise InputError(f"needs two or more pairs; got {a.size} and {b.size} values")
    if not (np.isfinite(a).all() and np.isfinite(b).all()):
        raise InputError("paired values must be finite: leave out the pairs that were not measured")
    if resamples < 99:
        raise InputError(f"resamples = {resamples} is out of range: at least 99")
    difference = a - b
    found = _scipy_stats().bootstrap(
        (difference,),
        statistic,
        confidence_level=confidence,
        n_resamples=resamples,
        method="percentile",
        vectorized=True,
        # 16 MiB of resamples at a time, whatever the number of pairs.
        batch=max(1, min(resamples, (1 << 21) // difference.size)),
        rng=np.random.default_rng(seed),
    )
    # Interpolation may swap two equal ends by one rounding.
    low, high = sorted(float(x) for x in found.confidence_interval)
    return Interval(float(statistic(difference, axis=0)), low, high, confidence)


def holm(p_values: Sequence[float]) -> list[float]:
    """Adjusted p of several tests (Holm 1979), in the order given.

    The i-th smallest of m (from 0) is multiplied by m - i; adjusted values never fall behind those
    of smaller p and end at 1. InputError for a p outside [0, 1].
    """
    for p in p_values:
        if not 0 <= p <= 1 or math.isnan(p):
            raise InputError(f"p = {p} is out of range: 0 to 1")
    m = len(p_values)
    adjusted = [0.0] * m
    reached = 0.0
    for rank, index in enumerate(sorted(range(m), key=lambda i: p_values[i])):
        reached = max(reached, min(1.0, (m - rank) * p_values[index]))
        adjusted[index] = reached
    return adjusted
