"""Albums: questions about two to sixteen pictures."""

from __future__ import annotations

import numpy as np

from ..canvas import Ask, Box, Canvas, Layer, Scene, Thing, pick
from ..looks import Floats, Look, text_width
from ..words import CODE_CHARS, COLOURS, ORDINALS, SHAPES, SIDE, WORDS
from . import coarse, form

FAMILIES = ("which", "changed", "sum", "needle")
NEEDLE_PICTURES = (4, 8, 16)
"""Pictures among which one holds the text, by level."""

MOVED_PX = 16
"""A thing that changed its place moved at least this far, along one axis."""

CHANGES = ("colour", "shape", "place", "nothing")


def _scene(rng: np.random.Generator, look: Look, low: int, high: int) -> Scene:
    """One picture with `low` to `high` shapes."""
    canvas = Canvas(rng, look)
    things = coarse.scatter(canvas, int(rng.integers(low, high + 1)))
    return Scene("shapes", canvas, [], things)


def _album(parts: list[Scene], asks: list[Ask]) -> Scene:
    things = [thing for part in parts for thing in part.things]
    return Scene("album", parts[0].canvas, asks + _which(parts), things, parts=parts)


def _which(parts: list[Scene]) -> list[Ask]:
    """In which picture a thing is, for every pair of colour and shape that only one picture has."""
    if len(parts) > len(ORDINALS):
        return []
    pairs = [(thing.colour, thing.shape) for part in parts for thing in part.things]
    home = [i for i, part in enumerate(parts) for _ in part.things]
    asks: list[Ask] = []
    for i, part in enumerate(parts):
        for thing in part.things:
            pair = (thing.colour, thing.shape)
            if {at for at, known in zip(home, pairs, strict=True) if known == pair} == {i}:
                question = f"Which picture has a {thing.colour} {thing.shape}?"
                asks.append(Ask("which", question, ORDINALS[i], (thing.box,), (i,)))
    return asks


def draw_which(rng: np.random.Generator, look: Look, level: int, count: int = 0) -> Scene:
    """`count` pictures (0: two to four) of one to three shapes."""
    count = count or int(rng.integers(2, len(ORDINALS) + 1))
    return _album([_scene(rng, look, 1, 3) for _ in range(count)], [])


def draw_needle(rng: np.random.Generator, look: Look, level: int, count: int = 0) -> Scene:
    """`count` pictures (0: by level) of one or two shapes; one also holds a code or a word."""
    count = count or NEEDLE_PICTURES[level]
    at = int(rng.integers(count))
    parts: list[Scene] = []
    asks: list[Ask] = []
    for i in range(count):
        if i != at:
            parts.append(_scene(rng, look, 1, 2))
            continue
        canvas = Canvas(rng, look)
        font, size = pick(rng, look.fonts), int(rng.integers(19, 26))
        is_word = rng.random() < 0.3
        text = (
            pick(rng, WORDS)
            if is_word
            else "".join(pick(rng, list(CODE_CHARS)) for _ in range(int(rng.integers(2, 4))))
        )
        while text_width(font, size, text) > SIDE - 6:
            size -= 1
        spot = canvas.room(text_width(font, size, text) + 2, int(size * 1.25))
        assert spot is not None  # the canvas is empty and the text fits
        box = canvas.write(text, spot[0], spot[1], font, size, canvas.ink())
        if is_word:
            canvas.mark(Layer.WORD, box, WORDS.index(text) + 1)
        question = "What word is written?" if is_word else "What is the code?"
        asks.append(Ask("needle", question, text, (box,), (at,)))
        things = coarse.scatter(canvas, int(rng.integers(0, 3)), 20, 28)
        parts.append(Scene("print", canvas, [], things, [text], [text] if is_word else []))
    return _album(parts, asks)


def draw_sum(rng: np.random.Generator, look: Look, level: int, count: int = 2) -> Scene:
    """Two receipts whose totals are to be added; easy: without carrying."""
    while True:
        one, two = (int(v) for v in rng.integers(10, 90, 2))
        carries = one % 10 + two % 10 > 9 or one // 10 + two // 10 > 9
        if carries == (level > 0):
            break
    parts = [form.draw(rng, look, 0, str(total)) for total in (one, two)]
    boxes: list[Box] = []
    home: list[int] = []
    for i, part in enumerate(parts):
        (ask,) = [ask for ask in part.asks if ask.question == "What is the total?"]
        boxes += ask.boxes
        home += [i] * len(ask.boxes)
    question = "What is the sum of each total?"
    return _album(parts, [Ask("sum", question, str(one + two), tuple(boxes), tuple(home))])


def draw_changed(rng: np.random.Generator, look: Look, level: int, count: int = 2) -> Scene:
    """The same picture twice, with one property of one thing changed, or nothing."""
    first = Canvas(rng, look)
    second = Canvas(rng, look, first.pixels.copy())
    plain = coarse.scatter(Canvas(rng, look), int(rng.integers(1, 4)))
    shades = [first.paint(thing.colour) for thing in plain]
    at, what = int(rng.integers(len(plain))), pick(rng, CHANGES)
    first.taken = [thing.box for thing in plain]
    other, shade = _changed(rng, first, plain[at], shades[at], what)
    after = [*plain[:at], other, *plain[at + 1 :]]
    for thing, rgb in zip(plain, shades, strict=True):
        first.stand(thing.shape, thing.colour, thing.box, rgb)
    for thing, rgb in zip(after, [*shades[:at], shade, *shades[at + 1 :]], strict=True):
        second.stand(thing.shape, thing.colour, thing.box, rgb)
    what = "nothing" if other == plain[at] else what  # no room to move
    shown = (plain, after) if what == "nothing" else ([plain[at]], [other])
    boxes = coarse.boxes([thing for things in shown for thing in things])
    home = tuple(i for i, things in enumerate(shown) for _ in things)
    parts = [Scene("shapes", first, [], plain), Scene("shapes", second, [], after)]
    return _album(parts, [Ask("changed", "What changed?", what, boxes, home)])


def _changed(
    rng: np.random.Generator, canvas: Canvas, thing: Thing, shade: Floats, what: str
) -> tuple[Thing, Floats]:
    """The thing after its change, and its shade."""
    if what == "colour":
        colour = pick(rng, [colour for colour in COLOURS if colour != thing.colour])
        return Thing(thing.shape, colour, thing.box), canvas.paint(colour)
    if what == "shape":
        shape = pick(rng, [shape for shape in SHAPES if shape != thing.shape])
        return Thing(shape, thing.colour, thing.box), shade
    if what == "place":
        side = thing.box[2] - thing.box[0]
        for _ in range(20):
            box = canvas.room(side, side)
            if (
                box
                and max(abs(a - b) for a, b in zip(box[:2], thing.box[:2], strict=True)) >= MOVED_PX
            ):
                return Thing(thing.shape, thing.colour, box), shade
            if box:
                canvas.taken.remove(box)
    return thing, shade


def draw(rng: np.random.Generator, look: Look, level: int, count: int) -> Scene:
    """An album of `count` pictures for training, of a sort that has so many."""
    sorts = [draw_which, draw_needle]
    if count == 2:
        sorts += [draw_changed, draw_changed, draw_sum, draw_sum]
    return pick(rng, sorts)(rng, look, level, count)
