"""FasterVLM: the tokens that the encoder's CLS token attends to.

Paper: Q. Zhang, A. Cheng, M. Lu, Z. Zhuo, M. Wang, J. Cao, S. Guo, Q. She, S. Zhang, "[CLS]
Attention is All You Need for Training-Free Visual Token Pruning: Make VLM Inference Faster", 2024,
arXiv 2412.01818 (version 1): mean over heads of the CLS attention in the penultimate
block, top k, in spatial order. A tower without CLS token gives received attention instead.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from foveate.core import arrays
from foveate.core.budget import Counts
from foveate.core.method import Evidence, Paper, Rng, TokenMethod
from foveate.core.registry import register
from foveate.core.views import Need, Question, Reduction, Segment
from foveate.encode.tokens._common import each, saliency

LAYER = -2


@register
@dataclass(frozen=True)
class FasterVLM(TokenMethod):
    """Top k by encoder attention. O(n log n)."""

    name: ClassVar[str] = "fastervlm"
    summary: ClassVar[str] = "keeps the tokens with the highest encoder attention"
    paper: ClassVar[Paper | None] = Paper(
        "[CLS] Attention is All You Need for Training-Free Visual Token Pruning",
        "Zhang, Cheng, Lu, Zhuo, Wang, Cao, Guo, She, Zhang",
        2024,
        "2412.01818",
        "Apache-2.0",
    )
    evidence: ClassVar[Evidence] = "golden"
    needs: ClassVar[frozenset[Need]] = frozenset({Need("saliency", LAYER)})

    def select(
        self, segments: list[Segment], counts: Counts, question: Question | None, rng: Rng
    ) -> list[Reduction]:
        def choose(segment: Segment, k: int) -> Reduction:
            score = saliency(segment, LAYER, self.name)
            return Reduction.pick(arrays.top_k(score, k, arrays.FINE_BITS), segment.n)

        return each(segments, counts, choose)
