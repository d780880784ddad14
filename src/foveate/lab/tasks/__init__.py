"""Rendered tasks with exact answers: `FAMILIES` names them, `samples` draws them. Needs Pillow and
numpy only.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from zlib import crc32

import numpy as np
from PIL import Image

from foveate.core.errors import SettingError, nearest

from ..canvas import Ask, Box, Scene, pick
from ..looks import TEST_LOOK, TRAIN_LOOK, Look
from . import album, bars, coarse, easyvqa, form, frames, large_print, line, numbers, place, scene
from . import table as tables

Draw = Callable[[np.random.Generator, Look, int], Scene]
DrawRow = Callable[[np.random.Generator, Look, int, int], Scene]

SPLITS: dict[str, tuple[int, Look]] = {
    "train": (1, TRAIN_LOOK),
    "dev": (2, replace(TRAIN_LOOK, name="dev")),
    "test": (3, TEST_LOOK),
}
"""Stream number and look of each split. dev looks like train and serves as the gate while training.
"""

DRAWERS: dict[str, Draw] = {
    "shapes": coarse.draw,
    "bars": bars.draw,
    "print": large_print.draw,
    "form": form.draw,
    "page": large_print.draw_page,
    "scene": scene.draw,
    "line": line.draw,
    "table": tables.draw,
    "numbers": numbers.draw,
    "easyvqa": easyvqa.draw,
}
"""How to draw each kind of picture."""

ROWS: dict[str, DrawRow] = {"album": album.draw, "frames": frames.draw}
"""How to draw each kind of several pictures, given how many; for training."""

ALONE: dict[str, Draw] = {
    "which": album.draw_which,
    "changed": album.draw_changed,
    "sum": album.draw_sum,
    "needle": album.draw_needle,
    "when": frames.draw,
    "appeared": frames.draw,
}
"""How to draw several pictures that hold a question of a family, at each of its levels."""


@dataclass(frozen=True)
class Family:
    """A family of questions: its group, the kind of picture it is asked about, how many levels it
    has.
    """

    name: str
    group: str
    kind: str
    levels: int


@dataclass(frozen=True)
class Sample:
    """One or several pictures (mode RGB), one question, its exact answer and the evidence boxes in
    pixels.

    `box_images` names the picture of each box. `metric` says how an answer is judged
    (`score.is_right`): "exact", or "iou" for the box of a thing.
    """

    images: tuple[Image.Image, ...]
    question: str
    answer: str
    boxes: tuple[Box, ...]
    box_images: tuple[int, ...]
    metric: str
    kind: str
    family: str
    level: int
    objects: int

    @property
    def image(self) -> Image.Image:
        """The first picture."""
        return self.images[0]


def _families() -> dict[str, Family]:
    rows: list[tuple[tuple[str, ...], str, str, int]] = [
        (coarse.FAMILIES, "coarse", "shapes", 1),
        (place.FAMILIES, "place", "shapes", 1),
        (scene.PLACE_FAMILIES, "place", "scene", 1),
        (bars.FAMILIES, "fine", "bars", 3),
        (line.FAMILIES, "fine", "line", 3),
        (large_print.FAMILIES, "fine", "print", 3),
        (form.FAMILIES, "fine", "form", 3),
        (tables.FAMILIES, "fine", "table", 3),
        (("which", "changed"), "several", "album", 1),
        (("sum",), "several", "album", 2),
        (("needle",), "several", "album", len(album.NEEDLE_PICTURES)),
        (frames.FAMILIES, "time", "frames", len(frames.FRAMES)),
        (scene.PROBE_FAMILIES, "probe", "scene", 1),
        (numbers.FAMILIES, "probe", "numbers", 3),
        (easyvqa.FAMILIES, "outside", "easyvqa", 1),
    ]
    return {
        name: Family(name, group, kind, levels)
        for names, group, kind, levels in rows
        for name in names
    }


FAMILIES: dict[str, Family] = _families()


def family(name: str) -> Family:
    """The family of that name; SettingError with the nearest names if there is none."""
    if name not in FAMILIES:
        raise SettingError(f"unknown family {name!r}: {nearest(name, FAMILIES)}")
    return FAMILIES[name]


def stream(split: str, purpose: str, seed: int, index: int) -> np.random.Generator:
    """The random stream of one picture; streams of different splits never meet."""
    if split not in SPLITS:
        raise SettingError(f"unknown split {split!r}: {nearest(split, SPLITS)}")
    if seed < 0 or index < 0:
        raise SettingError(f"seed and index must be 0 or more, got {seed} and {index}")
    return np.random.default_rng([SPLITS[split][0], crc32(purpose.encode()), seed, index])


def iterate(name: str, split: str, seed: int = 0, level: int = 0) -> Iterator[Sample]:
    """An endless row of samples of one family, each on a picture of its own."""
    known = family(name)
    if not 0 <= level < known.levels:
        raise SettingError(
            f"level {level} of family {name} is out of range 0 to {known.levels - 1}"
        )
    index = 0
    while True:
        rng = stream(split, f"{name}/{level}", seed, index)
        index += 1
        draw = ALONE.get(name) or DRAWERS[known.kind]
        drawn = draw(rng, SPLITS[split][1], level)
        asks = [ask for ask in drawn.asks if ask.family == name]
        if asks:
            yield sample(drawn, pick(rng, asks), level)


def sample(drawn: Scene, ask: Ask, level: int) -> Sample:
    """A scene and one of its questions as a sample."""
    return Sample(
        images=tuple(page.canvas.picture() for page in drawn.pages()),
        question=ask.question,
        answer=ask.answer,
        boxes=ask.boxes,
        box_images=ask.pictures,
        metric=ask.metric,
        kind=drawn.kind,
        family=ask.family,
        level=level,
        objects=len(drawn.things),
    )


def samples(
    name: str, split: str = "test", n: int = 1, seed: int = 0, level: int = 0
) -> list[Sample]:
    """The first n samples of a family: the same picture and question for the same arguments,
    always.

    Errors: SettingError for an unknown family or split, a level out of range, or n below 1.
    """
    if n < 1:
        raise SettingError(f"n must be 1 or more, got {n}")
    row = iterate(name, split, seed, level)
    return [next(row) for _ in range(n)]
