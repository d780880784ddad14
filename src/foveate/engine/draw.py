"""Pictures of a choice: kept patches lit, dropped ones dimmed. Needs Pillow and numpy, no torch."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from foveate.core.errors import InputError, UnsupportedError
from foveate.core.views import Box
from foveate.engine.request import KeptSegment

Mask = NDArray[np.bool_]

SMALL, LARGE = 336, 1024  # longest side of a drawn picture in pixels
EDGE = np.array([255, 176, 0], np.float32)
NIGHT = np.array([16, 20, 34], np.float32)
_GAP = 12
PAPER = (250, 249, 246)


def field_of_view(image_processor: Any, size: tuple[int, int]) -> Box | None:
    """The part of a picture of `size` (width, height) that the encoder sees, None if it is all of
    it.

    Processors that scale the short side and cut out the centre (CLIP towers) never show the rest.
    """
    if not getattr(image_processor, "do_center_crop", False):
        return None
    crop = _lengths(getattr(image_processor, "crop_size", None))
    resize = getattr(image_processor, "size", None)
    if crop is None or not getattr(image_processor, "do_resize", True):
        return None
    width, height = size
    shortest = _entry(resize, "shortest_edge")
    if shortest is None:
        return None
    scale = shortest / min(width, height)
    seen_w, seen_h = min(width, crop[0] / scale), min(height, crop[1] / scale)
    left, top = (width - seen_w) / 2, (height - seen_h) / 2
    box = Box(round(left), round(top), round(left + seen_w), round(top + seen_h))
    return None if box == Box(0, 0, width, height) else box


def kept_picture(
    image: Image.Image, segments: Sequence[KeptSegment], field: Box | None = None
) -> Image.Image:
    """`image` with the patches that its `segments` keep lit, dropped ones dimmed, unseen parts
    hatched.

    Tiles are laid out over the picture; a thumbnail beside tiles becomes a panel of its own.
    UnsupportedError
    where a family's tokens have no place in the picture, InputError without segments.
    """
    if not segments:
        raise InputError("there are no visual tokens to draw")
    canvas = fit(image)
    tiles = [s for s in segments if s.kind == "tile"]
    rest = [s for s in segments if s.kind != "tile"]
    # Tiles are cut from the whole picture, whatever the processor's crop setting says.
    seen = None if tiles else _scaled(field, image.size, canvas.size)
    if not tiles:
        return _lit(canvas, _placed(rest[-1], seen), seen)
    if len(tiles) == 1:
        main = _placed(tiles[0], seen)
    else:
        rows, columns, extra = tile_layout(len(tiles), image.width / image.height, not rest)
        rest += tiles[len(tiles) - extra :] if extra else []
        main = np.block(
            [[_grid(tiles[r * columns + c])[0] for c in range(columns)] for r in range(rows)]
        )
    lit = _lit(canvas, main, seen)
    if not rest:
        return lit
    small = canvas.resize((max(1, canvas.width // 2), max(1, canvas.height // 2)))
    return beside([lit, _lit(small, _placed(rest[-1], None), None)])


def kept_frames(frames: Sequence[Image.Image], segments: Sequence[KeptSegment]) -> Image.Image:
    """A page of video frames in order, one for each temporal row of the grid: the middle of its time."""
    if not segments or not frames:
        raise InputError("there are no video frames to draw")
    masks = [mask for segment in segments for mask in _grid(segment)]
    places = (2 * np.arange(len(masks)) + 1) * len(frames) // (2 * len(masks))
    shown = []
    for at, mask in zip(places, masks, strict=True):
        frame = frames[int(at)].convert("RGB")
        shown.append(_lit(fit(frame, small=224, large=320), mask, None))
    width, height = shown[0].size
    columns = min(len(shown), max(1, round(math.sqrt(1.6 * len(shown) * height / width))))
    lines = [beside(shown[i : i + columns], 6) for i in range(0, len(shown), columns)]
    page = Image.new(
        "RGB", (max(x.width for x in lines), sum(x.height + 6 for x in lines) - 6), PAPER
    )
    top = 0
    for line in lines:
        page.paste(line, (0, top))
        top += line.height + 6
    return page


def tile_layout(count: int, aspect: float, may_end: bool) -> tuple[int, int, int]:
    """(rows, columns, extra) of `count` tiles in row order over a picture of width / height =
    aspect.

    The processor chose the layout nearest to the picture's shape, so the nearest is taken again.
    With
    `may_end` the last tile may be a thumbnail of the whole (extra = 1), which wins a tie.
    """
    best: tuple[float, int, int, int] | None = None
    for extra in (1, 0) if may_end and count > 2 else (0,):
        tiles = count - extra
        for rows in range(1, tiles + 1):
            if tiles % rows:
                continue
            columns = tiles // rows
            off = round(abs(math.log(columns / rows / aspect)), 9)
            if best is None or off < best[0]:
                best = (off, rows, columns, extra)
    if best is None:
        raise InputError("there are no tiles to lay out")
    return best[1:]


def fit(image: Image.Image, small: int = SMALL, large: int = LARGE) -> Image.Image:
    """RGB with its longest side between `small` and `large` pixels; small pictures keep hard
    pixels.
    """
    image = image.convert("RGB")
    longest = max(image.size)
    if longest < small:
        times = math.ceil(small / longest)
        size = (image.width * times, image.height * times)
        return image.resize(size, Image.Resampling.NEAREST)
    if longest > large:
        shrunk = image.copy()
        shrunk.thumbnail((large, large), Image.Resampling.LANCZOS)
        return shrunk
    return image


def beside(pictures: Sequence[Image.Image], gap: int = _GAP) -> Image.Image:
    """Pictures in one row, aligned at the top."""
    width = sum(p.width for p in pictures) + gap * (len(pictures) - 1)
    page = Image.new("RGB", (width, max(p.height for p in pictures)), PAPER)
    left = 0
    for picture in pictures:
        page.paste(picture, (left, 0))
        left += picture.width + gap
    return page


def _grid(segment: KeptSegment) -> Mask:
    """(t, h, w): which cells of a segment's grid are kept."""
    t, h, w = segment.grid
    if t * h * w != segment.tokens:
        raise UnsupportedError(
            f"{segment.tokens} tokens do not fill a grid of {t}x{h}x{w}: this family's tokens have no "
            "place in the picture"
        )
    mask = np.zeros(segment.tokens, bool)
    shown = segment.anchors if segment.deep is None else segment.deep
    mask[np.asarray(shown, np.int64)] = True
    return mask.reshape(t, h, w)


def _placed(segment: KeptSegment, seen: Box | None) -> Mask:
    """(h, w) of a still picture; UnsupportedError where the grid is only a list of tokens."""
    mask = _grid(segment)
    if mask.shape[0] == 1 and mask.shape[1] == 1 and mask.shape[2] > 8:
        raise UnsupportedError(
            "this family mixes its patches before the language model: its tokens have no place in "
            "the picture"
        )
    return np.asarray(mask.any(0))


def _lit(canvas: Image.Image, mask: Mask, seen: Box | None) -> Image.Image:
    """Compose: kept cells as they are, dropped ones grey and dark, a border between them."""
    pixels = np.asarray(canvas, np.float32)
    height, width = pixels.shape[:2]
    box = seen or Box(0, 0, width, height)
    rows, columns = mask.shape
    row = _cells(height, box.top, box.bottom, rows)
    column = _cells(width, box.left, box.right, columns)
    inside = (row >= 0)[:, None] & (column >= 0)[None]
    lit = inside & mask[np.maximum(row, 0)][:, np.maximum(column, 0)]
    grey = pixels @ np.array([0.299, 0.587, 0.114], np.float32)
    dim = NIGHT + 0.34 * grey[..., None]
    out = np.where(lit[..., None], pixels, dim)
    y, x = np.mgrid[:height, :width]
    stripes = ((x + y) // 6) % 2 == 0
    unseen = NIGHT * np.where(stripes, 2.2, 1.6)[..., None] + 0.08 * grey[..., None]
    out = np.where(inside[..., None], out, unseen)
    cell = min((box.bottom - box.top) / rows, (box.right - box.left) / columns)
    if cell >= 8:
        lines = _borders(row, column) & inside
        shade = np.where(lit[..., None], 0.0, 255.0)
        out = np.where(lines[..., None], out * 0.88 + shade * 0.12, out)
    if not mask.all():
        out = np.where(_outline(lit, 2 if cell >= 12 else 1)[..., None], EDGE, out)
    return Image.fromarray(np.clip(np.rint(out), 0, 255).astype(np.uint8))


def _cells(length: int, start: int, stop: int, count: int) -> NDArray[np.int64]:
    """(length,): the cell of each pixel row or column, -1 outside."""
    at = np.arange(length, dtype=np.int64)
    cell = (at - start) * count // max(1, stop - start)
    return np.where((at >= start) & (at < stop), cell, -1)


def _borders(row: NDArray[np.int64], column: NDArray[np.int64]) -> Mask:
    """Pixels at which a cell begins."""
    new_row = np.concatenate([[False], row[1:] != row[:-1]])
    new_column = np.concatenate([[False], column[1:] != column[:-1]])
    return np.asarray(new_row[:, None] | new_column[None])


def _outline(lit: Mask, thick: int) -> Mask:
    """Lit pixels within `thick` of a pixel that is not lit; the picture's own border does not
    count.
    """
    near = np.zeros_like(lit)
    for step in range(1, thick + 1):
        for axis in (0, 1):
            size = lit.shape[axis]
            ahead, behind = [slice(None)] * 2, [slice(None)] * 2
            ahead[axis], behind[axis] = slice(step, size), slice(0, size - step)
            a, b = tuple(ahead), tuple(behind)
            near[a] |= lit[a] & ~lit[b]
            near[b] |= lit[b] & ~lit[a]
    return near


def _scaled(box: Box | None, old: tuple[int, int], new: tuple[int, int]) -> Box | None:
    if box is None:
        return None
    x, y = new[0] / old[0], new[1] / old[1]
    return Box(round(box.left * x), round(box.top * y), round(box.right * x), round(box.bottom * y))


def _entry(sizes: Any, name: str) -> int | None:
    """A length of a processor's size setting, which is a mapping or an object of transformers."""
    if sizes is None:
        return None
    value = sizes.get(name) if hasattr(sizes, "get") else getattr(sizes, name, None)
    return int(value) if value is not None else None


def _lengths(sizes: Any) -> tuple[int, int] | None:
    width, height = _entry(sizes, "width"), _entry(sizes, "height")
    return (width, height) if width is not None and height is not None else None
