"""DivPrune: a subset of tokens as far from each other as possible, found greedily.

Paper: S. R. Alvar, G. Singh, M. Akbari, Y. Zhang, "DivPrune: Diversity-based Visual Token Pruning
for Large Multimodal Models", CVPR 2025, arXiv 2503.02175: the max-min diversity problem and its
greedy solution. Distance is 1 - cosine between projected tokens; the first token is the one whose
nearest neighbour is furthest, each next one has the largest distance to its nearest chosen token.

Differs from the authors' code: the problem is solved for each segment alone, so that one image of a
request never decides over another and counts are known beforehand; their code takes the whole flat
list of an image's tiles with its newline tokens.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from foveate.core import arrays
from foveate.core.budget import Counts
from foveate.core.method import Evidence, Paper, Rng, TokenMethod
from foveate.core.registry import register
from foveate.core.views import Question, Reduction, Segment
from foveate.encode.tokens._common import each


@register
@dataclass(frozen=True)
class DivPrune(TokenMethod):
    """Max-min diversity of the projected tokens (n, d). O(n²d/2 + nk)."""

    name: ClassVar[str] = "divprune"
    summary: ClassVar[str] = "keeps tokens that are far from each other (max-min diversity)"
    paper: ClassVar[Paper | None] = Paper(
        "DivPrune: Diversity-based Visual Token Pruning for Large Multimodal Models",
        "Alvar, Singh, Akbari, Zhang",
        2025,
        "2503.02175",
        "CC BY-NC 4.0",
    )
    evidence: ClassVar[Evidence] = "reference"

    def select(
        self, segments: list[Segment], counts: Counts, question: Question | None, rng: Rng
    ) -> list[Reduction]:
        def choose(segment: Segment, k: int) -> Reduction:
            return Reduction.pick(arrays.greedy_maxmin(segment.features, k), segment.n)

        return each(segments, counts, choose)
