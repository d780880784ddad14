"""Rendered tasks with exact answers: `FAMILIES` names them, `samples` draws them. Needs Pillow and
numpy only.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from zlib import crc32

import numpy as np
from PIL import Image

from foveate.core.errors import SettingError, nearest

from ..canvas import Ask, Box, Scene, pick
from ..looks import TEST_LOOK, TRAIN_LOOK, Look
from . import bars, coarse, form, large_print, place

Draw = Callable[[np.random.Generator, Look, int], Scene]

SPLITS: dict[str, tuple[int, Look]] = {
    "train": (1, TRAIN_LOOK),
    "dev": (2, TRAIN_LOOK),
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
}
"""How to draw each kind of picture."""


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
    """One picture (mode RGB), one question, its exact answer and the evidence boxes in pixels."""

    image: Image.Image
    question: str
    answer: str
    boxes: tuple[Box, ...]
    kind: str
    family: str
    level: int
    objects: int


def _families() -> dict[str, Family]:
    rows = [
        (coarse, "coarse", "shapes", 1),
        (place, "place", "shapes", 1),
        (bars, "fine", "bars", 3),
        (large_print, "fine", "print", 3),
        (form, "fine", "form", 3),
    ]
    return {
        name: Family(name, group, kind, levels)
        for module, group, kind, levels in rows
        for name in module.FAMILIES
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
        scene = DRAWERS[known.kind](rng, SPLITS[split][1], level)
        asks = [ask for ask in scene.asks if ask.family == name]
        if asks:
            yield sample(scene, pick(rng, asks), level)


def sample(scene: Scene, ask: Ask, level: int) -> Sample:
    """A scene and one of its questions as a sample."""
    picture = scene.canvas.picture()
    return Sample(
        picture,
        ask.question,
        ask.answer,
        ask.boxes,
        scene.kind,
        ask.family,
        level,
        len(scene.things),
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
