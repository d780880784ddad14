"""How many samples a one-sided test needs to decide, if what was observed is the truth.

All return None where no number of samples would do, because the observed value lies on the bound or
so near to it that more than `at_most` samples were needed.
"""

from __future__ import annotations

import math

from foveate.core.errors import InputError
from foveate.measure.stats import _scipy_stats

POWER = 0.8
"""The probability of a decision that plans aim at."""


def pairs_needed(
    gap: float, sd: float, alpha: float, *, power: float = POWER, at_most: int = 1_000_000
) -> int | None:
    """Pairs for a mean difference that lies `gap` away from the bound, sd that of one difference:
    n = ((z_alpha + z_power) sd / gap)^2, at least z_alpha^2 / |gap| for a score test, which with no
    discordant pair at all rejects from there on.
    """
    _check(alpha, power)
    if gap == 0:
        return None
    normal = _scipy_stats().norm
    z = float(normal.isf(alpha))
    n = ((z + float(normal.ppf(power))) * sd / gap) ** 2
    n = max(n, z * z / abs(gap))
    return None if n > at_most else max(2, math.ceil(n))


def blocks_needed(
    gap: float, sd: float, alpha: float, *, power: float = POWER, at_most: int = 10_000
) -> int | None:
    """Paired blocks for a mean log ratio `gap` away from the bound's logarithm, sd between blocks:
    the smallest n with n >= ((t_alpha + t_power) sd / gap)^2 at n - 1 degrees of freedom.
    """
    _check(alpha, power)
    if abs(gap) < 1e-12:
        return None
    t = _scipy_stats().t
    normal = _scipy_stats().norm
    n = max(2, math.ceil(((float(normal.isf(alpha)) + float(normal.ppf(power))) * sd / gap) ** 2))
    while n <= at_most:
        reach = (float(t.isf(alpha, n - 1)) + float(t.ppf(power, n - 1))) * sd / abs(gap)
        if n >= reach**2:
            return n
        n += max(1, n // 50)
    return None


def trials_needed(
    rate: float, bound: float, alpha: float, *, power: float = POWER, at_most: int = 10_000_000
) -> int | None:
    """Trials to tell a rate from a bound on it: the normal approximation with the variance of the
    bound under the hypothesis, and exactly ln(alpha) / ln(1 - bound) where the rate is 0.
    """
    _check(alpha, power)
    if not 0 <= rate <= 1 or not 0 < bound < 1:
        raise InputError(f"rate = {rate}, bound = {bound}: needs 0..1, the bound strictly inside")
    if rate == bound:
        return None
    if rate == 0:
        n = math.log(alpha) / math.log1p(-bound)
    else:
        normal = _scipy_stats().norm
        spread = float(normal.isf(alpha)) * math.sqrt(bound * (1 - bound))
        spread += float(normal.ppf(power)) * math.sqrt(rate * (1 - rate))
        n = (spread / (rate - bound)) ** 2
    return None if n > at_most else max(1, math.ceil(n))


def _check(alpha: float, power: float) -> None:
    if not (0 < alpha < 0.5 and 0.5 <= power < 1):
        raise InputError(
            f"alpha = {alpha}, power = {power}: alpha is above 0 and below .5, power .5 to 1"
        )
