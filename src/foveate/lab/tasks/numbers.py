"""Two printed numbers, of which the bigger or the smaller is asked: a near miss is wrong."""

from __future__ import annotations

import numpy as np

from ..canvas import Ask, Box, Canvas, Layer, Scene, pick
from ..looks import Look, text_width
from . import bars, coarse
from .large_print import SIZES_PX

FAMILIES = ("number",)


def _pair(rng: np.random.Generator, level: int) -> tuple[int, int]:
    """Two different numbers of two digits; easy: the first digits differ, hard: three digits."""
    low, high = (100, 1000) if level == 2 else (10, 100)
    while True:
        one, two = (int(v) for v in rng.integers(low, high, 2))
        if level > 0 and rng.random() < 0.5:  # alike up to the last digit
            two = one // 10 * 10 + two % 10
        if (one // 10 != two // 10) if level == 0 else (one != two):
            return one, two


def draw(rng: np.random.Generator, look: Look, level: int) -> Scene:
    """Two numbers in one font and up to two shapes; the word plane says which number is bigger."""
    canvas = Canvas(rng, look)
    font, ink, (low, high) = pick(rng, look.fonts), canvas.ink(), SIZES_PX[level]
    size = int(rng.integers(low, high + 1))
    numbers = _pair(rng, level)
    boxes: list[Box] = []
    for number in numbers:
        width = text_width(font, size, str(number)) + 2
        spot = canvas.room(width, int(size * 1.25), gap=6)
        if spot is None:  # a first number in the middle can leave no room for the second
            return draw(rng, look, level)
        boxes.append(canvas.write(str(number), spot[0], spot[1], font, size, ink))
    asks: list[Ask] = []
    for word, value in (("bigger", max(numbers)), ("smaller", min(numbers))):
        box = boxes[numbers.index(value)]
        canvas.mark(Layer.WORD, box, bars.note(word))
        asks.append(Ask("number", f"What is the {word} number?", str(value), tuple(boxes)))
    things = coarse.scatter(canvas, int(rng.integers(0, 3)), 20, 28)
    if things:
        asks += coarse.ask_about(rng, things)
    return Scene("numbers", canvas, asks, things, [str(number) for number in numbers])
