"""Large print: read a code of capitals and digits, or a word, that stands among a few shapes."""

from __future__ import annotations

import numpy as np

from ..canvas import Ask, Canvas, Layer, Scene, pick
from ..looks import Look, text_width
from ..words import CODE_CHARS, DIGITS, LOWER, SIDE, WORDS
from . import coarse
from .place import ask_where

FAMILIES = ("code",)
"""Words are asked too, as practice: one of two dozen known words can be told from any patch of it, so
that a word measures nothing that a code does not.
"""

SIZES_PX = ((20, 27), (15, 19), (11, 14))
"""Font sizes in pixels, easy to hard."""

LENGTHS = ((2, 3), (3, 4), (3, 4))
"""Characters in a code, easy to hard."""


def draw(rng: np.random.Generator, look: Look, level: int) -> Scene:
    """A code or a word in large type and up to three shapes beside it."""
    canvas = Canvas(rng, look)
    font, (low, high) = pick(rng, look.fonts), SIZES_PX[level]
    size = int(rng.integers(low, high + 1))
    is_word = rng.random() < 0.35
    if is_word:
        text = pick(rng, WORDS)
    else:
        shortest, longest = LENGTHS[level]
        length = int(rng.integers(shortest, longest + 1))
        text = "".join(pick(rng, list(CODE_CHARS)) for _ in range(length))
    while text_width(font, size, text) > SIDE - 6:
        size -= 1
    spot = canvas.room(text_width(font, size, text) + 2, int(size * 1.25))
    assert spot is not None  # the canvas is empty and the text fits
    box = canvas.write(text, spot[0], spot[1], font, size, canvas.ink())
    if is_word:
        canvas.mark(Layer.WORD, box, WORDS.index(text) + 1)
        asks = [Ask("word", "What word is written?", text, (box,))]
    else:
        asks = [Ask("code", "What is the code?", text, (box,))]
    things = coarse.scatter(canvas, int(rng.integers(0, 4)), 20, 28)
    if things:
        asks += coarse.ask_about(rng, things) + ask_where(rng, things)
    return Scene("print", canvas, asks, things, [text], [text] if is_word else [])


def draw_page(rng: np.random.Generator, look: Look, level: int) -> Scene:
    """A page full of codes, words and "key: number" pairs: reading practice without questions."""
    canvas = Canvas(rng, look)
    ink = canvas.ink()
    texts: list[str] = []
    words: list[str] = []
    y = int(rng.integers(0, 8))
    while True:
        size, font = int(rng.integers(11, 27)), pick(rng, look.fonts)
        x = int(rng.integers(0, 14))
        if y + size * 1.25 > SIDE:
            break
        while True:
            text, key = _item(rng)
            if x + text_width(font, size, text) > SIDE - 1:
                break
            box = canvas.write(
                text, x, y, font, size, ink, slots=text[0] not in LOWER or ":" not in text
            )
            if key:
                canvas.mark(Layer.WORD, box, WORDS.index(key) + 1)
                words.append(key)
            texts.append(text)
            x = box[2] + int(rng.integers(5, 20))
        y += int(size * 1.25) + int(rng.integers(0, 8))
    return Scene("page", canvas, [], [], texts, words)


def _item(rng: np.random.Generator) -> tuple[str, str]:
    """A code, a word, or a pair of key and number, with the word it carries."""
    kind = rng.random()
    if kind < 0.68:
        length = int(rng.integers(1, 5))
        pools = (CODE_CHARS if rng.random() < 0.75 else DIGITS for _ in range(length))
        return "".join(pick(rng, list(pool)) for pool in pools), ""
    word = pick(rng, WORDS)
    if kind < 0.9:
        return word, word
    return word + ":" + "".join(pick(rng, list(DIGITS)) for _ in range(2)), word
