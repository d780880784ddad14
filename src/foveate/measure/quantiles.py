"""Quantiles of a sample with distribution-free intervals, for requests that waited in one queue too.

The number of values at or below the true quantile is binomial, so two order statistics enclose it
with a known probability, whatever the distribution (H. A. David and H. N. Nagaraja, Order
Statistics, 3rd ed., section 7.1). Ranks are interpolated, as whole ones would cover more than asked
for (A. D. Hutson, Journal of Applied Statistics 26, 1999, does so by fractional order statistics;
here the binomial's steps are joined by lines). No resampling.

That holds for independent values. Latencies of requests that waited behind one another are not: at
70 % utilisation such a 95 % interval of a p95 holds the truth in less than half of all runs. Values
therefore come in blocks, and the share of each block at or below the quantile tells how much it
varies beyond a coin: the design effect (L. Kish, Survey Sampling, 1965), which divides the number of
values. Where it is no larger than independent values show in four of five runs, it counts as 1. It is
taken from differences of successive blocks (J. von Neumann et al., Annals of
Mathematical Statistics 12, 1941), so that a slow drift over the run does not count as such.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np

from foveate.core.errors import InputError
from foveate.measure.stats import Interval, _level, _scipy_stats

LEAST_BLOCKS = 4
"""Below, no design effect can be told from so few differences, and values count as independent."""


def quantile(values: Any, q: float, confidence: float = 0.95) -> Interval:
    """The q-quantile of independent `values`, shape (n,), with an interval that holds the true one
    with about this confidence. An end that the sample is too small to give is -inf or inf.

    InputError for no value, values that are not finite, or q outside (0, 1).
    """
    return block_quantiles([values], (q,), confidence)[0]


def block_quantiles(
    blocks: Sequence[Any], qs: Sequence[float], confidence: float = 0.95
) -> list[Interval]:
    """`quantile` of all values together, for each q; `blocks` are arrays (n_b,) in order of time,
    within which values may depend on each other.
    """
    _level(confidence)
    parts = [np.asarray(b, dtype=np.float64).reshape(-1) for b in blocks]
    parts = [np.sort(b) for b in parts if b.size]
    if not parts:
        raise InputError("a quantile needs one finite value or more")
    x = np.sort(np.concatenate(parts))
    if not np.isfinite(x).all():
        raise InputError("a quantile needs one finite value or more")
    found = []
    for q in qs:
        if not 0 < q < 1:
            raise InputError(f"q = {q} is out of range: above 0 and below 1")
        estimate = _at(x, 1 + q * (x.size - 1))  # numpy's default
        reached = [int(np.searchsorted(b, estimate, side="right")) for b in parts]
        effect = design_effect(reached, [b.size for b in parts], q)
        n = max(1, round(x.size / effect))
        low, high = _ranks(n, q, _tail(confidence, effect, len(parts)))
        # Ranks among n independent values stand for the same shares of all values. In tiny samples
        # the interpolated estimate may lie outside; the interval never narrows for that.
        scale = x.size / n
        lower = min(estimate, _at(x, low * scale)) if low >= 1 else -math.inf
        upper = max(estimate, _at(x, high * scale)) if high <= n else math.inf
        found.append(Interval(estimate, lower, upper, confidence))
    return found


def design_effect(counts: Sequence[int], sizes: Sequence[int], share: float | None = None) -> float:
    """How many times the variance of a share exceeds that of independent trials, at least 1.

    counts of sizes: successes of each block, in order of time; share: the overall one if it is
    known. The mean square of the difference of successive blocks' shares over its expectation for
    independent trials. 1 with fewer than four blocks, a share of 0 or 1, or where independent trials
    would show as much in more than one of five runs.
    """
    n = np.asarray(sizes, dtype=np.float64)
    k = np.asarray(counts, dtype=np.float64)
    if k.shape != n.shape or (n < 1).any() or (k < 0).any() or (k > n).any():
        raise InputError("each block needs a size above 0 and a count from 0 to that size")
    if n.size < LEAST_BLOCKS:
        return 1.0
    p = float(k.sum() / n.sum()) if share is None else share
    if not 0 < p < 1:
        return 1.0
    gaps = np.diff(k / n) ** 2 / (p * (1 - p) * (1 / n[1:] + 1 / n[:-1]))
    effect, freedom = float(gaps.mean()), _freedom(n.size)
    usual = float(_scipy_stats().chi2.ppf(0.8, freedom)) / freedom
    return effect if effect > usual else 1.0


def _freedom(blocks: int) -> float:
    """Degrees of freedom of a mean square of successive differences (von Neumann et al.)."""
    return 2 * (blocks - 1) / 3


def _tail(confidence: float, effect: float, blocks: int) -> float:
    """The tail on each side. A design effect is itself an estimate: the more of the variance it
    brings, the more the tail is that of Student's t.
    """
    tail = (1 - confidence) / 2
    if effect <= 1:
        return tail
    stats = _scipy_stats()
    normal, t = float(stats.norm.isf(tail)), float(stats.t.isf(tail, _freedom(blocks)))
    return float(stats.norm.sf(normal + (1 - 1 / effect) * (t - normal)))


@lru_cache(maxsize=4096)
def _ranks(n: int, q: float, tail: float) -> tuple[float, float]:
    """1-based ranks of the two order statistics, between whole ones; below 1 and above n where the
    sample is too small.
    """
    binom = _scipy_stats().binom
    # Whole ranks with P(count < low) <= tail and P(count >= high) <= tail, as tight as that allows;
    # from there a part of a step inwards, until the tail is used up.
    low, high = int(binom.ppf(tail, n, q)), int(binom.ppf(1 - tail, n, q)) + 1
    below, above = float(binom.cdf(low - 1, n, q)), float(binom.sf(high - 1, n, q))
    return (
        low + max(0.0, tail - below) / float(binom.pmf(low, n, q)) if low >= 1 else 0.0,
        high - max(0.0, tail - above) / float(binom.pmf(high - 1, n, q)) if high <= n else n + 1.0,
    )


def _at(x: Any, rank: float) -> float:
    """The order statistic of a 1-based rank, linear between whole ones."""
    i = min(max(int(rank), 1), x.size)
    j = min(i + 1, x.size)
    return float(x[i - 1] + (x[j - 1] - x[i - 1]) * min(max(rank - i, 0.0), 1.0))
