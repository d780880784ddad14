"""Forms: rows of "key: number"; the question names a key."""

from __future__ import annotations

import numpy as np

from ..canvas import Ask, Canvas, Layer, Scene, pick
from ..looks import Look, text_width
from ..words import DIGITS, KEYS, SIDE, WORDS

FAMILIES = ("form",)
SIZES_PX = ((16, 20), (13, 15), (10, 12))
"""Font sizes in pixels, easy to hard."""

ROWS = ((2, 4), (3, 5), (4, 6))


def draw(rng: np.random.Generator, look: Look, level: int, total: str | None = None) -> Scene:
    """A form of two to six rows; in the word plane the whole row carries its key. With `total` one
    row is the total of a receipt and has that value.
    """
    canvas = Canvas(rng, look)
    font, ink = pick(rng, look.fonts), canvas.ink()
    size = int(rng.integers(SIZES_PX[level][0], SIZES_PX[level][1] + 1))
    rows = int(rng.integers(ROWS[level][0], ROWS[level][1] + 1))
    keys = [KEYS[int(i)] for i in rng.permutation(len(KEYS))[:rows]]
    if total is not None and "total" not in keys:
        keys[int(rng.integers(rows))] = "total"
    while max(text_width(font, size, key + ":00") for key in keys) + size // 2 > SIDE - 6:
        size -= 1
    line = int(size * 1.25)
    rows = min(rows, (SIDE - 4) // line)
    if total is not None and "total" not in keys[:rows]:
        keys[0], keys[keys.index("total")] = "total", keys[0]
    step = int(rng.integers(line, max(line + 1, (SIDE - 4) // rows)))
    y = int(rng.integers(1, max(2, SIDE - 2 - step * rows)))
    left = int(rng.integers(2, 8))
    # Numbers stand in a column, as on a form, or right behind their keys.
    column = max(text_width(font, size, key + ":") for key in keys) if rng.random() < 0.5 else 0
    asks: list[Ask] = []
    texts: list[str] = []
    for key in keys[:rows]:
        value = "".join(pick(rng, list(DIGITS)) for _ in range(2))
        if total is not None and key == "total":
            value = total
        name = canvas.write(key + ":", left, y, font, size, ink, slots=False)
        x = max(name[2], left + column) + size // 3
        x = min(x, SIDE - 1 - text_width(font, size, value))
        box = canvas.write(value, x, y, font, size, ink)
        canvas.mark(Layer.WORD, (name[0], name[1], box[2], box[3]), WORDS.index(key) + 1)
        asks.append(Ask("form", f"What is the {key}?", value, (name, box)))
        texts += [key, value]
        y += step
    return Scene("form", canvas, asks, [], texts, keys[:rows])
