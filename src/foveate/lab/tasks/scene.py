"""A scene of shapes with an X in it: what is nearest to the X, the box of a thing, and questions
with a negation.
"""

from __future__ import annotations

import numpy as np

from ..canvas import Ask, Box, Canvas, Layer, Scene, Thing, cells, pick
from ..looks import Look, text_width
from ..words import COLOURS, MAX_OBJECTS, SHAPES
from . import bars, coarse
from .place import ask_where

PLACE_FAMILIES = ("nearest", "ground")
PROBE_FAMILIES = ("negation",)
NEAREST_MARGIN = 8
"""The second nearest thing must be farther from the X than the nearest by this many pixels."""

MARK_PX = (15, 22)
"""Font size of the X in pixels."""


def draw(rng: np.random.Generator, look: Look, level: int) -> Scene:
    """An X and two to six shapes; all levels look the same."""
    canvas = Canvas(rng, look)
    font, size = pick(rng, look.fonts), int(rng.integers(MARK_PX[0], MARK_PX[1] + 1))
    spot = canvas.room(text_width(font, size, "X") + 2, int(size * 1.25))
    assert spot is not None  # the canvas is empty
    mark = canvas.write("X", spot[0], spot[1], font, size, canvas.ink(), slots=False)
    things = coarse.scatter(canvas, int(rng.integers(2, MAX_OBJECTS + 1)))
    asks = _nearest(canvas, mark, things) + _ground(rng, things) + _negation(rng, things)
    asks += coarse.ask_about(rng, things) + ask_where(rng, things)
    return Scene("scene", canvas, asks, things, ["X"])


def _nearest(canvas: Canvas, mark: Box, things: list[Thing]) -> list[Ask]:
    """Colour and shape of the thing whose centre is nearest to the middle of the X."""
    x, y = (mark[0] + mark[2]) / 2, (mark[1] + mark[3]) / 2
    far = [float(np.hypot(thing.centre[0] - x, thing.centre[1] - y)) for thing in things]
    order = np.argsort(far)
    if len(things) < 2 or far[order[1]] - far[order[0]] < NEAREST_MARGIN:
        return []
    one = things[int(order[0])]
    canvas.mark(Layer.WORD, one.box, bars.note("nearest"))
    where = (one.box, mark)
    return [
        Ask("nearest", "What colour is nearest to X?", one.colour, where),
        Ask("nearest", "What shape is nearest to X?", one.shape, where),
    ]


def _ground(rng: np.random.Generator, things: list[Thing]) -> list[Ask]:
    """The box of up to two things that no other thing equals."""
    pairs = [(thing.colour, thing.shape) for thing in things]
    single = [thing for thing, pair in zip(things, pairs, strict=True) if pairs.count(pair) == 1]
    asks: list[Ask] = []
    for i in rng.permutation(len(single))[:2]:
        one = single[int(i)]
        answer = "".join(f"{edge:02d}" for edge in cells(one.box))
        question = f"Where is the box of the {one.colour} {one.shape}?"
        asks.append(Ask("ground", question, answer, (one.box,), metric="iou"))
    return asks


def _negation(rng: np.random.Generator, things: list[Thing]) -> list[Ask]:
    """Is there no …, with near misses; and which of two colours (or shapes) is absent."""
    pairs = {(thing.shape, thing.colour) for thing in things}
    one = pick(rng, things)
    shape, colour = one.shape, one.colour
    absent = bool(rng.random() < 0.5)
    if absent:
        misses = [(other, colour) for other in SHAPES] + [(shape, other) for other in COLOURS]
        shape, colour = pick(rng, [miss for miss in misses if miss not in pairs])
    hits = [thing for thing in things if (thing.shape, thing.colour) == (shape, colour)]
    question = f"Is there no {colour} {shape}?"
    asks = [Ask("negation", question, "yes" if absent else "no", coarse.boxes(hits or things))]
    shapes, colours = {thing.shape for thing in things}, {thing.colour for thing in things}
    there, values = (shapes, SHAPES) if rng.random() < 0.5 else (colours, COLOURS)
    missing = [value for value in values if value not in there]
    if missing:
        known, answer = pick(rng, sorted(there)), pick(rng, missing)
        first, second = (known, answer) if rng.random() < 0.5 else (answer, known)
        question = f"Which is not there {first} or {second}?"
        asks.append(Ask("negation", question, answer, coarse.boxes(things)))
    return asks
