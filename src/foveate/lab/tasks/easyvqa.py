"""easy-VQA, the outside data: pictures of one shape with questions that this package did not write.

Source: the PyPI package `easy-vqa` (Victor Zhou, MIT), 4000 training and 1000 test pictures of 64
pixels. Its own split is kept; the last 400 training pictures are dev. Pictures are resized as the
image processor does, and two words of the questions are spelled as in the lab.
"""

from __future__ import annotations

from collections import defaultdict
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from foveate.core.errors import MissingExtraError

from ..canvas import Ask, Box, Canvas, Scene, Thing
from ..looks import Look
from ..words import COLOUR_LABELS, SHAPE_LABELS, SIDE, normalise

FAMILIES = ("easyvqa",)
DEV_FROM = 3600
"""Training pictures from this number on are dev."""

SPELLING = {"color": "colour", "image": "picture"}
INK = 30
"""A pixel belongs to the shape when a channel differs from the background by more than this."""

Asked = dict[int, list[tuple[str, str]]]


class Plain(Canvas):
    """A finished picture from elsewhere; no noise is added."""

    def image(self) -> NDArray[np.uint8]:
        """The picture, (side, side, 3)."""
        done: NDArray[np.uint8] = self.pixels.astype(np.uint8)
        return done


@lru_cache(maxsize=3)
def load(part: str) -> tuple[dict[int, str], Asked]:
    """Files and questions with answers by number of the picture, for train, dev or test.

    Errors: MissingExtraError where the package is not installed.
    """
    try:
        import easy_vqa
    except ImportError as error:
        raise MissingExtraError("easy-vqa", "lab", "the outside family easyvqa") from error
    test = part == "test"
    files = easy_vqa.get_test_image_paths() if test else easy_vqa.get_train_image_paths()
    rows = easy_vqa.get_test_questions() if test else easy_vqa.get_train_questions()
    asked: Asked = defaultdict(list)
    for question, answer, number in zip(*rows, strict=True):
        if test or (number >= DEV_FROM) == (part == "dev"):
            asked[number].append((spell(question), answer))
    return {number: files[number] for number in sorted(asked)}, dict(asked)


def spell(question: str) -> str:
    """A question in the lab's words."""
    return " ".join(SPELLING.get(word, word) for word in normalise(question).split())


def facts(asked: list[tuple[str, str]]) -> tuple[str | None, str | None]:
    """Shape and colour as far as the questions about a picture tell them."""
    shape = colour = None
    for question, answer in asked:
        words = question.split()
        denied = "not" in words or "no" in words
        sure = [answer]
        if answer not in ("yes", "no"):  # "what is the blue shape": the thing asked about is there
            sure += [word for word in words if word != "shape"]
        elif (answer == "yes") != denied:
            sure += words
        shape = next((word for word in sure if word in SHAPE_LABELS), shape)
        colour = next((word for word in sure if word in COLOUR_LABELS), colour)
    return shape, colour


def outline(pixels: NDArray[np.uint8]) -> Box:
    """The box of what differs from the background, which is the most frequent colour."""
    values, counts = np.unique(pixels.reshape(-1, 3), axis=0, return_counts=True)
    ink = np.abs(pixels.astype(int) - values[counts.argmax()].astype(int)).max(-1) > INK
    rows, columns = np.flatnonzero(ink.any(1)), np.flatnonzero(ink.any(0))
    if not len(rows):
        return 0, 0, pixels.shape[1], pixels.shape[0]
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1


def draw(rng: np.random.Generator, look: Look, level: int) -> Scene:
    """One picture of the part that the look names, with all its questions."""
    files, asked = load(look.name)
    numbers = list(files)
    number = numbers[int(rng.integers(len(numbers)))]
    with Image.open(files[number]) as opened:
        picture = opened.convert("RGB").resize((SIDE, SIDE), Image.Resampling.BICUBIC)
    pixels = np.asarray(picture)
    canvas = Plain(rng, look, pixels.astype(np.float32))
    box = outline(pixels)
    shape, colour = facts(asked[number])
    canvas.name(shape, colour, box)
    things = [Thing(shape, colour, box)] if shape and colour else []
    asks = [Ask("easyvqa", question, answer, (box,)) for question, answer in asked[number]]
    return Scene("easyvqa", canvas, asks, things)
