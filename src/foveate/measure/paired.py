"""Paired comparisons of bounded scores: how much worse, is it more than a margin, is it equal.

Everywhere the first of a pair is the reference, and a drop is first minus second: above zero, the
second is worse. Scores lie in 0..1, so differences lie in -1..1.

Two kinds of data, two methods:

- Binary, both scores 0 or 1: Tango's score interval and test (T. Tango, Equivalence test and
  confidence interval for the difference in proportions for the paired-sample design, Statistics in
  Medicine 17, 1998), which keeps its level where pairs that differ are rare and gives no interval
  of width zero where none differ.
- Graded: Student's t on the differences after two pseudo-pairs, +1 and -1, were added. For binary
  scores that is the adjusted interval of D. G. Bonett and R. M. Price (Journal of Educational and
  Behavioral Statistics 37, 2012); used for graded scores it is our own extension. It stands for the
  large differences that a small sample happened not to show, and fades as 1/n.

scipy does the distributions and is loaded late.
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from foveate.core.errors import InputError
from foveate.measure.stats import Interval, _level, _scipy_stats

_EXACT_UP_TO = 12
_NORMAL_FROM = 100
_RESAMPLES = 9999


@dataclass(frozen=True)
class BinaryPairs:
    """n pairs of 0/1 scores, of which `only_first` were right only on the first side and
    `only_second` only on the second. These three numbers are all that the tests use.
    """

    n: int
    only_first: int
    only_second: int

    def __post_init__(self) -> None:
        b, c = self.only_first, self.only_second
        if self.n < 1 or b < 0 or c < 0 or b + c > self.n:
            raise InputError(
                f"{b} and {c} discordant of {self.n} pairs: needs counts that are not negative, "
                "at most n together, and one pair or more"
            )

    @property
    def drop(self) -> float:
        """Mean of first minus second."""
        return (self.only_first - self.only_second) / self.n

    @property
    def planning_sd(self) -> float:
        """Standard deviation of one pair's difference, for plans of size: with one more discordant
        pair on each side, because none seen does not mean that none exists.
        """
        n = self.n + 2
        mean = (self.only_first - self.only_second) / n
        return math.sqrt((self.only_first + self.only_second + 2) / n - mean * mean)

    def z(self, margin: float) -> float:
        """Tango's score statistic of the hypothesis "the drop is `margin`": above zero, the data
        show more than that. margin lies strictly between -1 and 1.
        """
        if not -1 < margin < 1:
            raise InputError(f"margin = {margin} is out of range: above -1 and below 1")
        n, b, c = self.n, self.only_first, self.only_second
        # The likelihood at p12 = p21 + margin has one maximum inside: the root of
        # 2n p21^2 - s p21 - c margin (1 - margin) = 0 that is not negative.
        s = b + c + (b - c) * margin - 2 * n * margin
        root = math.sqrt(max(0.0, s * s + 8 * n * c * margin * (1 - margin)))
        p21 = max(0.0, (s + root) / (4 * n))
        variance = n * (2 * p21 + margin * (1 - margin))
        gap = b - c - n * margin
        if variance <= 0:  # margin 0 without a discordant pair
            return 0.0 if gap == 0 else math.copysign(math.inf, gap)
        return gap / math.sqrt(variance)

    def p_above(self, margin: float) -> float:
        """One-sided p of "the drop is at most `margin`": small, it is more."""
        return float(_normal().sf(self.z(margin)))

    def p_below(self, margin: float) -> float:
        """One-sided p of "the drop is at least `margin`": small, it is less."""
        return float(_normal().cdf(self.z(margin)))

    def interval(self, confidence: float = 0.95) -> Interval:
        """The drops that a two-sided score test of this confidence does not reject."""
        z = float(_normal().ppf(0.5 + _level(confidence) / 2))
        edge = 1 - 1e-12
        ends = []
        for target, limit in ((z, -1.0), (-z, 1.0)):
            # z(margin) falls from above +z to below -z, unless every pair is discordant one way.
            low, high = self.z(-edge) - target, self.z(edge) - target
            crosses = low > 0 > high
            ends.append(_root(lambda m, t=target: self.z(m) - t, edge) if crosses else limit)
        return Interval(self.drop, ends[0], ends[1], confidence)


@dataclass(frozen=True)
class GradedPairs:
    """n differences first minus second in -1..1, with their mean and standard deviation
    (denominator n - 1, 0 for one pair). These three numbers are all that the tests use.
    """

    n: int
    mean: float
    sd: float

    def __post_init__(self) -> None:
        if self.n < 1 or not math.isfinite(self.mean) or not self.sd >= 0:
            raise InputError(
                f"n = {self.n}, mean = {self.mean}, sd = {self.sd}: needs one pair or more, a finite "
                "mean and a standard deviation that is not negative"
            )
        if abs(self.mean) > 1 + 1e-9:
            raise InputError(f"mean difference {self.mean} is out of range: scores lie in 0..1")

    @property
    def drop(self) -> float:
        """Mean of first minus second."""
        return self.mean

    @property
    def planning_sd(self) -> float:
        """Standard deviation of one pair's difference with the two pseudo-pairs counted."""
        return self._adjusted()[1]

    def _adjusted(self) -> tuple[float, float]:
        """Mean and standard deviation of the n differences and the pseudo-pairs +1 and -1."""
        n = self.n + 2
        mean = self.n * self.mean / n
        squares = (self.n - 1) * self.sd**2 + self.n * self.mean**2 + 2
        return mean, math.sqrt(max(0.0, (squares - n * mean * mean) / (n - 1)))

    def t(self, margin: float) -> float:
        """Student's t of the hypothesis "the drop is `margin`", with n + 1 degrees of freedom."""
        mean, sd = self._adjusted()
        return (mean - margin) / (sd / math.sqrt(self.n + 2))

    def p_above(self, margin: float) -> float:
        """One-sided p of "the drop is at most `margin`": small, it is more."""
        return float(_scipy_stats().t.sf(self.t(margin), self.n + 1))

    def p_below(self, margin: float) -> float:
        """One-sided p of "the drop is at least `margin`": small, it is less."""
        return float(_scipy_stats().t.cdf(self.t(margin), self.n + 1))

    def interval(self, confidence: float = 0.95) -> Interval:
        """Interval of the mean difference; it always holds the plain mean."""
        mean, sd = self._adjusted()
        half = float(_scipy_stats().t.ppf(0.5 + _level(confidence) / 2, self.n + 1))
        half *= sd / math.sqrt(self.n + 2)
        low, high = min(mean - half, self.mean), max(mean + half, self.mean)
        return Interval(self.mean, max(-1.0, low), min(1.0, high), confidence)


def pair_up(first: Sequence[float], second: Sequence[float]) -> BinaryPairs | GradedPairs:
    """The pairs of two lists of scores of equal length: binary if every score is 0 or 1.

    InputError for no pair, unequal lengths or scores outside 0..1.
    """
    a, b = np.asarray(first, dtype=np.float64), np.asarray(second, dtype=np.float64)
    if a.shape != b.shape or a.ndim != 1 or a.size < 1:
        raise InputError(f"needs one pair of scores or more; got shapes {a.shape} and {b.shape}")
    for values in (a, b):
        if not ((values >= 0) & (values <= 1)).all():  # NaN fails too
            raise InputError("scores must lie in 0..1: leave out the pairs that were not measured")
    if all(((values == 0) | (values == 1)).all() for values in (a, b)):
        return BinaryPairs(a.size, int((a > b).sum()), int((b > a).sum()))
    d = a - b
    return GradedPairs(d.size, float(d.mean()), float(d.std(ddof=1)) if d.size > 1 else 0.0)


def tost(pairs: BinaryPairs | GradedPairs, margin: float) -> float:
    """p of "the two sides differ by `margin` or more", by two one-sided tests (Schuirmann 1987):
    small, they are equivalent within the margin. margin is above 0.
    """
    if not 0 < margin < 1:
        raise InputError(f"margin = {margin} is out of range: above 0 and below 1")
    return max(pairs.p_below(margin), pairs.p_above(-margin))


def sign_flip(differences: Sequence[float], *, seed: int = 0) -> float:
    """Two-sided p of "first and second are exchangeable within each pair" for the mean difference.

    Zeros do not matter and are left out. Up to 12 others every sign pattern is counted. Where
    (sum d^2)^2 / sum d^4, the number of differences that carry the sum, is above 100, the sum over
    random signs is taken as normal with variance sum d^2, which at p = .02 errs by less than 9,999
    random patterns scatter; these serve in between. scipy.stats.permutation_test gives the same p,
    twenty times slower. The same seed gives the same p.
    """
    d = np.asarray(differences, dtype=np.float64)
    d = d[d != 0]
    if not np.isfinite(d).all():
        raise InputError("differences must be finite: leave out the pairs that were not measured")
    if d.size == 0:
        return 1.0
    d = d / np.abs(d).max()  # so that no power of it vanishes
    observed, squares = abs(float(d.sum())), float((d * d).sum())
    if squares**2 / float((d**4).sum()) > _NORMAL_FROM:
        return min(1.0, 2 * float(_normal().sf(observed / math.sqrt(squares))))
    least = observed * (1 - 1e-9)  # sums of equal terms may differ by rounding
    if d.size <= _EXACT_UP_TO:
        patterns = np.arange(1 << d.size)[:, None] >> np.arange(d.size) & 1
        return float((np.abs((2 * patterns - 1) @ d) >= least).mean())
    rng = np.random.default_rng(seed)
    reached, drawn = 1, 1  # the observed pattern is one of them
    while drawn <= _RESAMPLES:
        count = min(_RESAMPLES + 1 - drawn, max(1, (1 << 21) // d.size))
        signs = 2.0 * rng.integers(0, 2, (count, d.size), dtype=np.int8) - 1
        reached += int((np.abs(signs @ d) >= least).sum())
        drawn += count
    # So few patterns cannot show a small p; the bound on a sum of random signs (Hoeffding 1963) can.
    return min(reached / drawn, 2 * math.exp(-(observed**2) / (2 * squares)))


def newcombe(first: Interval, second: Interval) -> Interval:
    """Second proportion less the first, from their Wilson intervals at one confidence: the hybrid
    score interval of R. G. Newcombe (Statistics in Medicine 17, 1998, method 10), square-and-add.
    """
    if first.confidence != second.confidence:
        raise InputError(
            f"intervals of different confidence, {first.confidence} and {second.confidence}"
        )
    gap = second.estimate - first.estimate
    down = math.hypot(second.estimate - second.low, first.high - first.estimate)
    up = math.hypot(second.high - second.estimate, first.estimate - first.low)
    return Interval(gap, gap - down, gap + up, first.confidence)


def _normal() -> Any:
    return _scipy_stats().norm


def _root(function: Any, edge: float) -> float:
    optimize = importlib.import_module("scipy.optimize")
    return float(optimize.brentq(function, -edge, edge, xtol=1e-12))
