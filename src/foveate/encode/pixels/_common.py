"""What pixel methods share: brightness, scaled sizes, the largest size within a budget."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction

import numpy as np

from foveate.core.errors import SettingError, UnsupportedError
from foveate.core.views import PixelPlan, Pixels

Size = tuple[int, int]
_STEPS = 12


def grey(array: np.ndarray) -> np.ndarray:
    """Brightness (…, H, W) of RGB (…, H, W, 3) in 0 … 255, integers (ITU-R BT.601 weights)."""
    wide = array.astype(np.int32)
    return (299 * wide[..., 0] + 587 * wide[..., 1] + 114 * wide[..., 2] + 500) // 1000


def scaled(size: Size, scale: float | Fraction) -> Size:
    """(h, w) times a factor, rounded, at least one pixel."""
    return tuple(max(1, int(edge * scale + Fraction(1, 2))) for edge in size)  # type: ignore[return-value]


def within(pixels: Pixels, budget: int) -> PixelPlan:
    """The plan of the largest size that gives at most `budget` tokens, by bisection of its scale.

    A model may have a least number of tokens: then the largest size that gives it. Where the full
    size fits, nothing changes.
    """
    best = PixelPlan(size=scaled(pixels.size, 0.0))
    budget = max(budget, pixels.tokens(best))
    if pixels.tokens(PixelPlan()) <= budget:
        return PixelPlan()
    low, high = 0.0, 1.0
    for _ in range(_STEPS):
        middle = (low + high) / 2
        plan = PixelPlan(size=scaled(pixels.size, middle))
        if pixels.tokens(plan) <= budget:
            low, best = middle, plan
        else:
            high = middle
    return best


def share(name: str, field: str, value: Fraction | None) -> None:
    """SettingError unless 0 < value <= 1 (or None)."""
    if value is not None and not 0 < value <= 1:
        raise SettingError(f"{name}: {field} = {value} is out of range: 0 < {field} <= 1")


def videos_only(name: str, pixels: Sequence[Pixels]) -> None:
    """UnsupportedError if nothing here has frames to choose among."""
    if pixels and all(p.time_s is None and p.array.shape[0] == 1 for p in pixels):
        raise UnsupportedError(
            f"{name} chooses among the frames of a video; this request has pictures alone: take "
            "downscale, resolution or tiles, or drop it from the plan"
        )
