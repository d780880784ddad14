"""Training batches: pictures, their dense labels at patch size, and several questions packed behind
each picture or, for albums and frames, behind each row of pictures.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from foveate.core.errors import InputError

from .canvas import Ask, Layer, Scene
from .network import CLS_GLYPHS, CLS_SIZES
from .tasks import DRAWERS, ROWS, SPLITS
from .tokenizer import EOS, PAD, PIXEL_MEAN, PIXEL_STD
from .words import (
    COLOUR_LABELS,
    DIGITS,
    KINDS,
    MAX_OBJECTS,
    SEVERAL,
    SHAPE_LABELS,
    WORDS,
    normalise,
    quarter,
)

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

IGNORED = -100
HALVES = 2
MOST_PICTURES = 4
"""Pictures of a row in training: two to four."""


@dataclass
class Batch:
    """One batch; r rows of equally many pictures, n pictures, p patches, t text positions."""

    pixels: Tensor  # (n, 3, side, side) float, the pictures of a row one after the other
    planes: Tensor  # (n, layers, 2, p) long: label under the left and right half of each patch
    cls: Tensor  # (n, facts) float
    ids: Tensor  # (r, t) long
    targets: Tensor  # (r, t) long, IGNORED outside answers
    segment: Tensor  # (r, t) long: which question a position belongs to, -1 for padding
    position: Tensor  # (r, t) long, starting at 0 for each question
    asks: list[list[Ask]]
    digits: Tensor  # (10,) long, ids of the digits
    markers: Tensor  # (pictures of a row,) long, ids before each picture; empty for one picture
    pictures_per_row: int = 1

    def to(self, device: torch.device) -> Batch:
        """The same batch on a device."""
        values: dict[str, Any] = {
            name: value.to(device) if isinstance(value, Tensor) else value
            for name, value in vars(self).items()
        }
        return Batch(**values)


class Packer:
    """Turns scenes into batches for one tokenizer and patch size."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast, patch: int) -> None:
        self.tokenizer = tokenizer
        self.patch = patch
        self._encode = lru_cache(maxsize=4096)(self._encode_uncached)

    def _encode_uncached(self, text: str) -> tuple[int, ...]:
        return tuple(self.tokenizer.encode(text, add_special_tokens=False))

    def question(self, text: str) -> tuple[int, ...]:
        """Ids of a question as the chat template writes it."""
        return self._encode(" " + normalise(text))

    def answer(self, text: str) -> tuple[int, ...]:
        """Ids of an answer with its end; words start with a blank, codes and numbers do not."""
        return (*self._encode(" " + text if text[0].islower() else text), EOS)

    def markers(self, count: int) -> list[int]:
        """The id that the chat template puts before each of several pictures; none before one."""
        if count == 1:
            return []
        return [self._encode(" " + quarter(i, count))[0] for i in range(count)]

    def planes(self, labels: NDArray[np.uint8]) -> NDArray[np.int64]:
        """Labels (layers, side, side) read at the middle of each half patch: (layers, 2, p)."""
        quarter, half = self.patch // 4, self.patch // 2
        rows = labels[:, half :: self.patch]
        halves = [rows[:, :, column :: self.patch] for column in (quarter, 3 * quarter)]
        return np.stack(halves, 1).reshape(len(Layer), HALVES, -1).astype(np.int64)

    def pack(self, rng: np.random.Generator, scenes: list[Scene], questions: int) -> Batch:
        """Up to `questions` random questions per scene, one after the other. All scenes must have
        equally many pictures.
        """
        counts = {len(scene.pages()) for scene in scenes}
        if len(counts) != 1:
            raise InputError(f"scenes of {sorted(counts)} pictures cannot share a batch")
        pages = [page for scene in scenes for page in scene.pages()]
        chosen = [
            [s.asks[int(i)] for i in rng.permutation(len(s.asks))[:questions]] for s in scenes
        ]
        rows = [
            [(self.question(a.question), self.answer(a.answer)) for a in asks] for asks in chosen
        ]
        length = max(1, max(sum(len(q) + len(a) for q, a in row) for row in rows))
        ids, targets = np.full((len(rows), length), PAD), np.full((len(rows), length), IGNORED)
        segment, position = (
            np.full((len(rows), length), -1),
            np.zeros((len(rows), length), np.int64),
        )
        for i, row in enumerate(rows):
            at = 0
            for j, (question, answer) in enumerate(row):
                end = at + len(question) + len(answer)
                ids[i, at:end] = question + answer
                targets[i, at + len(question) : end] = answer
                segment[i, at:end] = j
                position[i, at:end] = np.arange(end - at)
                at = end
        pictures = np.stack([page.canvas.image() for page in pages])
        return Batch(
            pixels=to_pixels(pictures),
            planes=torch.from_numpy(np.stack([self.planes(s.canvas.labels) for s in pages])),
            cls=torch.from_numpy(np.stack([cls_facts(s) for s in pages])),
            ids=torch.from_numpy(ids),
            targets=torch.from_numpy(targets),
            segment=torch.from_numpy(segment),
            position=torch.from_numpy(position),
            asks=chosen,
            digits=torch.tensor([self._encode(digit)[0] for digit in DIGITS]),
            markers=torch.tensor(self.markers(counts.pop()), dtype=torch.long),
            pictures_per_row=len(pages) // len(scenes),
        )


def to_pixels(pictures: NDArray[np.uint8]) -> Tensor:
    """Pictures (n, side, side, 3) as the image processor of lab-nano would give them, (n, 3, side,
    side).
    """
    scaled = (pictures.astype(np.float32) / 255 - PIXEL_MEAN) / PIXEL_STD
    return torch.from_numpy(np.ascontiguousarray(scaled.transpose(0, 3, 1, 2)))


def cls_facts(scene: Scene) -> NDArray[np.float32]:
    """What CLS should know of a scene, as zeros and ones in the order of `CLS_SIZES`."""
    groups = [np.zeros(size, np.float32) for size in CLS_SIZES]
    for thing in scene.things:
        groups[0][COLOUR_LABELS.index(thing.colour)] = 1
        groups[1][SHAPE_LABELS.index(thing.shape)] = 1
    groups[2][KINDS.index(scene.kind)] = 1
    groups[3][min(len(scene.things), MAX_OBJECTS)] = 1
    for char in set("".join(scene.texts)) & set(CLS_GLYPHS):
        groups[4][CLS_GLYPHS.index(char)] = 1
    for word in scene.words:
        groups[5][WORDS.index(word)] = 1
    return np.concatenate(groups)


def draw_scenes(
    rng: np.random.Generator, mix: dict[str, float], count: int, easy: float, split: str = "train"
) -> list[Scene]:
    """Scenes with `count` pictures, whose kinds follow `mix`; each is easy with chance `easy`, else
    medium or hard.

    A draw holds either `count` single pictures or rows of equally many pictures, at least one row,
    with the chances that `mix` gives to both sorts.
    """
    kinds, shares = list(mix), np.array(list(mix.values()), float)
    shares /= shares.sum()
    several = np.array([kind in SEVERAL for kind in kinds])
    # Without several pictures in the mix nothing more is drawn from the stream.
    rows = bool(several.all() or (several.any() and rng.random() < shares[several].sum()))
    shares = np.where(several == rows, shares, 0.0)
    pictures = int(rng.integers(2, MOST_PICTURES + 1)) if rows else 1
    count = max(1, count // pictures)
    look = SPLITS[split][1]
    scenes: list[Scene] = []
    for kind in rng.choice(len(kinds), count, p=shares / shares.sum()):
        level = 0 if rng.random() < easy else int(rng.integers(1, 3))
        if rows:
            scenes.append(ROWS[kinds[kind]](rng, look, level, pictures))
        else:
            scenes.append(DRAWERS[kinds[kind]](rng, look, level))
    return scenes
