"""Nüwa, the first stage: attended tokens of every cell stay, and weak ones gather their
surroundings.

Paper: Y. Huang, F. Ma, Y. Shao, J. Guo, Z. Yu, L. Cui, Q. Tian, "Nüwa: Mending the Spatial
Integrity Torn by VLM Token Pruning", ICLR 2026, arXiv 2602.02951, stage 1. Of every 2 x 2 cell of
the grid the ceil(k / cells) most attended tokens are candidates, the k most attended of them stay.
Those whose attention is at or above a percentile (55) of the picture's stay as they are; each other
one becomes the mean of itself (weight 1) and of other tokens, weighted by max(0, cosine) times a
penalty of the distance. Grounding depends on where tokens stand: use positions = retain.

Reconstructed: the penalty is taken as max(0, 1 - distance² / radius²) with radius² = 280 on a 24 x
24 grid, scaled with the grid; cosines are those of the penultimate block, where the authors' code
averages nine layers; at most `neighbours` tokens are gathered. The second stage, in the language
model, is a prefill method.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from foveate.core import arrays
from foveate.core.budget import Counts
from foveate.core.method import Evidence, Paper, Rng, TokenMethod, setting
from foveate.core.registry import register
from foveate.core.views import Array, Grid, Need, Question, Reduction, Segment
from foveate.encode.tokens._common import each, encoder_features, full_grid, saliency
from foveate.encode.tokens.vscan import local_scan, window_of

LAYER = -2


def nearness(grid: Grid, tokens: np.ndarray, radius_squared: float) -> np.ndarray:
    """(b, n): max(0, 1 - squared distance / radius²) of some tokens to all of their frame, else
    0.
    """
    t, h, w = grid
    place = np.arange(t * h * w)
    frame, y, x = place // (h * w), (place // w) % h, place % w
    squared = (y[tokens, None] - y) ** 2 + (x[tokens, None] - x) ** 2
    reach = radius_squared * (max(h, w) / 24.0) ** 2
    return np.where(frame[tokens, None] == frame, np.maximum(0.0, 1.0 - squared / reach), 0.0)


def gather(
    features: Array, grid: Grid, kept: np.ndarray, weak: np.ndarray, radius: float, most: int
) -> Reduction:
    """Kept tokens, ascending; those marked weak (k,) averaged with their surroundings. O(k n c)."""
    n, u = int(features.shape[0]), arrays.unit(features)
    rows, cols, weights = [np.arange(kept.size)], [kept], [np.ones(kept.size)]
    step = max(1, (1 << 19) // n)
    targets = np.flatnonzero(weak)
    for a in range(0, targets.size, step):
        part = targets[a : a + step]
        close = np.maximum(arrays.on_grid(arrays.take(u, kept[part]) @ u.T), 0.0)
        close *= nearness(grid, kept[part], radius)
        close[np.arange(part.size), kept[part]] = 0.0
        best = np.argsort(-arrays.quantum(close, 30), axis=1, kind="stable")[:, :most]
        share = np.take_along_axis(close, best, axis=1)
        used = share > 0.0
        rows.append(np.repeat(part, used.sum(axis=1)))
        cols.append(best[used])
        weights.append(share[used])
    row, weight = np.concatenate(rows), np.concatenate(weights)
    weight = weight / np.bincount(row, weights=weight, minlength=kept.size)[row]
    return Reduction.of(kept, row, np.concatenate(cols), weight, n)


@register
@dataclass(frozen=True)
class Nuwa(TokenMethod):
    """Cells, global choice, aggregation of the weak. O(n log n + k n c)."""

    name: ClassVar[str] = "nuwa"
    summary: ClassVar[str] = (
        "keeps attended tokens of every cell; weak ones gather their surroundings"
    )
    paper: ClassVar[Paper | None] = Paper(
        "Nüwa: Mending the Spatial Integrity Torn by VLM Token Pruning",
        "Huang, Ma, Shao, Guo, Yu, Cui, Tian",
        2026,
        "2602.02951",
        "Apache-2.0",
    )
    evidence: ClassVar[Evidence] = "reconstructed"
    needs: ClassVar[frozenset[Need]] = frozenset({Need("saliency", LAYER), Need("features", LAYER)})

    cell: int = setting(2, "side of a cell in tokens", low=1)
    percentile: float = setting(0.55, "attention from here on stays untouched", low=0.0, high=1.0)
    radius_squared: float = setting(280.0, "reach of gathering on a 24 x 24 grid", low=0.1)
    neighbours: int = setting(64, "tokens gathered by a weak one at most", low=1)

    def select(
        self, segments: list[Segment], counts: Counts, question: Question | None, rng: Rng
    ) -> list[Reduction]:
        def choose(segment: Segment, k: int) -> Reduction:
            grid = full_grid(segment, self.name)
            score = saliency(segment, LAYER, self.name)
            kept = arrays.ascending(local_scan(score, window_of(grid, self.cell), k))
            weak = score[kept] < arrays.quantile(score, self.percentile)
            features = encoder_features(segment, LAYER, self.name)
            if not weak.any():
                return Reduction.pick(kept, segment.n)
            return gather(features, grid, kept, weak, self.radius_squared, self.neighbours)

        return each(segments, counts, choose)
