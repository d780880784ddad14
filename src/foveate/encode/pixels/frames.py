"""Which frames of a video are looked at: evenly spaced ones, or more where more happens.

No paper. `frames` takes the middle of each of k equal parts. `keyframes` spreads the frames evenly
over the change of the picture instead of over time: change is the mean absolute difference of
neighbouring frames at 16 x 16 cells, and a share of it is added to all frames alike, so that a
quiet stretch is not left out and a still video is sampled evenly.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from typing import ClassVar

import numpy as np

from foveate.core.budget import Budget, image_count
from foveate.core.errors import SettingError
from foveate.core.method import Evidence, PixelMethod, setting
from foveate.core.registry import register
from foveate.core.views import PixelPlan, Pixels
from foveate.encode.pixels._common import grey, share, videos_only

_CELLS = 16


def middles(t: int, k: int) -> np.ndarray:
    """The middle of each of k equal parts of t frames, (k,) int64."""
    return (2 * np.arange(k, dtype=np.int64) + 1) * t // (2 * k)


def change(array: np.ndarray) -> np.ndarray:
    """(t,) change of each frame of (t, H, W, 3) against the one before, in levels of all cells.

    The first frame has none. O(t H W).
    """
    t, h, w = array.shape[:3]
    rows = (np.arange(min(_CELLS, h)) * h) // min(_CELLS, h)
    cols = (np.arange(min(_CELLS, w)) * w) // min(_CELLS, w)
    out, last = np.zeros(t, dtype=np.int64), None
    for i in range(t):
        sums = np.add.reduceat(np.add.reduceat(grey(array[i]).astype(np.int64), rows, 0), cols, 1)
        if last is not None:
            out[i] = np.abs(sums - last).sum()
        last = sums
    return out


def spread(weight: np.ndarray, k: int) -> np.ndarray:
    """k different frames, rising: where the running sum of weight (t,) passes the middles of k
    parts.
    """
    t = weight.shape[0]
    total = np.cumsum(weight)
    aims = (2 * np.arange(k) + 1) * total[-1]
    picks = np.searchsorted(2 * k * total, aims, side="right")
    for j in range(k):  # as early as asked, but after the one before
        picks[j] = max(picks[j], picks[j - 1] + 1 if j else 0)
    return np.minimum(picks, np.arange(t - k, t))


@dataclass(frozen=True)
class _Frames(PixelMethod):
    """The settings both methods share: exactly one of `keep` and `frames`."""

    acts = "frames"

    keep: Fraction | None = setting(None, "share of the frames that is kept, 0 < keep <= 1")
    frames: int | None = setting(None, "frames kept of each video", low=1)

    def __post_init__(self) -> None:
        super().__post_init__()
        if (self.keep is None) == (self.frames is None):
            raise SettingError(
                f"{self.name}: set exactly one of keep (a share) and frames (a count)"
            )
        share(self.name, "keep", self.keep)

    def reduce(
        self, pixels: list[Pixels], rng: Callable[[Pixels], np.random.Generator]
    ) -> list[PixelPlan]:
        """Pictures of a request that has videos too stay as they are."""
        videos_only(self.name, pixels)
        out = []
        for p in pixels:
            t = int(p.array.shape[0])
            k = image_count(Budget(keep=self.keep, per_image=self.frames), t)
            chosen = tuple(int(i) for i in self._choose(p, k)) if k < t else None
            out.append(PixelPlan(frames=chosen))
        return out

    def _choose(self, p: Pixels, k: int) -> np.ndarray:
        raise NotImplementedError(f"{type(self).__name__} must define this")


@register
@dataclass(frozen=True)
class Frames(_Frames):
    """Evenly spaced frames. O(k)."""

    name: ClassVar[str] = "frames"
    summary: ClassVar[str] = "looks at evenly spaced frames of a video (control)"
    evidence: ClassVar[Evidence] = "control"

    def _choose(self, p: Pixels, k: int) -> np.ndarray:
        return middles(int(p.array.shape[0]), k)


@register
@dataclass(frozen=True)
class Keyframes(_Frames):
    """More frames where the picture changes. O(t H W)."""

    name: ClassVar[str] = "keyframes"
    summary: ClassVar[str] = "looks at more frames of a video where more changes (control)"
    evidence: ClassVar[Evidence] = "control"

    even: Fraction = setting(Fraction(1, 4), "share spread evenly over time", low=0, high=1)

    def _choose(self, p: Pixels, k: int) -> np.ndarray:
        moved = change(p.array)
        t, total = moved.shape[0], int(moved.sum())
        if total == 0 or self.even == 1:
            return middles(t, k)
        # Whole numbers: even : (1 - even) between time and change, both summing to t * total.
        top, bottom = self.even.numerator, self.even.denominator
        return spread(top * total + (bottom - top) * t * moved, k)
