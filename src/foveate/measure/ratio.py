"""Ratios of two arms over paired blocks: the geometric mean and Student's t on the logarithms.

Blocks are run next to each other, so a drift of the machine hits both sides of a pair and cancels
in the ratio. Within a block requests may depend on each other; between blocks they hardly do.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from foveate.core.errors import InputError
from foveate.measure.stats import Interval, _level, _scipy_stats


@dataclass(frozen=True)
class Ratio:
    """n ratios with mean and standard deviation of their natural logarithms (n - 1; 0 for one)."""

    n: int
    log_mean: float
    log_sd: float

    @classmethod
    def of(cls, numerators: Sequence[float], denominators: Sequence[float]) -> Ratio:
        """InputError unless there are as many of both, at least one, all finite and above 0."""
        a = np.asarray(numerators, dtype=np.float64)
        b = np.asarray(denominators, dtype=np.float64)
        if a.shape != b.shape or a.ndim != 1 or a.size < 1:
            raise InputError(f"needs one pair or more; got shapes {a.shape} and {b.shape}")
        if not (np.isfinite(a).all() and np.isfinite(b).all() and (a > 0).all() and (b > 0).all()):
            raise InputError("ratios need finite values above 0: leave out what was not measured")
        logs = np.log(a / b)
        return cls(logs.size, float(logs.mean()), float(logs.std(ddof=1)) if a.size > 1 else 0.0)

    @property
    def estimate(self) -> float:
        """The geometric mean of the ratios."""
        return math.exp(self.log_mean)

    def t(self, bound: float) -> float | None:
        """Student's t of "the true ratio is `bound`", n - 1 degrees of freedom; None for n = 1."""
        if self.n < 2:
            return None
        gap = self.log_mean - math.log(bound)
        # Equal blocks leave rounding only, in the deviation as in the gap.
        if abs(gap) < 1e-12:
            return 0.0
        if self.log_sd < 1e-12:
            return math.copysign(math.inf, gap)
        return gap / (self.log_sd / math.sqrt(self.n))

    def p_above(self, bound: float) -> float:
        """One-sided p of "the ratio is at most `bound`": small, it is more. 1 for one block."""
        t = self.t(bound)
        return 1.0 if t is None else float(_scipy_stats().t.sf(t, self.n - 1))

    def p_below(self, bound: float) -> float:
        """One-sided p of "the ratio is at least `bound`": small, it is less. 1 for one block."""
        t = self.t(bound)
        return 1.0 if t is None else float(_scipy_stats().t.cdf(t, self.n - 1))

    def p_equal(self) -> float:
        """Two-sided p of "the ratio is 1"."""
        return min(1.0, 2 * min(self.p_above(1.0), self.p_below(1.0)))

    def interval(self, confidence: float = 0.95) -> Interval:
        """Two-sided; from 0 to inf for one block."""
        _level(confidence)
        if self.n < 2:
            return Interval(self.estimate, 0.0, math.inf, confidence)
        half = float(_scipy_stats().t.ppf(0.5 + confidence / 2, self.n - 1))
        half *= self.log_sd / math.sqrt(self.n)
        low, high = math.exp(self.log_mean - half), math.exp(self.log_mean + half)
        return Interval(self.estimate, low, high, confidence)
