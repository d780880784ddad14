"""MMTok: tokens that cover both the words of the question and the picture.

Paper: S. Dong, J. Hu, M. Zhang, M. Yin, Y. Fu, Q. Qian, "MMTok: Multimodal Coverage Maximization
for Efficient Inference of VLMs", ICLR 2026, arXiv 2508.18264. Two sets of rows are to be covered by
the chosen tokens: for each of m words softmax(cos(word, token) / tau_t) / m, with the words' input
embeddings and projected tokens; for each of n tokens alpha * softmax(cos(token, token) / tau_v) /
n, with encoder features. Greedy maximum of the sum over rows of the largest entry among the chosen.

Differs from the authors' code: all words of the turn take part, where theirs filters key words by a
list; token rows are rounded to 2**-30 of their largest entry, so that gains are exact sums.
"""

from __future__ import annotations

import math
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
    """(m, n): for each word and token, softmax over tokens of cosine / tau, divided by m."""
    grid = arrays.quantum(arrays.cosine(on_device_of(words, features), features)) / _ONE
    weight = np.exp((grid - grid.max(axis=1, keepdims=True)) / tau)
    return weight / weight.sum(axis=1, keepdims=True) / grid.shape[0]


class TokenRows:
    """alpha * softmax(cos(token, token) / tau) / n for n tokens, as whole multiples of `unit`.

    The unit is 2**-30 of the largest entry, so that entries fit int32 and sums are exact in any
    order; it is never below 2**-52, so that a word's row fits the same grid.
    """

    def __init__(self, features: Array, tau: float, alpha: float) -> None:
        self._s = arrays.Similarity(features, "encoder features")
        self._tau = tau
        n = self._s.n
        mass, top = np.zeros(n), np.zeros(n)
        for a, part in self._s.upper():
            b = a + part.shape[0]
            kernel = self._kernel(part)
            mass[a:b] += kernel.sum(axis=1)
            mass[b:] += kernel[:, b - a :].sum(axis=0)
            top[a:b] = np.maximum(top[a:b], kernel.max(axis=1))
            top[b:] = np.maximum(top[b:], kernel[:, b - a :].max(axis=0, initial=0.0))
        scale = alpha / (n * mass)
        self.unit = max(2.0**-52, 2.0 ** (math.frexp(float((scale * top).max()))[1] - 30))
        self._scale = scale / self.unit

    def _kernel(self, cosines: np.ndarray) -> np.ndarray:
        out = cosines * (1.0 / _ONE)
        out -= 1.0
        out /= self._tau
        return np.exp(out, out=out)

    def gains(self) -> np.ndarray:
        """(n,) sum of each token's column."""
        gain = np.zeros(self._s.n)
        for a, part in self._s.upper():
            b = a + part.shape[0]
            kernel = self._kernel(part)
            down = kernel[:, b - a :] * self._scale[a:b, None]
            gain[b:] += np.rint(down, out=down).sum(axis=0)
            kernel *= self._scale[a:]
            gain[a:b] += np.rint(kernel, out=kernel).sum(axis=1)
        return gain

    def rows(self, indices: np.ndarray) -> np.ndarray:
        """(b, n) int32: rows of several tokens."""
        cosines = self._s.rows(indices)
        for i in range(0, indices.size, 16):  # float64 in strips that stay in the cache
            part = self._kernel(cosines[i : i + 16])
            part *= self._scale[indices[i : i + 16], None]
            cosines[i : i + 16] = np.rint(part, out=part)
        return cosines

    def column(self, j: int) -> np.ndarray:
        """(n,) what token j gives to every row."""
        return np.rint(self._kernel(self._s.row(j)[None])[0] * self._scale)


def cover_both(text: np.ndarray, features: Array, k: int, tau: float, alpha: float) -> np.ndarray:
    """k tokens by coverage of text rows (m, n) and of softmax rows of the features (n, c)."""
    vision = TokenRows(features, tau, alpha)
    words = np.rint(text / vision.unit).astype(np.int64)
    gain = vision.gains() + words.sum(axis=0)
    return arrays.greedy_cover(vision.rows, vision.column, gain, k, extra=words)


@register
@dataclass(frozen=True)
class MMTok(TokenMethod):
    """Facility location on words and tokens. O(n²c), see core._cover."""

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
