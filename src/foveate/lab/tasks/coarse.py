"""Coarse questions about a scene of shapes: what is it, which colour, how many, is there a …"""

from __future__ import annotations

import numpy as np

from ..canvas import Ask, Box, Canvas, Scene, Thing, pick
from ..looks import Look
from ..words import COLOURS, MAX_OBJECTS, SHAPES

FAMILIES = ("shape", "colour", "count", "exists")


def boxes(things: list[Thing]) -> tuple[Box, ...]:
    """Evidence boxes of some things."""
    return tuple(thing.box for thing in things)


def scatter(canvas: Canvas, count: int, low: int = 20, high: int = 36) -> list[Thing]:
    """Up to `count` shapes of `low` to `high` pixels at free places; a quarter share a property
    with the one before.
    """
    rng = canvas.rng
    if count > 3:
        high = min(high, 28)
    things: list[Thing] = []
    for _ in range(count):
        side = int(rng.integers(low, high + 1))
        box = canvas.room(side, side) or canvas.room(low, low)
        if box is None:
            continue
        shape, colour = pick(rng, SHAPES), pick(rng, COLOURS)
        if things and rng.random() < 0.25:
            if rng.random() < 0.5:
                shape = things[-1].shape
            else:
                colour = things[-1].colour
        things.append(canvas.stand(shape, colour, box))
    return things


def lone(things: list[Thing], what: str) -> list[Thing]:
    """Things whose colour (or shape) no other thing has."""
    values = [getattr(thing, what) for thing in things]
    return [thing for thing, value in zip(things, values, strict=True) if values.count(value) == 1]


def ask_about(rng: np.random.Generator, things: list[Thing]) -> list[Ask]:
    """One or two questions of each coarse family that has an unambiguous answer here."""
    asks: list[Ask] = []
    if single := lone(things, "colour"):
        one = pick(rng, single)
        asks.append(Ask("shape", f"What shape is {one.colour}?", one.shape, (one.box,)))
    if single := lone(things, "shape"):
        one = pick(rng, single)
        asks.append(Ask("colour", f"What colour is the {one.shape}?", one.colour, (one.box,)))
    asks.append(Ask("count", "How many objects?", str(len(things)), boxes(things)))
    asks.append(_count_some(rng, things))
    asks.append(_exists(rng, things, rng.random() < 0.5))
    return asks


def _count_some(rng: np.random.Generator, things: list[Thing]) -> Ask:
    near = pick(rng, things)
    if rng.random() < 0.5:
        colour = near.colour if rng.random() < 0.8 else pick(rng, COLOURS)
        hits = [thing for thing in things if thing.colour == colour]
        question = f"How many are {colour}?"
    else:
        shape = near.shape if rng.random() < 0.8 else pick(rng, SHAPES)
        hits = [thing for thing in things if thing.shape == shape]
        question = f"How many of shape {shape}?"
    return Ask("count", question, str(len(hits)), boxes(hits or things))


def _exists(rng: np.random.Generator, things: list[Thing], present: bool) -> Ask:
    """Present, or a near miss: one property of a thing that is there was changed."""
    pairs = {(thing.shape, thing.colour) for thing in things}
    one = pick(rng, things)
    shape, colour = one.shape, one.colour
    if not present:
        misses = [(other, colour) for other in SHAPES] + [(shape, other) for other in COLOURS]
        shape, colour = pick(rng, [miss for miss in misses if miss not in pairs])
    hits = [thing for thing in things if (thing.shape, thing.colour) == (shape, colour)]
    answer = "yes" if present else "no"
    return Ask("exists", f"Is there a {colour} {shape}?", answer, boxes(hits or things))


def draw(rng: np.random.Generator, look: Look, level: int) -> Scene:
    """A scene of one to six shapes; all levels look the same."""
    from .place import ask_where

    canvas = Canvas(rng, look)
    things = scatter(canvas, int(rng.integers(1, MAX_OBJECTS + 1)))
    asks = ask_about(rng, things) + ask_where(rng, things)
    return Scene("shapes", canvas, asks, things)
