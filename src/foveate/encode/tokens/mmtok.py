"""MMTok: tokens that cover both the words of the question and the picture.

Paper: S. Dong, J. Hu, M. Zhang, M. Yin, Y. Fu, Q. Qian, "MMTok: Multimodal Coverage Maximization
for Efficient Inference of VLMs", ICLR 2026, arXiv 2508.18264. Two sets of rows are to be covered by
the chosen tokens: for each of m words softmax(cos(word, token) / tau_t) / m, with the words' input
embeddings and projected tokens; for each of n tokens alpha * softmax(cos(token, token) / tau_v) /
n, with encoder features. Greedy maximum of the sum over rows of the largest entry among the chosen.

Differs from the authors' code: all words of the turn take part, where theirs filters key words by a
list.
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
from foveate.encode.tokens._common import each, encoder_features, on_device_of, words_of

LAYER = -2
_ONE = float(1 << arrays.GRID_BITS)


def text_rows(words: Array, features: Array, tau: float) -> np.ndarray:
    """(n, m): for each token and word, softmax over tokens of cosine / tau, divided by m."""
    grid = arrays.quantum(arrays.cosine(on_device_of(words, features), features)) / _ONE
    weight = np.exp((grid - grid.max(axis=1, keepdims=True)) / tau)
    return (weight / weight.sum(axis=1, keepdims=True)).T / grid.shape[0]


def cover_both(text: np.ndarray, features: Array, k: int, tau: float, alpha: float) -> np.ndarray:
    """k tokens by coverage of text rows (n, m) and of softmax rows of the features (n, c)."""
    s = arrays.Similarity(features, "encoder features")

    def kernel(block: np.ndarray) -> np.ndarray:
        return np.exp((block / _ONE - 1.0) / tau)

    mass = np.concatenate([kernel(b).sum(axis=1) for _, b in s.blocks()])
    scale = alpha / (s.n * mass)
    gain = np.concatenate([kernel(b) @ scale for _, b in s.blocks()]) + text.sum(axis=1)

    def columns(indices: np.ndarray) -> np.ndarray:
        return np.concatenate([text[indices], kernel(s.rows(indices)) * scale], axis=1)

    return arrays.greedy_cover(columns, gain, k)


@register
@dataclass(frozen=True)
class MMTok(TokenMethod):
    """Facility location on words and tokens. O(n²c/2 + n k)."""

    name: ClassVar[str] = "mmtok"
    summary: ClassVar[str] = "keeps tokens that cover the question's words and the picture"
    paper: ClassVar[Paper | None] = Paper(
        "MMTok: Multimodal Coverage Maximization for Efficient Inference of VLMs",
        "Dong, Hu, Zhang, Yin, Fu, Qian",
        2026,
        "2508.18264",
        "Apache-2.0",
    )
    evidence: ClassVar[Evidence] = "reference"
    needs: ClassVar[frozenset[Need]] = frozenset({Need("question"), Need("features", LAYER)})

    tau_text: float = setting(0.02, "softmax temperature of word rows (Qwen: 0.01)", low=0.001)
    tau_vision: float = setting(0.2, "softmax temperature of token rows", low=0.01)
    alpha: float = setting(0.5, "weight of the picture's coverage beside the words'", low=0.0)

    def select(
        self, segments: list[Segment], counts: Counts, question: Question | None, rng: Rng
    ) -> list[Reduction]:
        words = words_of(question, self.name)

        def choose(segment: Segment, k: int) -> Reduction:
            text = text_rows(words, segment.features, self.tau_text)
            features = encoder_features(segment, LAYER, self.name)
            kept = cover_both(text, features, k, self.tau_vision, self.alpha)
            return Reduction.pick(kept, segment.n)

        return each(segments, counts, choose)
