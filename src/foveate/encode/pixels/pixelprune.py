"""PixelPrune: patches that their neighbours foretell do not enter the vision encoder.

Paper: N. Wang, Z. Jin, C. Chen, H. Lu, "PixelPrune: Pixel-Level Adaptive Visual Token Reduction via
Predictive Coding", 2026, arXiv 2604.00886. The unit is the block of patches that becomes one visual
token. Blocks are read row by row, and each is predicted from what stands left (A), above (B) and
above left (C), by the edge rule of LOCO-I (JPEG-LS, ITU-T T.87): B where C is like A and not like
B, which says that an edge runs between the columns; A otherwise; in the first row A, in the first
column B. A block that is like its prediction is left out, and its prediction stands in its place
for later comparisons, so that what is left out never differs from what it repeats by more than
`threshold`, however long the chain. Threshold 0 leaves out nothing but exact repetition.

Differs from the paper and the authors' code: those speak of pictures. A video's first step is read
as one. In later steps a block whose A and B stand as they did one step before is predicted by its
own place one step before, any other block within its step as above; so a still scene costs one
step, and a cut is read as a new picture. Rows and columns are worked off diagonal by diagonal,
which gives the same choice as one block after the other.

Values are those that the tower would get, after resizing. O(H W) a step of the video.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from foveate.core import arrays
from foveate.core.errors import InputError
from foveate.core.method import Evidence, Paper, PixelMethod, setting
from foveate.core.registry import register
from foveate.core.views import PixelPlan, Pixels

METRICS = ("max", "mean", "rms")
Like = Callable[[np.ndarray, np.ndarray], np.ndarray]


def blocks(pixels: Pixels, shares: bool = False) -> np.ndarray:
    """(t, h, w, d) float32: the values of each visual token's block; `shares`: as shares of black to
    white. Raises NonFiniteError for values that are not finite.
    """
    if pixels.grid is None:
        raise InputError("these pixels have no grid of visual tokens; they come from the engine")
    t, h, w = pixels.grid
    frames, tall, wide, colours = pixels.array.shape
    x: np.ndarray = np.asarray(pixels.array, dtype=np.float32)
    arrays.check_finite(x, f"pixels of picture {pixels.image}:")
    if shares:
        x = np.divide(x, np.asarray(pixels.span), dtype=np.float32)
    x = x.reshape(t, frames // t, h, tall // h, w, wide // w, colours)
    return x.transpose(0, 2, 4, 1, 3, 5, 6).reshape(t, h, w, -1)


def likeness(metric: str, threshold: float) -> Like:
    """Compares rows (m, d) with rows (m, d): bool (m,). Threshold 0 asks for equal values."""

    def like(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        if threshold == 0.0:
            return np.asarray((a == b).all(axis=-1))
        apart = np.abs(a - b)
        if metric == "max":
            return np.asarray(apart.max(axis=-1) <= threshold)
        wide = apart.astype(np.float64)
        if metric == "mean":
            return np.asarray(wide.mean(axis=-1) <= threshold)
        return np.asarray(np.sqrt((wide * wide).mean(axis=-1)) <= threshold)

    return like


def unforeseen(x: np.ndarray, like: Like) -> np.ndarray:
    """(t, h, w) bool: blocks of x (t, h, w, d) that their prediction does not give. O(t h w d)."""
    keep = np.zeros(x.shape[:3], dtype=bool)
    stands: np.ndarray | None = None
    for step in range(x.shape[0]):
        stands = _step(x[step], stands, like, keep[step])
    return keep


def _step(x: np.ndarray, before: np.ndarray | None, like: Like, keep: np.ndarray) -> np.ndarray:
    """Marks the unforeseen blocks of one step x (h, w, d) in keep (h, w), and returns what stands at
    each place. before: the same of the step before.
    """
    h, w = keep.shape
    out = np.empty_like(x)
    for diagonal in range(h + w - 1):
        r = np.arange(max(0, diagonal - w + 1), min(h, diagonal + 1))
        c = diagonal - r
        guess, known = _predicted(out, r, c, like)
        if before is not None:
            still = _still(out, before, r, c, like)
            guess[still], known[still] = before[r[still], c[still]], True
        here = x[r, c]
        new = ~(known & like(here, guess))
        keep[r, c] = new
        out[r, c] = np.where(new[:, None], here, guess)
    return out


def _predicted(
    out: np.ndarray, r: np.ndarray, c: np.ndarray, like: Like
) -> tuple[np.ndarray, np.ndarray]:
    """Predictions (m, d) of the places (r, c) from their neighbours, and whether there is one."""
    guess = np.empty((r.size, out.shape[2]), dtype=out.dtype)
    inner = (r > 0) & (c > 0)
    left, above = (c > 0) & ~inner, (r > 0) & ~inner
    guess[left] = out[r[left], c[left] - 1]
    guess[above] = out[r[above] - 1, c[above]]
    row, col = r[inner], c[inner]
    a, b, corner = out[row, col - 1], out[row - 1, col], out[row - 1, col - 1]
    upright = like(corner, a) & ~like(corner, b)
    guess[inner] = np.where(upright[:, None], b, a)
    return guess, inner | left | above


def _still(
    out: np.ndarray, before: np.ndarray, r: np.ndarray, c: np.ndarray, like: Like
) -> np.ndarray:
    """(m,) bool: the neighbours left and above of (r, c) stand as one step before."""
    still = np.ones(r.size, dtype=bool)
    for there, row, col in ((c > 0, r, c - 1), (r > 0, r - 1, c)):
        row, col = row[there], col[there]
        still[there] &= like(out[row, col], before[row, col])
    return still


@register
@dataclass(frozen=True)
class PixelPrune(PixelMethod):
    """Leaves out blocks of patches that repeat what stands beside or before them. O(H W)."""

    name: ClassVar[str] = "pixelprune"
    summary: ClassVar[str] = "drops patches that repeat their neighbours, before the tower"
    paper: ClassVar[Paper | None] = Paper(
        "PixelPrune: Pixel-Level Adaptive Visual Token Reduction via Predictive Coding",
        "Wang, Jin, Chen, Lu",
        2026,
        "2604.00886",
        "Apache-2.0",
    )
    evidence: ClassVar[Evidence] = "reference"
    counts = "adaptive"
    acts = "patches"

    threshold: float = setting(
        0.0, "difference that counts as none, as a share of black to white", low=0.0, high=1.0
    )
    metric: str = setting("max", "how two blocks are compared", choices=METRICS)

    def reduce(self, pixels: list[Pixels], rng: Any) -> list[PixelPlan]:
        """Which blocks stay of each picture or video: the first one always does."""
        return [self._plan(p) for p in pixels]

    def _plan(self, p: Pixels) -> PixelPlan:
        if self.threshold > 0 and p.span is None:
            raise InputError(
                f"{self.name}: threshold={self.threshold} is a share of black to white, and how the "
                "pixels were normalised is not known here: give processor=, or take threshold=0"
            )
        x = blocks(
            p, shares=self.threshold > 0
        )  # undivided for 0: division could hide a difference
        keep = unforeseen(x, likeness(self.metric, self.threshold))
        kept = tuple(int(i) for i in np.flatnonzero(keep))
        return PixelPlan(patches=None if keep.all() else kept)
