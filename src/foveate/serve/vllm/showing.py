"""What a family's processor makes of a picture that a pixel method asked for at another size, or with
fewer tiles: `core.look.Shown` from sizes and settings alone, and how to hand the picture over.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from functools import cached_property
from typing import Any

import numpy as np

from foveate.core.errors import UnsupportedError
from foveate.core.look import Size, Tiling, picture_view, plans_of, tiled
from foveate.core.look import refuse as refuse_here
from foveate.core.method import PixelMethod
from foveate.core.rng import PlanRng
from foveate.core.views import PixelPlan
from foveate.serve.vllm.families import Family
from foveate.serve.vllm.picture_sizes import (
    SIZES,
    Settings,
    Sizes,
    blown_up,
    canvas,
    cut,
    merged,
    pixel_bounds,
    pixel_limits,
)

_BY_ARCHITECTURE = {s.architecture: s for s in SIZES.values()}
_PROBES = (56, 224, 896)  # edges of pictures that tell whether a family's tokens follow their size
_MARK = "_foveate_counts"
_FROM_PROCESSOR = (
    "size",
    "patch_size",
    "merge_size",
    "do_image_splitting",
    "max_image_size",
    "image_seq_len",
    "crop_to_patches",
    "min_patches",
    "max_patches",
    "image_seq_length",
)


class Shown:
    """The rule of one family under one config and one set of processor settings."""

    def __init__(self, family: Family, config: Any, settings: Settings) -> None:
        self.family, self.config, self.settings = family, config, settings
        self.sizes: Sizes = _BY_ARCHITECTURE[family.architecture]

    # --- what a method asks ---------------------------------------------------------------------
    @cached_property
    def resizes(self) -> bool:
        if self.sizes.kind == "anyres":
            return len({self.tokens((edge, edge)) for edge in _PROBES}) > 1
        return self.sizes.kind == "packed" or self.droppable

    @property
    def droppable(self) -> bool:
        if self.sizes.kind == "longest":
            return bool(self.settings["do_image_splitting"])
        if self.sizes.kind == "canvas":
            return bool(self.settings["crop_to_patches"]) and int(self.settings["max_patches"]) > 1
        return False

    @property
    def tile_tokens(self) -> int:
        if not self.droppable:
            raise UnsupportedError(f"{self.sizes.model_type} has no tiles that can be left out")
        name = "image_seq_len" if self.sizes.kind == "longest" else "image_seq_length"
        return int(self.settings[name])

    def seen(self, size: Size) -> Size:
        if self.sizes.kind == "packed":
            factor = int(self.settings["patch_size"]) * int(self.settings["merge_size"])
            return pixel_bounds(size, factor, *pixel_limits(self.settings))
        if self.droppable:
            rows, cols = self.grid(size)
            return rows * self.edge[0], cols * self.edge[1]
        return size

    def tokens(self, size: Size, asked: Size | None = None, company: int = 1) -> int:
        fields, n = self.made(size, PixelPlan(size=asked))
        return int(self.family.layout(self.config, fields, n, "image").length)

    def tiling(self, size: Size, asked: Size | None = None) -> Tiling | None:
        return tiled(size, *self.grid(size, asked)) if self.droppable else None

    # --- how a picture is handed over -----------------------------------------------------------
    def handed(self, size: Size, asked: Size | None) -> Size:
        """The size at which the processor gets a picture under a method that acts on sizes."""
        if self.sizes.kind == "longest":
            # The processor would blow every picture up again, so that step is done here for all.
            return asked or blown_up(size, int(self.settings["size"]["longest_edge"]))
        if asked is not None and self.sizes.kind == "canvas":
            return self._exact(asked)
        return asked or size

    def call(self, method: PixelMethod) -> dict[str, Any]:
        """Settings that go to the processor with pictures so handed over."""
        return {"do_resize": False} if method.acts == "size" and self._blows_up else {}

    def made(self, size: Size, plan: PixelPlan) -> tuple[dict[str, Any], int]:
        """Processed fields of a picture of `size` under a plan, and its visual tokens."""
        settings = dict(self.settings)
        if plan.size is not None:
            size = self.handed(size, plan.size)
            settings |= {"do_resize": False} if self._blows_up else {}
        fields, n = self.sizes.made(self.config, settings, size)
        if plan.tiles is not None and self.sizes.tiles is not None:
            return {**fields, self.sizes.tiles: len(plan.tiles)}, len(plan.tiles) * self.tile_tokens
        return fields, n

    @property
    def tiles_field(self) -> str:
        """The processed field that says how many tiles a picture has."""
        if self.sizes.tiles is None:
            raise UnsupportedError(f"{self.sizes.model_type} has no tiles that can be left out")
        return self.sizes.tiles

    # --- tiles ----------------------------------------------------------------------------------
    @property
    def edge(self) -> Size:
        """Height and width of a tile."""
        if self.sizes.kind == "longest":
            side = int(self.settings["max_image_size"]["longest_edge"])
            return side, side
        return int(self.settings["size"]["height"]), int(self.settings["size"]["width"])

    def grid(self, size: Size, asked: Size | None = None) -> Size:
        """(rows, columns) of tiles; (1, 1): the picture alone."""
        if self.sizes.kind == "longest":
            return cut(self.handed(size, asked), self.edge[0])
        least, most = int(self.settings["min_patches"]), int(self.settings["max_patches"])
        return canvas(self.handed(size, asked), self.edge, least, most)

    def _exact(self, asked: Size) -> Size:
        """The size of the canvas whose tiles come nearest to `asked`, which the rule then chooses."""
        tall, wide = self.edge
        rows, cols = max(1, round(asked[0] / tall)), max(1, round(asked[1] / wide))
        while rows * cols > int(self.settings["max_patches"]):
            rows, cols = (rows - 1, cols) if rows >= cols else (rows, cols - 1)
        return rows * tall, cols * wide

    @property
    def _blows_up(self) -> bool:
        return self.sizes.kind == "longest" and self.droppable


def refuse(method: PixelMethod, family: Family, shown: Shown | None, videos: bool) -> None:
    """UnsupportedError where a family cannot follow the method inside vLLM. shown None: what is known
    before there is a processor.
    """
    sizes = _BY_ARCHITECTURE[family.architecture]
    if sizes.kind == "one" and method.acts == "size":
        raise UnsupportedError(
            f"{method.name}: vLLM's tower of {family.architecture} takes pictures of one size and "
            "makes the same number of tokens of each; take fewer tokens after it, for example with "
            "pool or uniform, or shrink pictures in foveate.Engine"
        )
    if method.acts == "frames" and not family.videos:
        raise UnsupportedError(
            f"{method.name} chooses frames of videos, which Foveate's plug-in does not serve for "
            f"{family.architecture}; drop it from the plan"
        )
    if method.acts == "tiles" and sizes.tiles is None:
        raise UnsupportedError(
            f"{method.name} is not available on {family.architecture}: its tower needs every part of "
            "a picture; take downscale where the family follows a picture's size, or a token method"
        )
    if shown is not None:
        refuse_here(method, family.architecture, shown, videos)
    elif videos and method.acts in ("size", "tiles"):
        raise UnsupportedError(
            f"{method.name} acts on pictures, and videos would be served whole beside it: switch "
            "them off with --limit-mm-per-prompt '{\"video\": 0}', or take frames or keyframes"
        )


def counted(method: PixelMethod, shown: Shown, size: Size, seed: int) -> PixelPlan:
    """What a method makes of a picture of which only the size is known; UnsupportedError for one whose
    count follows from more.
    """
    if method.acts == "frames":
        return PixelPlan()  # of videos; pictures beside them stay whole
    if method.counts != "image":
        raise UnsupportedError(
            f"{method.name} looks at the picture before it decides how many tokens it gets, so that a "
            "size alone does not tell; send the picture to the server, or count a plan with downscale"
        )
    blank = np.broadcast_to(np.zeros((1, 1, 3), dtype=np.uint8), (*size, 3))
    view = picture_view(0, blank, shown)
    (plan,) = plans_of(method, [view], shown, PlanRng(seed))
    return plan


def count_as_handed(info: Any) -> None:
    """Lets the counting object of a server's Idefics 3 processor, of that object alone, follow
    `do_resize=False`, which the count of transformers that it asks overlooks.
    """
    stock = info._get_image_feature_grid_size
    if hasattr(stock, _MARK):
        return

    def grid(*, image_width: int, image_height: int, processor: Any, mm_kwargs: Any) -> Any:
        images = settings_of(processor, info.ctx.get_merged_mm_kwargs(mm_kwargs))
        if images.get("do_resize", True) or not images["do_image_splitting"]:
            return stock(
                image_width=image_width,
                image_height=image_height,
                processor=processor,
                mm_kwargs=mm_kwargs,
            )
        rows, cols = cut((image_height, image_width), int(images["max_image_size"]["longest_edge"]))
        return (rows * cols + 1, rows, cols) if rows * cols > 1 else (1, 0, 0)

    setattr(grid, _MARK, True)
    info._get_image_feature_grid_size = grid


def settings_of(processor: Any, changes: Mapping[str, Any]) -> dict[str, Any]:
    """What the rules read of a processor of transformers, with a call's changes."""
    images = processor.image_processor
    found = {}
    for name in _FROM_PROCESSOR:
        for owner in (images, processor):
            value = getattr(owner, name, None)
            if value is not None:
                found[name] = _plain(value)
                break
    # A processor's own default stands before what its picture processor is set to. It is an attribute
    # in newer versions of transformers, and beside the class in older ones.
    kwargs = vars(sys.modules[type(processor).__module__]).get(f"{type(processor).__name__}Kwargs")
    older = getattr(kwargs, "_defaults", {}).get("images_kwargs", {})
    own = getattr(processor, "images_kwargs", None) or older
    if "crop_to_patches" in own:
        found["crop_to_patches"] = own["crop_to_patches"]
    return merged(found, changes)


def _plain(value: Any) -> Any:
    """A size as a mapping without what is not set; transformers has a class for it, or none."""
    if isinstance(value, Mapping) or hasattr(value, "shortest_edge"):
        return {k: v for k, v in dict(value).items() if v is not None}
    return value


__all__ = ["Shown", "count_as_handed", "counted", "refuse", "settings_of"]
