"""M-RoPE positions that do not depend on where a chunk or a cached prefix ends.

The rule: text stands where the unpruned grid puts it. Behind a picture at `base` it goes on at base
plus the largest of the grid's (t, h, w), whatever was kept, so all text positions are known before
anything is encoded. A kept token has its own (t, h, w), which is known only afterwards and travels
with its features; it is written at base, the position after that of the token before the picture.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

CHANNELS = 6
_RADIX = 128  # two digits below 256 are exact in bfloat16, which has 8 bits of precision


@dataclass(frozen=True)
class Run:
    """A run of placeholders: where it starts in the prompt, how many, and the extent (t, h, w) of the
    unpruned grid in positions.
    """

    offset: int
    length: int
    extent: tuple[int, int, int]


def before_encoding(tokens: int, runs: Sequence[Run], *, renumber: bool = False) -> np.ndarray:
    """(3, tokens): positions of a prompt. Text is right; kept tokens stand at the base of their
    picture until `after_encoding`. With `renumber` all are consecutive and stay so.
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
        out[:, run.offset : run.offset + run.length] = base
        base += max(run.extent)
        at = run.offset + run.length
    out[:, at:] = base + np.arange(tokens - at)
    return out


def digits(own: np.ndarray) -> np.ndarray:
    """(k, 6) of positions (k, 3): each as two digits, which any float type holds exactly."""
    return np.concatenate([own // _RADIX, own % _RADIX], axis=1)


def undigits(channels: Tensor) -> Tensor:
    """(k, 3) int64 of what `digits` made."""
    whole = channels.nan_to_num(0.0).round().long()  # tokens that are void stand at the base
    return whole[:, :3] * _RADIX + whole[:, 3:]


def after_encoding(positions: Tensor, visual: Tensor, own: Tensor, computed: int) -> Tensor:
    """positions (3, S) with the kept tokens' own (t, h, w) (k, 3) written at the first k placeholders
    from `computed` on; visual (S,) bool marks placeholders. Tokens whose own position is negative stay
    where they are. May be done again with the same result.
    """
    out = positions.clone()
    where = visual.nonzero().flatten()
    begins = visual.clone()
    begins[1:] &= ~visual[:-1]
    starts = torch.where(begins, torch.arange(visual.shape[0], device=visual.device), 0)
    start = starts.cummax(0).values
    chosen = where[where >= computed][: own.shape[0]]
    before = start[chosen] - 1
    base = torch.where(before >= 0, out[0, before.clamp(min=0)] + 1, 0)
    own = own.to(out.device, out.dtype)
    moved = (own >= 0).all(1)
    out[:, chosen[moved]] = (own.T + base)[:, moved]
    return out
