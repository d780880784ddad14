"""M-RoPE positions that do not depend on where a chunk or a cached prefix ends.

The rule: text stands where the unpruned grid puts it. Behind a picture at `base` it goes on at base
plus the largest of the grid's (t, h, w), whatever was kept, so all text positions are known before
anything is encoded. A kept token has its own (t, h, w), which is known only afterwards and travels
with its features; it is written at the base of its picture, which stands in its place until then.

Where a family writes words between the frames of a video, how many tokens a frame keeps is known only
afterwards too. Such a video is one run that holds its words as well, and both travel.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from foveate.core.errors import StateError
from foveate.core.views import Grid

FACTS = 5  # of a row: its (t, h, w) from the base, whether its item begins here, word + 1 or 0
_DIGITS, _RADIX = 3, 128  # digits below 256 are exact in bfloat16, which has 8 bits of precision
CHANNELS = FACTS * _DIGITS


@dataclass(frozen=True)
class Run:
    """A run of placeholders: where it starts in the prompt, how many, and how many positions the
    unpruned picture takes.
    """

    offset: int
    length: int
    extent: int


def before_encoding(tokens: int, runs: Sequence[Run], *, renumber: bool = False) -> np.ndarray:
    """(3, tokens): positions of a prompt. Text is right; placeholders hold -1 - base of their picture
    until `after_encoding`. With `renumber` all are consecutive and stay so.
    """
    line = np.arange(tokens, dtype=np.int64)
    if renumber:
        return np.tile(line, (3, 1))
    out = np.zeros((3, tokens), dtype=np.int64)
    at = base = 0
    for run in runs:
        text = run.offset - at
        out[:, at : run.offset] = base + np.arange(text)
        base += text
        out[:, run.offset : run.offset + run.length] = -1 - base
        base += run.extent
        at = run.offset + run.length
    out[:, at:] = base + np.arange(tokens - at)
    return out


@dataclass(frozen=True)
class Frames:
    """A video whose frames stand apart: words (w,) are its own, before (w,) how many frames come before
    each, at (w,) their positions from the video's base; bases (t,) those of the frames; extent:
    positions of the whole.
    """

    words: np.ndarray
    before: np.ndarray
    at: np.ndarray
    bases: np.ndarray
    extent: int

    @classmethod
    def of(cls, written: np.ndarray, placeholder: int, grid: Grid) -> Frames:
        """From the ids of an unpruned video's part of the prompt with one placeholder a frame.
        StateError if these are not as many as the grid's frames.
        """
        frame = written == placeholder
        if int(frame.sum()) != grid[0]:
            raise StateError(
                f"a video of {grid[0]} frames came with words for {int(frame.sum())}: this version of "
                "vLLM writes videos in another way than the plug-in knows"
            )
        steps = np.where(frame, max(grid[1], grid[2]), 1)
        start = np.cumsum(steps) - steps
        return cls(
            written[~frame], np.cumsum(frame)[~frame], start[~frame], start[frame], int(steps.sum())
        )

    def rows(self, anchors: np.ndarray, grid: Grid) -> tuple[np.ndarray, np.ndarray]:
        """The whole in order, for kept tokens `anchors` (k,), ascending: (k + w,) index of each row
        into kept tokens and then words, and its (k + w, FACTS).
        """
        _, h, w = grid
        frame, inside = anchors // (h * w), anchors % (h * w)
        zero = np.zeros_like(frame)
        own = np.stack([zero, inside // w, inside % w], axis=1) + self.bases[frame][:, None]
        words = np.repeat(self.at[:, None], 3, axis=1)
        spots = np.searchsorted(frame, self.before)
        picks = np.insert(np.arange(anchors.size), spots, anchors.size + np.arange(self.words.size))
        ids = np.concatenate([zero, self.words + 1])
        return picks, facts(np.concatenate([own, words])[picks], ids[picks])


def facts(own: np.ndarray, words: np.ndarray | None = None) -> np.ndarray:
    """(k, FACTS) of the rows of an item at positions own (k, 3) from its base; words (k,): id + 1 of
    rows that are words, 0 of visual tokens.
    """
    out = np.zeros((own.shape[0], FACTS), dtype=np.int64)
    out[:, :3] = own
    out[:1, 3] = 1
    if words is not None:
        out[:, 4] = words
    return out


def digits(numbers: np.ndarray) -> np.ndarray:
    """(k, 3 n) of numbers (k, n) below 2**21: each as three digits, which any float type holds exactly."""
    places = _RADIX ** np.arange(_DIGITS)[::-1]
    out: np.ndarray = (numbers[:, :, None] // places % _RADIX).reshape(numbers.shape[0], -1)
    return out


def undigits(channels: Tensor) -> Tensor:
    """(k, n) int64 of what `digits` made."""
    whole = channels.round().long().unflatten(1, (-1, _DIGITS))
    places = torch.tensor([_RADIX**i for i in reversed(range(_DIGITS))], device=whole.device)
    return (whole * places).sum(-1)


def after_encoding(
    positions: Tensor, visual: Tensor, items: Sequence[Tensor], computed: int
) -> Tensor:
    """positions (3, S) with the positions of rows (k, FACTS) of items written. `items` are what a chunk
    that begins at `computed` holds of its pictures, in order; visual (S,) bool marks placeholders.

    A position is written once, so that a chunk may be done again, and none with renumbered plans.
    """
    out, at = positions.clone(), computed
    for rows in items:
        if rows.shape[0] and bool(rows[0, 3]):
            ahead = visual[at:].nonzero()
            if not ahead.numel():
                raise StateError("visual tokens came without a placeholder for them in the prompt")
            at += int(ahead[0])
        here = slice(at, at + rows.shape[0])
        base = -1 - out[:, here]
        own = rows[:, :3].T.to(out.device, out.dtype)
        out[:, here] = torch.where(base >= 0, base + own, out[:, here])
        at += rows.shape[0]
    return out
