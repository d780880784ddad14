"""Frames of a small film in which things appear one after the other."""

from __future__ import annotations

import numpy as np

from ..canvas import Ask, Canvas, Scene, Thing
from ..looks import Look
from ..words import COLOURS, ORDINALS, SHAPES, quarter

FAMILIES = ("when", "appeared")
FRAMES = (4, 16, 64)
"""Frames of a film, by level."""

SIZES_PX = (18, 28)
"""Side of a thing in pixels."""


def draw(rng: np.random.Generator, look: Look, level: int, count: int = 0) -> Scene:
    """`count` frames (0: by level) before one background. In each quarter one thing appears; it
    stays to the end of that quarter or of the next. Colours and shapes occur once.
    """
    count = count or FRAMES[level]
    wave = min(len(ORDINALS), count)
    edges = [i * count // wave for i in range(wave + 1)]
    plan = Canvas(rng, look)
    colours, shapes = rng.permutation(len(COLOURS)), rng.permutation(len(SHAPES))
    shown: list[tuple[Thing, int, int]] = []
    shades = []
    for i in range(wave):
        side = int(rng.integers(SIZES_PX[0], SIZES_PX[1] + 1))
        box = plan.room(side, side) or plan.room(SIZES_PX[0], SIZES_PX[0])
        if box is None:  # rare: three things in the middle of every side
            return draw(rng, look, level, count)
        start = int(rng.integers(edges[i], edges[i + 1]))
        end = edges[min(wave, i + int(rng.integers(1, 3)))]
        shown.append((Thing(SHAPES[shapes[i]], COLOURS[colours[i]], box), start, end))
        shades.append(plan.paint(shown[-1][0].colour))
    ground = plan.pixels.copy()
    parts: list[Scene] = []
    for frame in range(count):
        canvas = Canvas(rng, look, ground.copy())
        things: list[Thing] = []
        for (thing, start, end), rgb in zip(shown, shades, strict=True):
            if start <= frame < end:
                things.append(canvas.stand(thing.shape, thing.colour, thing.box, rgb))
        parts.append(Scene("shapes", canvas, [], things))
    order = [(thing, start) for thing, start, _ in shown]
    return Scene("frames", parts[0].canvas, _asks(order, count), [t for t, _ in order], parts=parts)


def _asks(order: list[tuple[Thing, int]], count: int) -> list[Ask]:
    """Everything that may be asked of things in the order in which they appear."""
    asks: list[Ask] = []
    for thing, start in order:
        question = f"When did {thing.colour} appear?"
        asks.append(Ask("when", question, quarter(start, count), (thing.box,), (start,)))
    for what in ("colour", "shape"):
        for (one, at), word in ((order[0], "first"), (order[-1], "last")):
            question = f"What {what} appeared {word}?"
            asks.append(Ask("appeared", question, getattr(one, what), (one.box,), (at,)))
        for (one, early), (two, late) in zip(order, order[1:], strict=False):
            question = f"What {what} appeared after {one.colour}?"
            where = ((one.box, two.box), (early, late))
            asks.append(Ask("appeared", question, getattr(two, what), *where))
    return asks
