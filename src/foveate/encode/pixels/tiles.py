"""Tile selection: of a picture cut into tiles, those with something on them, and the thumbnail.

No paper: the plainest rule there is, by pixels alone. A tile is an encoder pass, so that, unlike
a token method, leaving one out saves the vision encoder's time as well.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from typing import ClassVar

import numpy as np

from foveate.core import arrays
from foveate.core.budget import Budget, image_count
from foveate.core.errors import SettingError
from foveate.core.method import Evidence, PixelMethod, setting
from foveate.core.registry import register
from foveate.core.views import Box, PixelPlan, Pixels
from foveate.encode.pixels._common import grey, share

_LEVELS = 32


def gradient(brightness: np.ndarray) -> float:
    """Mean absolute step between neighbours of a patch (h, w), in levels a pixel."""
    x = brightness.astype(np.int64)
    total = int(np.abs(np.diff(x, axis=0)).sum()) + int(np.abs(np.diff(x, axis=1)).sum())
    return total / x.size


def entropy(brightness: np.ndarray) -> float:
    """Shannon entropy in bits of the brightness of a patch (h, w), in 32 levels."""
    count = np.bincount(brightness.reshape(-1) * _LEVELS // 256, minlength=_LEVELS)
    part = count[count > 0] / brightness.size
    return float(-(part * np.log2(part)).sum())


SCORES = {"gradient": gradient, "entropy": entropy}


@register
@dataclass(frozen=True)
class Tiles(PixelMethod):
    """Keeps max(1, round(keep n)) of a picture's n tiles, or `tiles` of them, and the thumbnail.

    The count follows from the grid and the budget alone. Ties go to the first tile; a picture of
    one tile stays as it is. O(H W).
    """

    name: ClassVar[str] = "tiles"
    summary: ClassVar[str] = "keeps the tiles of a picture with most detail (control)"
    evidence: ClassVar[Evidence] = "control"
    acts = "tiles"

    keep: Fraction | None = setting(None, "share of the tiles that is kept, 0 < keep <= 1")
    tiles: int | None = setting(None, "tiles kept of each picture", low=1)
    score: str = setting("gradient", "what makes a tile worth keeping", choices=tuple(SCORES))

    def __post_init__(self) -> None:
        super().__post_init__()
        if (self.keep is None) == (self.tiles is None):
            raise SettingError(
                f"{self.name}: set exactly one of keep (a share) and tiles (a count)"
            )
        share(self.name, "keep", self.keep)

    def kept(self, n: int) -> int:
        """Tiles kept of n, the thumbnail left out."""
        return image_count(Budget(keep=self.keep, per_image=self.tiles), n)

    def reduce(
        self, pixels: list[Pixels], rng: Callable[[Pixels], np.random.Generator]
    ) -> list[PixelPlan]:
        return [self._plan(p) for p in pixels]

    def _plan(self, p: Pixels) -> PixelPlan:
        if p.tiles is None or len(p.tiles) == 1:
            return PixelPlan()
        places = [i for i in range(len(p.tiles)) if i != p.thumbnail]
        k = self.kept(len(places))
        if k >= len(places):
            return PixelPlan()
        brightness = grey(p.array[0])
        value = [SCORES[self.score](cut(brightness, p.tiles[i])) for i in places]
        chosen = {places[int(i)] for i in arrays.top_k(np.asarray(value), k)}
        if p.thumbnail is not None:
            chosen.add(p.thumbnail)
        return PixelPlan(tiles=tuple(sorted(chosen)))


def cut(brightness: np.ndarray, box: Box) -> np.ndarray:
    """The pixels of a box, at least one: boxes of a tiny picture can be empty after rounding."""
    h, w = brightness.shape
    top, left = min(box.top, h - 1), min(box.left, w - 1)
    return brightness[top : max(box.bottom, top + 1), left : max(box.right, left + 1)]
