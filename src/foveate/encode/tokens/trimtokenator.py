"""TrimTokenator: tokens near the question's words, then the least alike among them.

Paper: H. Zhang, M. Lyu, C. He, Y. Ao, Y. Lin, "TrimTokenator: Towards Adaptive Visual Token Pruning
for Large Multimodal Models", 2025, arXiv 2509.00320. Two stages: (1) a token's mean squared
distance to the question's input embeddings stands for (minus) its mutual information with the text,
the nearest share of the tokens goes on; (2) RepMax: start with the token of the lowest mean cosine
to the others, add the one with the lowest mean cosine to the chosen until k.

Reconstructed: no code was released, and the share that passes stage 1 (0.8 of the tokens) is
second-hand.
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
from foveate.encode.tokens._common import blocks, each, on_device_of, words_of


def closeness(features: Array, words: Array) -> np.ndarray:
    """(n,): minus the mean squared distance of each token (n, d) to the words (q, d). O((n + q)
    d).
    """
    xp = arrays.namespace(features)
    text = on_device_of(words, features)
    centre = xp.mean(text, axis=0)
    spread = float(xp.mean(xp.sum(text * text, axis=1)))
    out = np.empty(int(features.shape[0]), dtype=np.float64)
    for part, rows in blocks(features):
        squared = xp.sum(rows * rows, axis=1) - 2.0 * (rows @ centre) + spread
        out[part] = -arrays.to_numpy(squared)
    return out


@register
@dataclass(frozen=True)
class TrimTokenator(TokenMethod):
    """Text alignment, then RepMax, each segment alone. O(n d + m²d/2) with m = share * n."""

    name: ClassVar[str] = "trimtokenator"
    summary: ClassVar[str] = "keeps tokens near the question's words that are unlike each other"
    paper: ClassVar[Paper | None] = Paper(
        "TrimTokenator: Towards Adaptive Visual Token Pruning for Large Multimodal Models",
        "Zhang, Lyu, He, Ao, Lin",
        2025,
        "2509.00320",
    )
    evidence: ClassVar[Evidence] = "reconstructed"
    needs: ClassVar[frozenset[Need]] = frozenset({Need("question")})

    share: float = setting(0.8, "share of the tokens that passes the text stage", low=0.01, high=1)

    def select(
        self, segments: list[Segment], counts: Counts, question: Question | None, rng: Rng
    ) -> list[Reduction]:
        words = words_of(question, self.name)

        def choose(segment: Segment, k: int) -> Reduction:
            first = max(k, int(self.share * segment.n + 0.5))
            near = arrays.top_k(closeness(segment.features, words), first, arrays.FINE_BITS)
            near = arrays.ascending(near)
            kept = arrays.greedy_mean(arrays.take(segment.features, near), k)
            return Reduction.pick(near[kept], segment.n)

        return each(segments, counts, choose)
