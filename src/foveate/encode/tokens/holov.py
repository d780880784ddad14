"""HoloV: the picture is cut into strips, each gets tokens by its attention and its variety.

Paper: X. Zou, D. Lu, Y. Wang, Y. Yan, Y. Lyu, X. Zheng, L. Zhang, X. Hu, "Don't Just Chase
Highlighted Tokens in MLLMs: Revisiting Visual Holistic Context Retention", NeurIPS 2025, arXiv
2510.02912. The sequence is split into contiguous crops. A token's score is 1000 * attention +
weight * variety, variety being the variance (divisor m - 1) of its cosines to the m tokens of its
crop with its own set to 0, rescaled to the attention's mean. A crop's quota is floor(k * share) of
its share of the mean scores, one more for the largest shares until k. Inside a crop the tokens of
highest attention stay.

Differs from the authors' code: what does not fit into a crop goes to the crops with the next
largest shares, where theirs pads with zero rows; k is free, where theirs is fixed for LLaVA.
Cosines are those of the projected tokens.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from foveate.core import arrays
from foveate.core.budget import Counts
from foveate.core.method import Evidence, Paper, Rng, TokenMethod, setting
from foveate.core.registry import register
from foveate.core.views import Array, Need, Question, Reduction, Segment
from foveate.encode.tokens._common import each, saliency

LAYER = -2


def edges_of(n: int, crops: int) -> np.ndarray:
    """Borders of contiguous crops; the first n mod crops get one token more."""
    sizes = np.full(crops, n // crops)
    sizes[: n % crops] += 1
    return np.concatenate([[0], np.cumsum(sizes)])


def variety(features: Array, edges: np.ndarray) -> np.ndarray:
    """(n,) variance of each token's cosines inside its crop, its own counted as 0. O(n² d /
    crops).
    """
    out = np.zeros(int(edges[-1]))
    for a, b in itertools.pairwise(edges):
        if b - a < 2:
            continue
        block = features[int(a) : int(b), :]
        grid = arrays.quantum(arrays.cosine(block, block)) / 2.0**arrays.GRID_BITS
        np.fill_diagonal(grid, 0.0)
        out[a:b] = grid.var(axis=1, ddof=1)
    return out


def quotas(share: np.ndarray, sizes: np.ndarray, k: int) -> np.ndarray:
    """floor(k * share), capped; what is left goes one by one to the largest shares with room."""
    out = np.minimum(np.floor(k * share + 1e-9).astype(np.int64), sizes)
    order = arrays.top_k(share, share.shape[0], arrays.FINE_BITS)
    while out.sum() < k:
        room = order[out[order] < sizes[order]][: k - int(out.sum())]
        out[room] += 1
    return out


@register
@dataclass(frozen=True)
class HoloV(TokenMethod):
    """Quotas for contiguous crops, attention inside them."""

    name: ClassVar[str] = "holov"
    summary: ClassVar[str] = "spreads the budget over strips by attention and variety"
    paper: ClassVar[Paper | None] = Paper(
        "Don't Just Chase Highlighted Tokens in MLLMs: Revisiting Holistic Context Retention",
        "Zou, Lu, Wang, Yan, Lyu, Zheng, Zhang, Hu",
        2025,
        "2510.02912",
        "Apache-2.0",
    )
    evidence: ClassVar[Evidence] = "reference"
    needs: ClassVar[frozenset[Need]] = frozenset({Need("saliency", LAYER)})

    crops: int = setting(16, "contiguous parts of the sequence", low=1)
    weight: float = setting(0.09, "weight of the variety beside the attention", low=0.0)

    def select(
        self, segments: list[Segment], counts: Counts, question: Question | None, rng: Rng
    ) -> list[Reduction]:
        def choose(segment: Segment, k: int) -> Reduction:
            score = saliency(segment, LAYER, self.name)
            edges = edges_of(segment.n, min(self.crops, segment.n))
            attention, varied = 1000.0 * score, variety(segment.features, edges)
            level = float(np.abs(varied).mean())
            if level > 0.0:
                varied = varied * (float(np.abs(attention).mean()) / level)
            total = attention + self.weight * varied
            sizes = np.diff(edges)
            mean = np.add.reduceat(total, edges[:-1]) / sizes
            whole = float(mean.sum())
            share = mean / whole if whole > 0.0 else np.full(sizes.shape[0], 1 / sizes.shape[0])
            kept = [
                a + arrays.top_k(score[a:b], int(q), arrays.FINE_BITS)
                for a, b, q in zip(edges[:-1], edges[1:], quotas(share, sizes, k), strict=True)
            ]
            return Reduction.pick(np.concatenate(kept), segment.n)

        return each(segments, counts, choose)
