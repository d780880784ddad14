"""2-D average pooling of the token grid: the control that every merging method must beat."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from typing import ClassVar

import numpy as np

from foveate.core.budget import Counts
from foveate.core.errors import InputError
from foveate.core.method import Evidence, Rng, TokenMethod
from foveate.core.registry import register
from foveate.core.views import Grid, Question, Reduction, Segment
from foveate.encode.tokens._common import each, full_grid


def pooled_size(h: int, w: int, k: int) -> tuple[int, int]:
    """(h', w') with h' * w' <= k for a grid h x w, k >= 1.

    The coarser side keeps as large a share of its resolution as it can (so the aspect stays near
    the grid's), then the number of tokens is as large as it can be.
    """
    sizes = [(a, min(w, k // a)) for a in range(1, min(h, k) + 1)]
    return max(sizes, key=lambda s: (min(Fraction(s[0], h), Fraction(s[1], w)), s[0] * s[1], s[0]))


def windows(n: int, parts: int) -> list[tuple[int, int]]:
    """`parts` overlapping windows [start, end) that cover 0 … n-1, as adaptive pooling places
    them.
    """
    return [(i * n // parts, -(-(i + 1) * n // parts)) for i in range(parts)]


@register
@dataclass(frozen=True)
class Pool(TokenMethod):
    """Averages windows of the grid, each frame of a video alone; every token is in a window. O(n).

    A merged token stands where the token nearest its window's centre stood. The count is the
    largest that a rectangle near the grid's aspect gives, so up to a few tokens fewer than the
    budget; at least one a frame. UnsupportedError where the tokens do not lie on a full grid.
    """

    name: ClassVar[str] = "pool"
    summary: ClassVar[str] = "averages windows of the token grid (control)"
    evidence: ClassVar[Evidence] = "control"

    def count(self, grid: Grid, k: int) -> int:
        t, h, w = grid
        if k <= 0:
            return 0
        rows, columns = pooled_size(h, w, max(1, k // t))
        return t * rows * columns

    def select(
        self, segments: list[Segment], counts: Counts, question: Question | None, rng: Rng
    ) -> list[Reduction]:
        def choose(segment: Segment, k: int) -> Reduction:
            t, h, w = full_grid(segment, self.name)
            if self.count(segment.grid, k) != k:
                raise InputError(
                    f"pool cannot make {k} tokens of a grid {t} x {h} x {w}; "
                    f"the nearest count is {self.count(segment.grid, k)}, as count() says"
                )
            rows, columns = pooled_size(h, w, k // t)
            raster = np.arange(h * w).reshape(h, w)
            anchor: list[int] = []
            row, column, weight = [], [], []
            for frame in range(t):
                for top, bottom in windows(h, rows):
                    for left, right in windows(w, columns):
                        members = frame * h * w + raster[top:bottom, left:right].ravel()
                        row.append(np.full(members.size, len(anchor)))
                        column.append(members)
                        weight.append(np.full(members.size, 1.0 / members.size))
                        middle = raster[(top + bottom - 1) // 2, (left + right - 1) // 2]
                        anchor.append(frame * h * w + int(middle))
            parts = (np.concatenate(row), np.concatenate(column), np.concatenate(weight))
            return Reduction.of(anchor, *parts, segment.n)

        return each(segments, counts, choose)
