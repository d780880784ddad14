"""Evenly spaced tokens of the grid: the control that covers the picture without looking at it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from foveate.core.budget import Counts
from foveate.core.method import Evidence, Rng, TokenMethod
from foveate.core.registry import register
from foveate.core.views import Question, Reduction, Segment
from foveate.encode.tokens._common import each, full_grid


def spread(n: int, k: int) -> np.ndarray:
    """k distinct positions of 0 … n-1, each in the middle of one of k equal parts."""
    return ((2 * np.arange(k) + 1) * n) // (2 * k)


def shares(total: int, parts: int) -> np.ndarray:
    """`total` split over `parts`, equal up to one, the larger ones evenly spaced."""
    edges = (np.arange(parts + 1) * total) // parts
    return np.diff(edges)


def frame_points(h: int, w: int, k: int) -> np.ndarray:
    """Raster positions of k evenly spaced cells of an h x w grid; rows and columns as square as
    they can be.
    """
    rows = round(math.sqrt(k * h / w))
    rows = min(max(rows, -(-k // w), 1), h, k)
    points = [
        int(y) * w + spread(w, int(c))
        for y, c in zip(spread(h, rows), shares(k, rows), strict=True)
    ]
    return np.concatenate(points)


@register
@dataclass(frozen=True)
class Uniform(TokenMethod):
    """Exactly k tokens at even distances over (t, h, w). With fewer tokens than frames, evenly
    spaced frames give one each.

    O(k). UnsupportedError where the tokens do not lie on a full grid.
    """

    name: ClassVar[str] = "uniform"
    summary: ClassVar[str] = "keeps evenly spaced tokens of the grid (control)"
    evidence: ClassVar[Evidence] = "control"

    def select(
        self, segments: list[Segment], counts: Counts, question: Question | None, rng: Rng
    ) -> list[Reduction]:
        def choose(segment: Segment, k: int) -> Reduction:
            t, h, w = full_grid(segment, self.name)
            frames = spread(t, k) if k < t else np.arange(t)
            parts = shares(k, len(frames))
            points = [
                int(f) * h * w + frame_points(h, w, int(c))
                for f, c in zip(frames, parts, strict=True)
            ]
            return Reduction.pick(np.concatenate(points), segment.n)

        return each(segments, counts, choose)
