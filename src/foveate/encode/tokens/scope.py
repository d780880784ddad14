"""SCOPE: tokens that cover the picture, weighed by how much the encoder attends to them.

Paper: J. Deng, W. Li, J. T. Zhou, Y. He, "SCOPE: Saliency-Coverage Oriented Token Pruning for
Efficient Multimodel LLMs", NeurIPS 2025, arXiv 2510.24214. Coverage of token i by a chosen set is
its largest cosine to a chosen token, 0 at the start; token j is added that has the largest
saliency_j ** alpha * sum_i max(0, cos(i, j) - coverage_i). Cosines are those of encoder features of
the penultimate block, saliency is the CLS (or received) attention.

Gains are kept up to date row by row as the cover rises, which changes the time and not the choice.
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


def cover(features: Array, quality: np.ndarray, k: int) -> np.ndarray:
    """k tokens of (n, c) by quality-weighted coverage gain, in the order of choice. About 4 n² c
    multiplications without a matrix, n² c / 2 with one; see core._cover.
    """
    s = arrays.Similarity(features, "encoder features")
    gain = np.zeros(s.n, dtype=np.int64)
    for a, part in s.upper():
        b = a + part.shape[0]
        positive = np.maximum(part, 0)
        gain[a:b] += positive.sum(axis=1, dtype=np.int64)
        gain[b:] += positive[:, b - a :].sum(axis=0, dtype=np.int64)
    return arrays.greedy_cover(s.rows, s.row, gain, k, quality)


@register
@dataclass(frozen=True)
class SCOPE(TokenMethod):
    """Facility location on encoder cosines, weighed by saliency."""

    name: ClassVar[str] = "scope"
    summary: ClassVar[str] = "keeps attended tokens that cover what is not covered yet"
    paper: ClassVar[Paper | None] = Paper(
        "SCOPE: Saliency-Coverage Oriented Token Pruning for Efficient Multimodel LLMs",
        "Deng, Li, Zhou, He",
        2025,
        "2510.24214",
    )
    evidence: ClassVar[Evidence] = "reference"
    needs: ClassVar[frozenset[Need]] = frozenset({Need("saliency", LAYER), Need("features", LAYER)})

    alpha: float = setting(
        1.0, "power of the attention, 0 leaves coverage alone", low=0.0, high=4.0
    )

    def select(
        self, segments: list[Segment], counts: Counts, question: Question | None, rng: Rng
    ) -> list[Reduction]:
        def choose(segment: Segment, k: int) -> Reduction:
            score = saliency(segment, LAYER, self.name)
            quality = np.maximum(score, 0.0) ** self.alpha
            features = encoder_features(segment, LAYER, self.name)
            return Reduction.pick(cover(features, quality, k), segment.n)

        return each(segments, counts, choose)
