"""Line charts: how high is the point of a colour, read against an axis with labels at every five."""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageDraw

from ..canvas import Ask, Canvas, Layer, Scene
from ..looks import Look, shape_mask
from ..words import COLOURS, SIDE
from .bars import TOPS, UNITS_PX, VALUE_OFFSET, draw_axis

FAMILIES = ("point",)
MARKERS_PX = ((11, 13), (10, 12), (9, 10))
"""Side of a point's marker in pixels, easy to hard."""


def draw(rng: np.random.Generator, look: Look, level: int) -> Scene:
    """A chart of three to five points (easy: three or four) on a thin line, each in a colour of its
    own.
    """
    canvas = Canvas(rng, look)
    unit, top = UNITS_PX[level], TOPS[level]
    count = int(rng.integers(3, 5 if level == 0 else 6))
    colours = [COLOURS[int(i)] for i in rng.permutation(len(COLOURS))[:count]]
    side = int(rng.integers(MARKERS_PX[level][0], MARKERS_PX[level][1] + 1))
    step = int(rng.integers(17, (SIDE - 18 - side) // (count - 1) + 1))
    base = SIDE - int(rng.integers(6, SIDE - top * unit - 6))
    left = 17 + int(rng.integers(0, max(1, SIDE - 18 - side - (count - 1) * step)))
    ink = canvas.ink()
    axis = draw_axis(canvas, base, unit, top, ink)
    values = [int(v) for v in rng.integers(1, top + 1, count)]
    centres = [(left + i * step + side // 2, base - v * unit) for i, v in enumerate(values)]
    tile = Image.new("L", (SIDE, SIDE))
    ImageDraw.Draw(tile).line(centres, fill=170, width=1)
    canvas.blend(np.asarray(tile, np.float32) / np.float32(255), 0, 0, ink)
    canvas.pixels[base, 14 : SIDE - 2] = 60
    asks: list[Ask] = []
    for colour, value, (x, y) in zip(colours, values, centres, strict=True):
        corner = (x - side // 2, y - side // 2)
        box = (*corner, corner[0] + side, min(SIDE, corner[1] + side))
        canvas.blend(shape_mask("circle", side), *corner, canvas.paint(colour))
        canvas.mark(Layer.COLOUR, box, COLOURS.index(colour) + 1)
        canvas.mark(Layer.WORD, box, VALUE_OFFSET + value)
        asks.append(Ask("point", f"How high is the point in {colour}?", str(value), (box, *axis)))
    return Scene("line", canvas, asks)
