"""VisPruner: half of the tokens by encoder attention, the other half thinned of duplicates.

Paper: Q. Zhang, A. Cheng, M. Lu, R. Zhang, Z. Zhuo, J. Cao, S. Guo, Q. She, S. Zhang, "Beyond
Text-Visual Attention: Exploiting Visual Cues for Effective Token Pruning in VLMs", ICCV 2025, arXiv
2412.01818 (version 2 on). Important tokens are the top share by CLS (or received)
attention. The rest, ordered by falling attention, is split into even and odd positions in rounds;
each even token's largest cosine to an odd one says how redundant it is, and the most redundant go,
until the diverse share is left. Cosines are those of encoder features before the projector.

What the authors' code does and this file follows: the even survivors of a round are left in falling
order of their redundancy, before the odd ones, and this order decides the next split.

What differs: an odd number of tokens leaves one more at even positions (their code fails); a round
drops max(step, R // 64) of R tokens instead of `step`, equal up to 575 tokens (their tiles hold
576), so that the number of rounds grows with log n, not n.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from foveate.core import arrays
from foveate.core.budget import Counts
from foveate.core.method import Evidence, Paper, Rng, TokenMethod, setting
from foveate.core.registry import register
from foveate.core.views import Array, Need, Question, Reduction, Segment
from foveate.encode.tokens._common import each, encoder_features, saliency

LAYER = -2


def thin_out(features: Array, order: np.ndarray, k: int, step: int) -> np.ndarray:
    """Positions of the k tokens of `order` (r,) that rounds of even/odd duplicate removal
    leave.

    O(r²c) for the cosines of up to GRAM_TOKENS tokens, once; above, O(r²c) a round without a
    matrix.
    """
    if k <= 0:
        return order[:0]
    u = arrays.take(features, order)
    dense = None
    if order.size <= arrays.GRAM_TOKENS:
        dense = arrays.Similarity(u, bits=arrays.ORDER_BITS).dense
    else:
        u = arrays.unit(u)
    left = np.arange(order.size)
    while left.size > k:
        even, odd = left[::2], left[1::2]
        if dense is not None:
            twin = dense[np.ix_(even, odd)].max(axis=1)
        else:
            twin, _ = arrays.nearest(
                arrays.take(u, even),
                arrays.take(u, odd),
                normalised=True,
                bits=arrays.ORDER_BITS,
            )
        drop = min(max(step, left.size // 64), left.size - k)
        ranked = even[np.argsort(-twin.astype(np.int64), kind="stable")]
        left = np.concatenate([ranked[drop:], odd])
    return order[left]


@register
@dataclass(frozen=True)
class VisPruner(TokenMethod):
    """Important tokens by attention, diverse ones by duplicate removal."""

    name: ClassVar[str] = "vispruner"
    summary: ClassVar[str] = "keeps attended tokens, and a diverse rest without duplicates"
    paper: ClassVar[Paper | None] = Paper(
        "Beyond Text-Visual Attention: Exploiting Visual Cues for Effective Token Pruning in VLMs",
        "Zhang, Cheng, Lu, Zhang, Zhuo, Cao, Guo, She, Zhang",
        2025,
        "2412.01818",
        "Apache-2.0",
    )
    evidence: ClassVar[Evidence] = "golden"
    needs: ClassVar[frozenset[Need]] = frozenset({Need("saliency", LAYER), Need("features", LAYER)})

    important: float = setting(
        0.5, "share of the kept tokens that attention chooses", low=0.0, high=1.0
    )
    step: int = setting(8, "tokens that a round of duplicate removal drops", low=1)

    def select(
        self, segments: list[Segment], counts: Counts, question: Question | None, rng: Rng
    ) -> list[Reduction]:
        def choose(segment: Segment, k: int) -> Reduction:
            score = saliency(segment, LAYER, self.name)
            order = arrays.top_k(score, segment.n, arrays.FINE_BITS)
            first = int(k * self.important)
            kept = order[:first]
            if first < k:
                features = encoder_features(segment, LAYER, self.name)
                diverse = thin_out(features, order[first:], k - first, self.step)
                kept = np.concatenate([kept, diverse])
            return Reduction.pick(kept, segment.n)

        return each(segments, counts, choose)
