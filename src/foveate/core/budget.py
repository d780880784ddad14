"""How many visual tokens are kept: one budget, resolved once, with exact fractions. Methods never
round.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

from foveate.core.errors import SettingError

Size = int | Fraction


@dataclass(frozen=True)
class Budget:
    """What may be kept: a ratio of every image, a count an image, or a count a request. Exactly one
    is set.
    """

    keep: Fraction | None = None
    per_image: int | None = None
    per_request: int | None = None

    def __post_init__(self) -> None:
        _check(self, "a budget", ("per_image", "per_request"), "at least 1 token")


@dataclass(frozen=True)
class KVBudget:
    """KV entries kept: a ratio, a count or bytes; exactly one. The recent window counts."""

    keep: Fraction | None = None
    entries: int | None = None
    bytes: int | None = None

    def __post_init__(self) -> None:
        _check(self, "a KV budget", ("entries", "bytes"), "at least 1")


def _check(budget: Budget | KVBudget, title: str, counts: tuple[str, ...], least: str) -> None:
    """SettingError unless exactly one of keep and the counts is set, and in its range."""
    names = ("keep", *counts)
    given = [f for f in names if getattr(budget, f) is not None]
    if len(given) != 1:
        raise SettingError(f"{title} sets exactly one of {', '.join(names)}; got {given or 'none'}")
    if budget.keep is not None and not 0 < budget.keep <= 1:
        raise SettingError(f"keep = {budget.keep} is out of range: 0 < keep <= 1")
    for name in counts:
        value = getattr(budget, name)
        if value is not None and value < 1:
            raise SettingError(f"{name} = {value} is out of range: {least}")


@dataclass(frozen=True)
class Counts:
    """Tokens to keep of one request: the sum, and one number a segment.

    `exact` is False where a method may move tokens between segments (`counts` other than "image"):
    then only `total` binds ("request") or nothing does ("adaptive").
    """

    total: int
    per_segment: tuple[int, ...]
    exact: bool = True


def largest_remainder(
    total: int,
    weights: Sequence[Size],
    *,
    floor: int = 0,
    caps: Sequence[int] | None = None,
) -> list[int]:
    """Split `total` in proportion to `weights`, each part an integer in [floor, cap], exactly.

    Parts that the proportion would put outside their bounds are fixed at the bound and the rest is
    shared again; what rounding leaves goes to the largest remainders, ties to the lower index.
    Weights that sum to zero count as equal. `total` is clipped to what the bounds allow.
    """
    n = len(weights)
    if n == 0:
        return []
    top = list(caps) if caps is not None else [max(total, floor)] * n
    low = [min(floor, c) for c in top]
    total = min(max(total, sum(low)), sum(top))
    shares: list[Fraction] = [Fraction(0)] * n
    free = list(range(n))
    rest = Fraction(total)
    while free:
        mass = sum((Fraction(weights[i]) for i in free), Fraction(0))
        for i in free:
            part = Fraction(weights[i]) / mass if mass else Fraction(1, len(free))
            shares[i] = rest * part
        under = [i for i in free if shares[i] < low[i]]
        over = [i for i in free if shares[i] > top[i]]
        if not under and not over:
            break
        # The side that is further out of bounds is fixed first; fixing both could overshoot.
        lack = sum((low[i] - shares[i] for i in under), Fraction(0))
        excess = sum((shares[i] - top[i] for i in over), Fraction(0))
        fixed, bound = (under, low) if lack >= excess else (over, top)
        for i in fixed:
            shares[i] = Fraction(bound[i])
            rest -= bound[i]
        free = [i for i in free if i not in set(fixed)]
    parts = [s.numerator // s.denominator for s in shares]
    order = sorted(range(n), key=lambda i: (parts[i] - shares[i], i))
    missing = total - sum(parts)
    for i in order:
        if missing == 0:
            break
        if parts[i] < top[i]:
            parts[i] += 1
            missing -= 1
    return parts


def image_count(budget: Budget, n: int) -> int:
    """Tokens kept of an image of `n` tokens under a budget that is not per request."""
    if n == 0:
        return 0
    if budget.keep is not None:
        want = budget.keep * n + Fraction(1, 2)
        return min(n, max(1, want.numerator // want.denominator))
    if budget.per_image is None:
        raise SettingError("a per_request budget is shared over images: use resolve()")
    return min(n, budget.per_image)


def resolve(budget: Budget, sizes: Sequence[Sequence[int]], *, exact: bool = True) -> Counts:
    """Counts of one request. `sizes[i]` holds the tokens of image i's segments, fixed tokens left
    out.

    An image keeps at least one token (if it has any); a segment may keep none. Over the segments of
    an
    image, and over images for `per_request`, the split is by largest remainder.
    """
    totals = [sum(s) for s in sizes]
    if budget.per_request is None:
        per_image = [image_count(budget, n) for n in totals]
    else:
        per_image = largest_remainder(budget.per_request, totals, floor=1, caps=totals)
    parts: list[int] = []
    for k, segments in zip(per_image, sizes, strict=True):
        parts += largest_remainder(k, segments, caps=segments)
    return Counts(sum(parts), tuple(parts), exact)
