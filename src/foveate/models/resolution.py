"""What a family's image processor makes of a picture's size: its tokens and tiles, and how to ask
for less.

Five kinds: towers that follow the picture (the tokens come from the processor's own rule, or from
running it on an empty picture once), canvases of tiles chosen by aspect ratio (InternVL, Aya,
Cohere), pictures blown up to one edge and split (Idefics 3, SmolVLM), fixed towers whose position
embeddings can be interpolated (LLaVA-1.5), and fixed towers where nothing can be asked for.
"""

from __future__ import annotations

import inspect
import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

from PIL import Image

from foveate.core.errors import UnsupportedError
from foveate.core.look import Size, Tiling, tiled
from foveate.models.adapter import AutoAdapter
from foveate.models.video_preprocess import qwen2_size

_PROBES = (56, 224, 896)
_LARGEST_EDGE = 4096  # Idefics 3 never makes a picture larger than this


@dataclass(frozen=True)
class Handed:
    """How a batch goes to the processor: a size for each picture (None = as it is), settings for
    the call, and inputs that the model must get beside the processor's.
    """

    sizes: list[Size | None]
    images_kwargs: dict[str, Any] = field(default_factory=dict)
    inputs: dict[str, Any] = field(default_factory=dict)


class Resolution:
    """A family that brings every picture to one size. Sizes are (height, width)."""

    resizes: ClassVar[bool] = False  # the number of tokens follows the size that is asked for
    droppable: ClassVar[bool] = False  # tiles can be left out
    bounded: ClassVar[bool] = False  # `seen` knows the processor's least and largest size

    def __init__(self, adapter: AutoAdapter, processor: Any) -> None:
        self.adapter, self.processor = adapter, processor
        self.images = processor.image_processor
        self._counted: dict[tuple[Size, int], int] = {}

    def seen(self, size: Size) -> Size:
        """The size at which the tower sees a picture of this size."""
        return size

    def tokens(self, size: Size, asked: Size | None = None, company: int = 1) -> int:
        """Placeholders of a picture of `size`, `asked` for at another; `company` pictures a prompt."""
        return self.counted(asked or size, company)

    def tiling(self, size: Size, asked: Size | None = None) -> Tiling | None:
        """Encoder passes of a picture in order, None where none of them can be left out."""
        return None

    def handed(self, sizes: Sequence[Size], asked: Sequence[Size | None]) -> Handed:
        """How to hand over a batch in which at least one picture was asked for at another size."""
        return Handed(list(asked))

    @property
    def tile_tokens(self) -> int:
        """Visual tokens of one tile; UnsupportedError where there are none to leave out."""
        raise UnsupportedError(f"{self.adapter.model_type} has no tiles that can be left out")

    def option(self, name: str) -> Any:
        """A setting of the image processor, as the family's processor calls it."""
        own = getattr(self.processor, "images_kwargs", None) or {}
        return own[name] if name in own else getattr(self.images, name, None)

    def counted(self, size: Size, company: int = 1) -> int:
        """Placeholders of a picture by running the processor on an empty one, once."""
        if (size, company) not in self._counted:
            blank = Image.new("RGB", (size[1], size[0]))
            text = [self.processor.image_token * company]
            made = self.processor(text=text, images=[[blank] * company], return_tensors="pt")
            token = self.adapter.token_id("image")
            self._counted[size, company] = int((made["input_ids"] == token).sum()) // company
        return self._counted[size, company]


class Following(Resolution):
    """A tower that takes pictures of any size, within its processor's bounds."""

    resizes = True
    bounded = True

    @property
    def factor(self) -> int | None:
        """Edge in pixels of the square that becomes one token, for packed towers."""
        names = ("patch_size", "merge_size", "get_number_of_image_patches")
        if not all(hasattr(self.images, n) for n in names):
            return None
        return int(self.images.patch_size) * int(self.images.merge_size)

    def seen(self, size: Size) -> Size:
        low, high = edge(self.images.size, "shortest_edge"), edge(self.images.size, "longest_edge")
        if self.factor is None or low is None or high is None:
            return size
        tall, wide = qwen2_size(*size, self.factor, low, high)
        fits = (tall // self.factor) * (wide // self.factor) == self.tokens(size)
        return (tall, wide) if fits else size

    def tokens(self, size: Size, asked: Size | None = None, company: int = 1) -> int:
        if self.factor is None:
            return super().tokens(size, asked, company)
        patches = self.images.get_number_of_image_patches(*(asked or size), {})
        return int(patches) // int(self.images.merge_size) ** 2


class _Tiled(Resolution):
    """Base of the families whose pictures are cut into tiles of one size, the whole picture last."""

    resizes = True
    droppable = True

    @property
    def edge(self) -> Size:
        raise NotImplementedError(f"{type(self).__name__} must define this")

    def grid(self, size: Size, asked: Size | None = None) -> Size:
        """(rows, columns) of tiles; (1, 1) is the picture alone."""
        raise NotImplementedError(f"{type(self).__name__} must define this")

    def seen(self, size: Size) -> Size:
        rows, cols = self.grid(size)
        return rows * self.edge[0], cols * self.edge[1]

    def tiling(self, size: Size, asked: Size | None = None) -> Tiling:
        rows, cols = self.grid(size, asked)
        return tiled(size, rows, cols)

    @property
    def tile_tokens(self) -> int:
        return self.counted(self.edge) // len(self.tiling(self.edge)[0])

    def tokens(self, size: Size, asked: Size | None = None, company: int = 1) -> int:
        return len(self.tiling(size, asked)[0]) * self.tile_tokens


class Canvas(_Tiled):
    """Tiles on the canvas nearest in aspect ratio; a smaller picture gets a smaller canvas."""

    @property
    def edge(self) -> Size:
        return int(edge(self.images.size, "height") or 0), int(edge(self.images.size, "width") or 0)

    def grid(self, size: Size, asked: Size | None = None) -> Size:
        low, high = int(self.option("min_patches") or 1), int(self.option("max_patches"))
        choose = sys.modules[type(self.images).__module__].get_optimal_tiled_canvas
        cols, rows = choose(self._exact(asked, high) if asked else size, self.edge, low, high)
        return int(rows), int(cols)

    def _exact(self, asked: Size, most: int) -> Size:
        """The size of the canvas whose tiles come nearest to `asked`, which the rule then chooses."""
        tall, wide = self.edge
        rows, cols = max(1, round(asked[0] / tall)), max(1, round(asked[1] / wide))
        while rows * cols > most:
            rows, cols = (rows - 1, cols) if rows >= cols else (rows, cols - 1)
        return rows * tall, cols * wide

    def handed(self, sizes: Sequence[Size], asked: Sequence[Size | None]) -> Handed:
        most = int(self.option("max_patches"))
        return Handed([self._exact(a, most) if a else None for a in asked])


class Split(_Tiled):
    """Every picture is brought to one longest edge, whatever its size, and split.

    A smaller one is made by doing that step ourselves, at another edge, and telling the processor
    to leave it out.
    """

    @property
    def edge(self) -> Size:
        side = int(edge(self.option("max_image_size"), "longest_edge") or 0)
        return side, side

    def grid(self, size: Size, asked: Size | None = None) -> Size:
        tall, wide = asked or self._blown_up(size)
        side = self.edge[0]
        # The shorter side follows the longer one after that was rounded up to whole tiles.
        if wide >= tall:
            cols = -(-wide // side)
            return -(-max(1, int(cols * side / (wide / tall))) // side), cols
        rows = -(-tall // side)
        return rows, -(-max(1, int(rows * side * (wide / tall))) // side)

    def _blown_up(self, size: Size) -> Size:
        longest = int(edge(self.images.size, "longest_edge") or max(size))
        tall, wide = size
        ratio = wide / tall
        if wide >= tall:
            tall, wide = int(longest / ratio), longest
            tall += tall % 2
        else:
            tall, wide = longest, int(longest * ratio)
            wide += wide % 2
        tall, wide = max(tall, 1), max(wide, 1)
        if max(tall, wide) > _LARGEST_EDGE:
            ratio = wide / tall
            if wide >= tall:
                tall, wide = int(_LARGEST_EDGE / ratio), _LARGEST_EDGE
            else:
                tall, wide = _LARGEST_EDGE, int(_LARGEST_EDGE * ratio)
        return max(tall, 1), max(wide, 1)

    def handed(self, sizes: Sequence[Size], asked: Sequence[Size | None]) -> Handed:
        # Pictures that stay as they are in a mixed batch take the same step at its usual edge.
        sized = [a or self._blown_up(s) for s, a in zip(sizes, asked, strict=True)]
        return Handed(list(sized), {"do_resize": False})


class Interpolated(Resolution):
    """A tower of one size that can interpolate its positions: one smaller square a batch."""

    resizes = True

    @property
    def patch(self) -> int:
        return int(self.adapter.config.vision_config.patch_size)

    @property
    def side(self) -> int:
        size = self.images.crop_size if self._crops else self.images.size
        return int(edge(size, "height") or 0)

    @property
    def _crops(self) -> bool:
        return bool(getattr(self.images, "do_center_crop", False))

    def seen(self, size: Size) -> Size:
        return self.side, self.side

    def _square(self, asked: Size | None) -> int:
        if asked is None:
            return self.side
        return min(self.side, max(self.patch, max(asked) // self.patch * self.patch))

    def tokens(self, size: Size, asked: Size | None = None, company: int = 1) -> int:
        return (self._square(asked) // self.patch) ** 2

    def handed(self, sizes: Sequence[Size], asked: Sequence[Size | None]) -> Handed:
        squares = sorted({self._square(a) for a in asked})
        if len(squares) > 1:
            raise UnsupportedError(
                f"the tower of {self.adapter.model_type} takes one size a batch; this plan asks for "
                f"sides of {squares} pixels: use batch_size=1 and one picture a request, or a plan "
                "that shrinks all pictures alike, such as downscale"
            )
        side = squares[0]
        if side == self.side:
            return Handed([None] * len(sizes))
        box = {"height": side, "width": side}
        shortest = edge(self.images.size, "shortest_edge")
        settings: dict[str, Any] = {"size": {"shortest_edge": side} if shortest else box}
        if self._crops:
            settings["crop_size"] = box
        return Handed([None] * len(sizes), settings, {"interpolate_pos_encoding": True})


def resolution_of(adapter: AutoAdapter, processor: Any) -> Resolution:
    """The rule of a model and its processor, kept on the adapter with what it has counted."""
    known: Resolution | None = vars(adapter).get("_resolution")
    if known is None or known.processor is not processor:
        known = _resolution(adapter, processor)
        vars(adapter)["_resolution"] = known
    return known


def _resolution(adapter: AutoAdapter, processor: Any) -> Resolution:
    images = processor.image_processor
    plain = Resolution(adapter, processor)
    if hasattr(images, "crop_to_patches"):
        tiled = adapter.model_type in ("internvl", "aya_vision", "cohere2_vision")
        cuts = plain.option("crop_to_patches") and int(plain.option("max_patches")) > 1
        return Canvas(adapter, processor) if tiled and cuts else plain
    if adapter.model_type in ("idefics3", "smolvlm"):
        return Split(adapter, processor) if plain.option("do_image_splitting") else plain
    following = Following(adapter, processor)
    if following.factor is not None:
        return following
    takes = inspect.signature(type(adapter.vision).forward).parameters
    if adapter.model_type in ("llava", "vipllava") and "interpolate_pos_encoding" in takes:
        return Interpolated(adapter, processor)
    found = set()
    for side in _PROBES:
        try:
            found.add(plain.counted((side, side)))
        except ValueError:  # below or above what this processor takes
            continue
    return following if len(found) > 1 else plain


def edge(size: Any, name: str) -> int | None:
    """An entry of a processor's size, which is a dict or an object; None where it is not set."""
    value = size.get(name) if isinstance(size, dict) else getattr(size, name, None)
    return None if value is None else math.floor(value)
