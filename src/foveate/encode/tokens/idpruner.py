"""IDPruner in a training-free form: importance against redundancy, by maximal marginal
relevance.

Paper: Y. Tan, Y. Sun, S. Huang, H. Liu, G. Yu, J. Zhu, Y. Deng, "IDPruner: Harmonizing Importance
and Diversity in Visual Token Pruning for MLLMs", 2026, arXiv 2602.13315. Add the token with the
largest balance * importance - (1 - balance) * max cosine to the chosen, cosines of projected
tokens, importance brought to [0, 1] by its minimum and maximum.

Reconstructed: the paper takes the importance from a trained scorer; here it is the encoder's CLS
(or received) attention, so the paper's figures do not carry over.
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
from foveate.encode.tokens._common import each, saliency

LAYER = -2


def importance(score: np.ndarray) -> np.ndarray:
    """(score - min) / (max - min); equal scores have importance 0."""
    width = float(score.max() - score.min())
    return (score - score.min()) / width if width > 0.0 else np.zeros_like(score)


@register
@dataclass(frozen=True)
class IDPruner(TokenMethod):
    """Maximal marginal relevance of encoder attention. O(n²d/2 + nk)."""

    name: ClassVar[str] = "idpruner"
    summary: ClassVar[str] = "keeps attended tokens that are unlike those already kept"
    paper: ClassVar[Paper | None] = Paper(
        "IDPruner: Harmonizing Importance and Diversity in Visual Token Pruning for MLLMs",
        "Tan, Sun, Huang, Liu, Yu, Zhu, Deng",
        2026,
        "2602.13315",
        "that of Tencent/AngelSlim",
    )
    evidence: ClassVar[Evidence] = "reconstructed"
    needs: ClassVar[frozenset[Need]] = frozenset({Need("saliency", LAYER)})

    balance: float = setting(0.5, "weight of importance against redundancy", low=0.0, high=1.0)

    def select(
        self, segments: list[Segment], counts: Counts, question: Question | None, rng: Rng
    ) -> list[Reduction]:
        def choose(segment: Segment, k: int) -> Reduction:
            score = importance(saliency(segment, LAYER, self.name))
            kept = arrays.greedy_mmr(segment.features, score, self.balance, k)
            return Reduction.pick(kept, segment.n)

        return each(segments, counts, choose)
