"""HiPrune: anchors from a middle encoder layer with their neighbours, the rest from a deep
layer.

Paper: J. Liu, F. Du, G. Zhu, N. Lian, J. Li, B. Chen, "HiPrune: Training-Free Visual Token Pruning
via Hierarchical Attention in Vision-Language Models", 2025, arXiv 2508.00553. Anchors are the
round(alpha * k / 5) tokens that receive most attention in a middle layer, each with its four
neighbours on the grid (buffers); what is left of k goes to the tokens that receive most attention
in a deep layer (registers). Received attention is the mean over heads and all queries.

Differs from the authors' code: neighbours off the grid do not exist, where theirs wrap at row ends
and fall on the first or last token (`wrap=true` restores that); where anchors and buffers exceed k,
anchors come first, then buffers in the order of their anchors.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from foveate.core import arrays
from foveate.core.budget import Counts
from foveate.core.method import Evidence, Paper, Rng, TokenMethod, setting
from foveate.core.registry import register
from foveate.core.views import Need, Question, Reduction, Segment
from foveate.encode.tokens._common import each, full_grid, received


def around(anchors: np.ndarray, h: int, w: int, n: int, wrap: bool) -> np.ndarray:
    """Left, right, upper and lower neighbours of raster positions on t grids h x w, anchor by
    anchor.
    """
    shifted = anchors[:, None] + np.array([-1, 1, -w, w])
    if wrap:
        return np.clip(shifted, 0, n - 1).ravel()
    x, y = anchors % w, (anchors // w) % h
    inside = np.stack([x > 0, x < w - 1, y > 0, y < h - 1], axis=1)
    return shifted[inside]


def hierarchy(
    middle: np.ndarray, deep: np.ndarray, k: int, alpha: float, h: int, w: int, wrap: bool
) -> np.ndarray:
    """The k positions for attention received in a middle and a deep layer, (n,) each."""
    n = middle.shape[0]
    anchors = arrays.top_k(middle, round(alpha * k / 5), arrays.FINE_BITS)
    first = np.concatenate([anchors, around(anchors, h, w, n, wrap)])
    # Distinct, in the order of first appearance: anchors, then buffers.
    _, at = np.unique(first, return_index=True)
    kept = first[np.sort(at)][:k]
    rest = arrays.nonzero(~arrays.mask_of(kept, n))
    register_tokens = rest[arrays.top_k(deep[rest], k - kept.size, arrays.FINE_BITS)]
    return np.concatenate([kept, register_tokens])


@register
@dataclass(frozen=True)
class HiPrune(TokenMethod):
    """Anchors, buffers, registers. O(n log n)."""

    name: ClassVar[str] = "hiprune"
    summary: ClassVar[str] = (
        "keeps a middle layer's objects with their surroundings, then a deep layer's"
    )
    paper: ClassVar[Paper | None] = Paper(
        "HiPrune: Training-Free Visual Token Pruning via Hierarchical Attention",
        "Liu, Du, Zhu, Lian, Li, Chen",
        2025,
        "2508.00553",
        "MIT",
    )
    evidence: ClassVar[Evidence] = "golden"
    needs: ClassVar[frozenset[Need]] = frozenset({Need("received", 8), Need("received", -2)})

    alpha: float = setting(
        0.1, "share of the kept tokens for anchors and buffers", low=0.0, high=1.0
    )
    middle: int = setting(8, "encoder block of the anchors, counted from 0 (8 of 24, 15 of 32)")
    deep: int = setting(-2, "encoder block of the registers, negative from the end")
    wrap: bool = setting(False, "neighbours wrap at row ends, as in the authors' code")

    def __post_init__(self) -> None:
        super().__post_init__()
        wanted = frozenset({Need("received", self.middle), Need("received", self.deep)})
        object.__setattr__(self, "needs", wanted)

    def select(
        self, segments: list[Segment], counts: Counts, question: Question | None, rng: Rng
    ) -> list[Reduction]:
        def choose(segment: Segment, k: int) -> Reduction:
            _, h, w = full_grid(segment, self.name)
            middle = received(segment, self.middle, self.name)
            deep = received(segment, self.deep, self.name)
            kept = hierarchy(middle, deep, k, self.alpha, h, w, self.wrap)
            return Reduction.pick(kept, segment.n)

        return each(segments, counts, choose)
