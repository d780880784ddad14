"""Grids of tokens: square layouts, and which token a patch becomes."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor


def square(n: int) -> tuple[int, int]:
    """(h, w) of n tokens: square if n is one, else a line."""
    side = math.isqrt(n)
    return (side, side) if side * side == n else (1, n)


def block_group(patches: int, n: int, device: Any) -> Tensor | None:
    """Patch -> token where an s x s block of a square grid becomes a token; None if n does not fit."""
    if patches < n or n == 0:
        return None
    if patches == n:
        return torch.arange(n, device=device)
    side, small = math.isqrt(patches), math.isqrt(n)
    if side * side != patches or small * small != n or side % small:
        return None
    scale = side // small
    line = torch.arange(side, device=device) // scale
    return (line[:, None] * small + line[None, :]).flatten()


def by_run(runs: Iterable[int]) -> Iterator[int]:
    """Number the distinct runs 0, 1, … in order of appearance."""
    seen: dict[int, int] = {}
    for run in runs:
        yield seen.setdefault(run, len(seen))
