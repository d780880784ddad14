"""Tables: what stands in the row of one word and the column of another."""

from __future__ import annotations

import numpy as np

from ..canvas import Ask, Canvas, Layer, Scene, pick
from ..looks import Look, text_width
from ..words import DIGITS, KEYS, SIDE, WORDS

FAMILIES = ("table",)
SIZES_PX = ((13, 15), (11, 13), (10, 11))
"""Font sizes in pixels, easy to hard; a table that is too wide gets a smaller one."""

ROWS = ((2, 3), (3, 4), (4, 5))
COLUMNS = ((2, 2), (2, 3), (3, 3))


def draw(rng: np.random.Generator, look: Look, level: int) -> Scene:
    """A table of two-digit numbers. In the word plane the cells of a row carry its name, in the
    head plane those of a column its header.
    """
    canvas = Canvas(rng, look)
    font, ink = pick(rng, look.fonts), canvas.ink()
    size = int(rng.integers(SIZES_PX[level][0], SIZES_PX[level][1] + 1))
    columns = int(rng.integers(COLUMNS[level][0], COLUMNS[level][1] + 1))
    rows = int(rng.integers(ROWS[level][0], ROWS[level][1] + 1))
    heads = [KEYS[int(i)] for i in rng.permutation(len(KEYS))[:columns]]
    rest = [word for word in WORDS if word not in heads]
    names = [rest[int(i)] for i in rng.permutation(len(rest))[:rows]]
    gap = 5
    while True:
        widths = [max(text_width(font, size, name) for name in names)]
        widths += [max(text_width(font, size, text) for text in (head, "00")) for head in heads]
        if sum(widths) + gap * columns <= SIDE - 6 and int(size * 1.25) * (rows + 1) <= SIDE - 4:
            break
        size -= 1
    line = int(size * 1.25)
    step = int(rng.integers(line, max(line + 1, (SIDE - 4) // (rows + 1))))
    gap = int(rng.integers(gap, max(gap, (SIDE - 6 - sum(widths)) // columns) + 1))
    y = int(rng.integers(1, max(2, SIDE - 2 - step * (rows + 1))))
    left = int(rng.integers(2, max(3, SIDE - 3 - sum(widths) - gap * columns)))
    starts = [left + sum(widths[:i]) + gap * i for i in range(columns + 1)]
    tops = []
    for head, x in zip(heads, starts[1:], strict=True):
        box = canvas.write(head, x, y, font, size, ink, slots=False)
        canvas.mark(Layer.HEAD, box, WORDS.index(head) + 1)
        tops.append(box)
    if rng.random() < 0.5:
        canvas.pixels[min(y + line, SIDE - 1), left : starts[-1] + widths[-1]] = ink
    asks: list[Ask] = []
    texts = [*heads, *names]
    for name in names:
        y += step
        row = canvas.write(name, left, y, font, size, ink, slots=False)
        canvas.mark(
            Layer.WORD, (row[0], row[1], starts[-1] + widths[-1], row[3]), WORDS.index(name) + 1
        )
        for head, top, x in zip(heads, tops, starts[1:], strict=True):
            value = "".join(pick(rng, list(DIGITS)) for _ in range(2))
            box = canvas.write(value, x, y, font, size, ink)
            canvas.mark(Layer.WORD, box, WORDS.index(name) + 1)
            canvas.mark(Layer.HEAD, box, WORDS.index(head) + 1)
            asks.append(Ask("table", f"What is the {head} of {name}?", value, (row, top, box)))
            texts.append(value)
    return Scene("table", canvas, asks, [], texts, [*heads, *names])
