"""What training and test pictures look like: fonts, colours and backgrounds, disjoint between the
two.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from foveate.core.errors import InputError, MissingExtraError

from .words import SIDE

Floats = NDArray[np.float32]
RGB = tuple[int, int, int]

PILLOW_FONT = "pillow"
"""Name of the font inside Pillow: the test font, so that evaluation needs no font file."""

TRAIN_FONTS = (
    "DejaVuSans", "DejaVuSans-Bold", "DejaVuSans-Oblique", "DejaVuSansMono",
    "DejaVuSansMono-Bold", "DejaVuSerif", "STIXGeneralBol", "cmss10",
)  # fmt: skip


@dataclass(frozen=True)
class Look:
    """One side of the split: font names, anchor colours by name with their jitter, background
    names.
    """

    name: str
    fonts: tuple[str, ...]
    colours: dict[str, tuple[RGB, ...]]
    jitter: int
    grounds: tuple[str, ...]


_TRAIN_COLOURS: dict[str, tuple[RGB, ...]] = {
    "red": ((215, 40, 40), (180, 20, 30), (240, 60, 60)),
    "green": ((40, 160, 60), (20, 120, 40), (80, 190, 70)),
    "blue": ((40, 70, 215), (30, 50, 160), (70, 120, 240)),
    "yellow": ((225, 200, 30), (250, 230, 60), (200, 180, 20)),
    "orange": ((240, 130, 20), (220, 105, 10), (255, 150, 50)),
    "purple": ((140, 50, 170), (105, 30, 140), (160, 85, 200)),
    "black": ((25, 25, 25), (5, 5, 5), (50, 45, 48)),
    "pink": ((245, 130, 190), (250, 160, 200), (235, 105, 165)),
}
_TEST_COLOURS: dict[str, tuple[RGB, ...]] = {
    "red": ((197, 52, 24), (228, 25, 52)),
    "green": ((60, 142, 40), (35, 178, 85)),
    "blue": ((58, 90, 190), (20, 75, 238)),
    "yellow": ((238, 212, 52), (212, 192, 45)),
    "orange": ((228, 120, 38), (250, 138, 10)),
    "purple": ((122, 42, 152), (150, 68, 188)),
    "black": ((38, 32, 40), (15, 18, 22)),
    "pink": ((242, 145, 182), (240, 115, 185)),
}
TRAIN_LOOK = Look("train", TRAIN_FONTS, _TRAIN_COLOURS, 6, ("plain", "stripes", "clouds", "ramp"))
TEST_LOOK = Look("test", (PILLOW_FONT,), _TEST_COLOURS, 3, ("checks", "slant", "dots"))


@lru_cache(maxsize=512)
def font(name: str, size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """A font at a size in pixels. Training fonts are the files that matplotlib carries (extra
    "lab").
    """
    if name == PILLOW_FONT:
        return ImageFont.load_default(size)
    try:
        import matplotlib
    except ImportError as error:
        raise MissingExtraError("matplotlib", "lab", "drawing training pictures (fonts)") from error
    file = Path(matplotlib.get_data_path()) / "fonts" / "ttf" / f"{name}.ttf"
    if not file.is_file():
        raise InputError(
            f"font {name} is not at {file}; install a matplotlib wheel that carries it"
        )
    return ImageFont.truetype(str(file), size)


@lru_cache(maxsize=32768)
def glyph(name: str, size: int, char: str) -> tuple[Floats, int]:
    """Alpha of one character, (1.25 size, advance + 2), and its advance in pixels; row 0 is the
    ascender line.
    """
    face = font(name, size)
    advance = max(1, round(face.getlength(char)))
    tile = Image.new("L", (advance + 2, int(size * 1.25)))
    ImageDraw.Draw(tile).text((0, 0), char, fill=255, font=face)
    return np.asarray(tile, np.float32) / np.float32(255), advance


def text_width(name: str, size: int, text: str) -> int:
    """Width of a line of text in pixels."""
    return sum(glyph(name, size, char)[1] for char in text)


@lru_cache(maxsize=1024)
def shape_mask(shape: str, side: int) -> Floats:
    """Alpha of a shape, (side, side), drawn four times as large and averaged down."""
    n = side * 4
    tile = Image.new("L", (n, n))
    draw = ImageDraw.Draw(tile)
    if shape == "circle":
        draw.ellipse((0, 0, n - 1, n - 1), fill=255)
    elif shape == "square":
        draw.rectangle((n * 0.06, n * 0.06, n * 0.94, n * 0.94), fill=255)
    elif shape == "triangle":
        draw.polygon([(n / 2, 0), (n - 1, n - 1), (0, n - 1)], fill=255)
    elif shape == "cross":
        draw.rectangle((n * 0.34, 0, n * 0.66, n), fill=255)
        draw.rectangle((0, n * 0.34, n, n * 0.66), fill=255)
    elif shape == "ring":
        draw.ellipse((0, 0, n - 1, n - 1), fill=255)
        draw.ellipse((n * 0.26, n * 0.26, n * 0.74, n * 0.74), fill=0)
    else:  # star
        turn = np.arange(10) * np.pi / 5 - np.pi / 2
        reach = np.where(np.arange(10) % 2, 0.22, 0.52) * n
        xs, ys = n / 2 + reach * np.cos(turn), n * 0.53 + reach * np.sin(turn)
        draw.polygon(list(zip(xs.tolist(), ys.tolist(), strict=True)), fill=255)
    return np.asarray(tile.resize((side, side), Image.Resampling.BOX), np.float32) / np.float32(255)


_ROW, _COLUMN = (axis.astype(np.float32) for axis in np.mgrid[0:SIDE, 0:SIDE])


def _stripes(rng: np.random.Generator) -> Floats:
    axis = _ROW if rng.random() < 0.5 else _COLUMN
    return np.sin(axis * (2 * np.pi / rng.uniform(6, 24)) + rng.uniform(0, 6))


def _clouds(rng: np.random.Generator) -> Floats:
    cells = int(rng.integers(4, 14))
    coarse = Image.fromarray(rng.uniform(-1, 1, (cells, cells)).astype(np.float32))
    return np.asarray(coarse.resize((SIDE, SIDE), Image.Resampling.BILINEAR), np.float32) * 1.4


def _ramp(rng: np.random.Generator) -> Floats:
    a = rng.uniform(0, 2 * np.pi)
    return ((_ROW - SIDE / 2) * np.sin(a) + (_COLUMN - SIDE / 2) * np.cos(a)) * (2 / SIDE)


def _checks(rng: np.random.Generator) -> Floats:
    period = int(rng.integers(5, 15))
    return ((_ROW // period + _COLUMN // period) % 2) * 2 - 1


def _slant(rng: np.random.Generator) -> Floats:
    sign = 1 if rng.random() < 0.5 else -1
    return np.sin((_ROW + sign * _COLUMN) * (2 * np.pi / rng.uniform(9, 26)) + rng.uniform(0, 6))


def _dots(rng: np.random.Generator) -> Floats:
    period = int(rng.integers(7, 15))
    y, x = _ROW % period - period / 2, _COLUMN % period - period / 2
    return (np.hypot(y, x) < period * 0.28) * 2.0 - 1


GROUNDS: dict[str, Callable[[np.random.Generator], Floats]] = {
    "plain": lambda rng: np.zeros((SIDE, SIDE), np.float32),
    "stripes": _stripes,
    "clouds": _clouds,
    "ramp": _ramp,
    "checks": _checks,
    "slant": _slant,
    "dots": _dots,
}


def ground(rng: np.random.Generator, look: Look) -> Floats:
    """A light background with texture, (side, side, 3), grey levels 0 to 255."""
    name = look.grounds[int(rng.integers(len(look.grounds)))]
    base = rng.uniform(218, 250, 3)
    tint = rng.uniform(3, 10) * rng.uniform(0.6, 1.0, 3)
    field: Floats = (base + GROUNDS[name](rng)[..., None] * tint).astype(np.float32)
    return field
