"""Questions about where things are: which quadrant, is one left of the other. Wrong positions show
here first.
"""

from __future__ import annotations

import numpy as np

from ..canvas import Ask, Scene, Thing, pick
from ..looks import Look
from ..words import SIDE
from . import coarse

FAMILIES = ("quadrant", "leftof")
MIDDLE_MARGIN = 5
"""A thing whose centre is nearer than this (pixels) to a middle line has no quadrant."""

SIDE_MARGIN = 8
"""Two things must differ by at least this many pixels to be left or right of each other."""


def ask_where(rng: np.random.Generator, things: list[Thing]) -> list[Ask]:
    """One or two questions of each place family that has an unambiguous answer here."""
    asks: list[Ask] = []
    single = coarse.lone(things, "colour")
    clear = [
        thing for thing in single if min(abs(c - SIDE / 2) for c in thing.centre) >= MIDDLE_MARGIN
    ]
    if clear:
        one = pick(rng, clear)
        x, y = one.centre
        answer = ("top" if y < SIDE / 2 else "bottom") + (" left" if x < SIDE / 2 else " right")
        asks.append(Ask("quadrant", f"Where is {one.colour}?", answer, (one.box,)))
    if len(single) > 1:
        first, second = (single[int(i)] for i in rng.permutation(len(single))[:2])
        gap = second.centre[0] - first.centre[0]
        if abs(gap) >= SIDE_MARGIN:
            question = f"Is {first.colour} left of {second.colour}?"
            asks.append(
                Ask("leftof", question, "yes" if gap > 0 else "no", (first.box, second.box))
            )
    return asks


def draw(rng: np.random.Generator, look: Look, level: int) -> Scene:
    """The same scenes as the coarse families."""
    return coarse.draw(rng, look, level)
