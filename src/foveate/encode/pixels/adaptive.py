"""Adaptive resolution: a picture is shown as small as its detail allows.

No paper: a plain rule that needs no model. A picture of blocks of equal colour loses nothing when
it shrinks; small print does. The loss of a scale is how much brightness varies inside the cells
that become one pixel, as the root of the mean square in the worst of 8 x 8 regions, in 8-bit
levels, so that one line of small print on an empty page counts as much as a page full of it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from typing import ClassVar

import numpy as np

from foveate.core.method import Evidence, PixelMethod, setting
from foveate.core.registry import register
from foveate.core.views import PixelPlan, Pixels
from foveate.encode.pixels._common import Size, grey, scaled, share

SCALES = (Fraction(1, 8), Fraction(1, 6), Fraction(1, 4), Fraction(3, 8), Fraction(1, 2),
          Fraction(3, 4))  # fmt: skip
_REGIONS = 8


def _edges(length: int, parts: int) -> np.ndarray:
    """First index of each of min(parts, length) runs that cover 0 … length-1 evenly."""
    parts = min(parts, length)
    return (np.arange(parts) * length) // parts


def _sums(x: np.ndarray, size: Size) -> np.ndarray:
    """Sums of x (H, W) over the cells of a grid of `size` (h, w)."""
    rows = np.add.reduceat(x, _edges(x.shape[0], size[0]), axis=0)
    return np.add.reduceat(rows, _edges(x.shape[1], size[1]), axis=1)


def loss(brightness: np.ndarray, size: Size) -> float:
    """What showing brightness (H, W) at `size` (h, w) loses, in levels: the worst region's RMS.

    O(H W). A size at or above the picture's own loses nothing.
    """
    x = brightness.astype(np.int64)
    count = _sums(np.ones_like(x), size)
    # sum of squares minus square of the sum over the count: what one mean a cell does not explain
    left = _sums(x * x, size) - _sums(x, size).astype(np.float64) ** 2 / count
    region = (_REGIONS, _REGIONS)
    return float(np.sqrt(np.max(_sums(np.maximum(left, 0.0), region) / _sums(count, region))))


@register
@dataclass(frozen=True)
class Resolution(PixelMethod):
    """The smallest of six scales (1/8 to 3/4) whose loss stays within `error`; else the full size.

    Colour counts by its brightness alone. O(H W) a scale.
    """

    name: ClassVar[str] = "resolution"
    summary: ClassVar[str] = "shows each picture as small as its detail allows (control)"
    evidence: ClassVar[Evidence] = "control"
    counts = "adaptive"

    error: float = setting(8.0, "loss that is accepted, in 8-bit levels", low=0.0, high=255.0)
    floor: Fraction = setting(Fraction(1, 8), "smallest scale of the sides, 0 < floor <= 1")

    def __post_init__(self) -> None:
        super().__post_init__()
        share(self.name, "floor", self.floor)

    def reduce(
        self, pixels: list[Pixels], rng: Callable[[Pixels], np.random.Generator]
    ) -> list[PixelPlan]:
        return [self._plan(p) for p in pixels]

    def _plan(self, p: Pixels) -> PixelPlan:
        brightness = grey(p.array[0])
        for scale in SCALES:
            size = scaled(p.size, scale)
            if scale < self.floor or size == p.size:
                continue
            if loss(brightness, size) <= self.error:
                return PixelPlan(size=size)
        return PixelPlan()
