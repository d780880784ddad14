"""Ask a pixel method what is looked at, and hold its answer to the contract: what every door does
alike, whatever engine it serves. Sizes are (height, width) in pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np

from foveate.core.errors import PlanError, UnsupportedError
from foveate.core.method import PixelMethod
from foveate.core.views import Box, PixelPlan, Pixels

Size = tuple[int, int]
Tiling = tuple[tuple[Box, ...], int | None]  # boxes in the picture, index of the thumbnail


class Shown(Protocol):
    """What a family's processor makes of a picture's size."""

    @property
    def resizes(self) -> bool:
        """The number of tokens follows the size that is asked for."""
        ...

    @property
    def droppable(self) -> bool:
        """Tiles can be left out."""
        ...

    @property
    def tile_tokens(self) -> int:
        """Visual tokens of one tile; UnsupportedError where there are none to leave out."""
        ...

    def seen(self, size: Size) -> Size:
        """The size at which the tower sees a picture of this size."""
        ...

    def tokens(self, size: Size, asked: Size | None = None, company: int = 1) -> int:
        """Placeholders of a picture of `size`, `asked` for at another; `company` pictures a prompt."""
        ...

    def tiling(self, size: Size, asked: Size | None = None) -> Tiling | None:
        """Encoder passes of a picture in order, None where none of them can be left out."""
        ...


def tiled(size: Size, rows: int, cols: int) -> Tiling:
    """A picture cut into rows x cols tiles, the whole of it last; of one tile: that alone."""
    h, w = size
    whole = Box(0, 0, w, h)
    if rows * cols == 1:
        return (whole,), None
    boxes = [
        Box(c * w // cols, r * h // rows, (c + 1) * w // cols, (r + 1) * h // rows)
        for r in range(rows)
        for c in range(cols)
    ]
    return (*boxes, whole), rows * cols


def tokens_of(shown: Shown, size: Size, plan: PixelPlan, company: int = 1) -> int:
    """Placeholders that a picture of `size` has under a plan, by the processor's own rule."""
    if plan.tiles is not None:
        return len(plan.tiles) * int(shown.tile_tokens)
    return shown.tokens(size, plan.size, company)


def picture_view(index: int, array: np.ndarray, shown: Shown, company: int = 1) -> Pixels:
    """What a method sees of a picture (H, W, 3) uint8 that stands beside `company` - 1 others."""
    size = (int(array.shape[0]), int(array.shape[1]))
    tiling = shown.tiling(size)

    def tokens(plan: PixelPlan) -> int:
        return tokens_of(shown, size, plan, company)

    return Pixels(
        image=index,
        array=array[None],
        size=shown.seen(size),
        tokens=tokens,
        tiles=tiling[0] if tiling is not None else None,
        thumbnail=tiling[1] if tiling is not None else None,
        resizes=shown.resizes,
    )


def video_view(index: int, frames: np.ndarray, time_s: np.ndarray, name: str) -> Pixels:
    """What a method sees of a video (t, H, W, 3) uint8 with times (t,), NaN where not known."""

    def tokens(plan: PixelPlan) -> int:
        raise UnsupportedError(
            f"{name} asks how many tokens a video gives; that is known after preprocessing only: "
            "take a method that counts frames, such as frames"
        )

    h, w = frames.shape[1:3]
    return Pixels(index, frames, (int(h), int(w)), tokens, time_s=time_s)


def refuse(method: PixelMethod, family: str, shown: Shown, videos: bool) -> None:
    """UnsupportedError where a family cannot follow the method, or videos stand beside its pictures."""
    name, acts = method.name, method.acts
    if acts in ("size", "tiles") and videos:
        raise UnsupportedError(
            f"{name} acts on pictures, and this batch brings videos: take frames or keyframes "
            "for them, or drop it from the plan"
        )
    if acts == "size" and not shown.resizes:
        raise UnsupportedError(
            f"{name} is not available on {family}: its image processor makes the same number of "
            "tokens of every picture, whatever its size; take fewer tokens after the tower "
            "instead, for example with pool or uniform"
        )
    if acts == "tiles" and not shown.droppable:
        raise UnsupportedError(
            f"{name} is not available on {family}: its tower needs every part of a picture (it "
            "packs a whole grid, or has no tiles); take downscale where the family follows a "
            "picture's size, or a token method"
        )


def plans_of(
    method: PixelMethod,
    views: Sequence[Pixels],
    shown: Shown,
    rng: Callable[[Pixels], np.random.Generator],
) -> list[PixelPlan]:
    """One checked plan for each view. PlanError for a plan that does not fit its picture,
    UnsupportedError for one that the family cannot follow.
    """
    if not views:
        return []
    plans = method.reduce(list(views), rng)
    if len(plans) != len(views):
        raise PlanError(f"{method.name} answered {len(plans)} plans for {len(views)} pictures")
    for view, plan in zip(views, plans, strict=True):
        _check(method.name, view, plan, shown)
    return plans


def _check(name: str, view: Pixels, plan: PixelPlan, shown: Shown) -> None:
    video = view.time_s is not None
    if plan.patches is not None:
        raise PlanError(f"{name} leaves out patches, and does not say so: acts must be 'patches'")
    if plan.size is not None:
        if video or not shown.resizes:
            raise UnsupportedError(f"{name} resizes what this family shows at one size")
        if min(plan.size) < 1:
            raise PlanError(f"{name} asks for a picture of {plan.size} pixels")
    if plan.frames is not None and not video:
        raise PlanError(f"{name} chooses frames of a picture")
    tiling = shown.tiling((view.array.shape[1], view.array.shape[2]), plan.size)
    if plan.tiles is not None and (video or tiling is None):
        raise UnsupportedError(f"{name} leaves out tiles, which this family does not have")
    counts = {"tiles": len(tiling[0]) if tiling else 0, "frames": int(view.array.shape[0])}
    for what, picks in (("tiles", plan.tiles), ("frames", plan.frames)):
        if picks is None:
            continue
        ordered = all(a < b for a, b in zip(picks, picks[1:], strict=False))
        if not picks or not ordered or picks[0] < 0 or picks[-1] >= counts[what]:
            raise PlanError(f"{name}: {what} {picks} are no rising choice among {counts[what]}")
