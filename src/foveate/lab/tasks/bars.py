"""Bar charts: how high is the bar of a colour, read against an axis with labels at every five."""

from __future__ import annotations

import numpy as np

from ..canvas import Ask, Box, Canvas, Layer, Scene
from ..looks import Floats, Look, text_width
from ..words import COLOURS, KEYS, MAX_BAR, NOTES, SIDE, SIGNS

FAMILIES = ("bar",)
UNITS_PX = (10, 8, 4)
"""Height of one unit in pixels, easy to hard."""

TOPS = (9, 9, 19)
"""Largest value, easy to hard."""

VALUE_OFFSET = len(KEYS) + len(SIGNS)
"""Bar values follow the written words in the word plane: value v is stored as VALUE_OFFSET + v."""


def note(word: str) -> int:
    """Label of a note in the word plane, behind the bar values."""
    return VALUE_OFFSET + MAX_BAR + NOTES.index(word) + 1


def draw(rng: np.random.Generator, look: Look, level: int) -> Scene:
    """A chart of three to five bars (easy: three or four) with an axis on the left."""
    canvas = Canvas(rng, look)
    unit, top = UNITS_PX[level], TOPS[level]
    count = int(rng.integers(3, 5 if level == 0 else 6))
    colours = [COLOURS[int(i)] for i in rng.permutation(len(COLOURS))[:count]]
    width = int(rng.integers(13, 17) if level == 0 else rng.integers(10, 13))
    gap = int(rng.integers(4, 8))
    base = SIDE - int(rng.integers(5, SIDE - top * unit - 6))
    left = 16 + int(rng.integers(0, max(1, SIDE - 18 - count * (width + gap))))
    ink = canvas.ink()
    axis = draw_axis(canvas, base, unit, top, ink)
    asks: list[Ask] = []
    for colour in colours:
        value = int(rng.integers(1, top + 1))
        box = (left, base - value * unit, left + width, base)
        canvas.pixels[box[1] : box[3], box[0] : box[2]] = canvas.paint(colour)
        canvas.mark(Layer.COLOUR, box, COLOURS.index(colour) + 1)
        canvas.mark(Layer.WORD, (box[0], box[1], box[2], box[1] + 8), VALUE_OFFSET + value)
        asks.append(Ask("bar", f"How high is the bar in {colour}?", str(value), (box, *axis)))
        left += width + gap
    canvas.pixels[base, 14 : SIDE - 2] = 60
    return Scene("bars", canvas, asks)


def draw_axis(canvas: Canvas, base: int, unit: int, top: int, ink: Floats) -> list[Box]:
    """Grid lines and labels at every five; the boxes of the labels are evidence for each bar."""
    font = canvas.look.fonts[int(canvas.rng.integers(len(canvas.look.fonts)))]
    found: list[Box] = []
    for value in range(0, top + 1, 5):
        y = base - value * unit
        canvas.pixels[y, 14 : SIDE - 2] -= 55
        if value:
            text = str(value)
            x = max(0, 13 - text_width(font, 11, text))
            found.append(canvas.write(text, x, y - 7, font, 11, ink, slots=False))
    np.clip(canvas.pixels, 0, 255, out=canvas.pixels)
    return found
