"""CDPruner: the most diverse tokens under a determinant that the question weighs, in two named
variants.

Paper: Q. Zhang, M. Liu, L. Li, M. Lu, Y. Zhang, J. Pan, Q. She, S. Zhang, "Beyond Attention or
Similarity: Maximizing Conditional Diversity for Token Pruning in MLLMs", NeurIPS 2025, arXiv
2506.10967. With the cosines S of the projected tokens and relevances r, the greedy maximum of
det(diag(r) S diag(r)) over k tokens (determinantal point process, MAP).

`cdpruner-clip`: r from the cosine of patch and question in the joint space of a text tower that the
user supplies, with the minus sign of the authors' code (raw CLIP patch-text similarity is
inverted), averaged and brought to [0, 1] by (r - min + 1e-6) / (max - min). `cdpruner-lm`: for
models without such a tower, the mean cosine of projected token and word embedding, without minus.
They are different methods under their own names: neither falls back to the other.

Patches come to the joint space from the encoder's penultimate block by the final layer norm and the
visual projection of the CLIP model that the user supplies (text_tower=), since a checkpoint of a
vision-language model holds neither that projection nor a text tower. Differs from the authors' code:
minimum and maximum are of one segment, where theirs mix a whole batch; a question that is longer
than the text tower takes is cut into parts with a begin and an end each, where theirs cut the ids
alone; equal relevances count as one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from foveate.core import arrays
from foveate.core.budget import Counts
from foveate.core.errors import InputError, UnsupportedError
from foveate.core.method import Evidence, Paper, Rng, TokenMethod
from foveate.core.registry import register
from foveate.core.views import Array, Need, Question, Reduction, Segment
from foveate.encode.tokens._common import each, joint_features, on_device_of, words_of

LAYER = -2
_PAPER = Paper(
    "Beyond Attention or Similarity: Maximizing Conditional Diversity for Token Pruning in MLLMs",
    "Zhang, Liu, Li, Lu, Zhang, Pan, She, Zhang",
    2025,
    "2506.10967",
    "Apache-2.0",
)


def mean_cosine(features: Array, texts: Array) -> np.ndarray:
    """(n,): mean cosine of each row of (n, c) to the rows of texts (q, c). O((n + q) c)."""
    xp = arrays.namespace(features)
    centre = xp.mean(arrays.unit(on_device_of(texts, features)), axis=0)
    return arrays.scores_of(arrays.unit(features) @ centre, "similarity to the question")


def to_unit_range(raw: np.ndarray) -> np.ndarray:
    """(raw - min + 1e-6) / (max - min); equal values give ones."""
    # On the comparison grid first: noise must not be stretched to a full range.
    grid = arrays.quantum(raw) / 2.0**arrays.GRID_BITS
    width = float(grid.max() - grid.min())
    return np.ones_like(grid) if width == 0.0 else (raw - raw.min() + 1e-6) / width


@register
@dataclass(frozen=True)
class CDPrunerCLIP(TokenMethod):
    """Conditional diversity with relevance from a CLIP text tower. O(n²d/2 + n k²)."""

    name: ClassVar[str] = "cdpruner-clip"
    summary: ClassVar[str] = "diverse tokens weighed by a CLIP text tower's view of the question"
    paper: ClassVar[Paper | None] = _PAPER
    evidence: ClassVar[Evidence] = "golden"
    needs: ClassVar[frozenset[Need]] = frozenset({Need("clip", LAYER), Need("features", LAYER)})

    def select(
        self, segments: list[Segment], counts: Counts, question: Question | None, rng: Rng
    ) -> list[Reduction]:
        if question is None:
            raise InputError(f"{self.name} chooses by the question: ask one, or use divprune")
        if question.clip is None:
            raise UnsupportedError(
                f"{self.name} needs a text tower for the question: supply one, or use cdpruner-lm"
            )
        clip = np.atleast_2d(arrays.to_numpy(question.clip))
        arrays.check_finite(clip, "question embedding")

        def choose(segment: Segment, k: int) -> Reduction:
            patches = joint_features(segment, self.name)
            if int(patches.shape[1]) != int(clip.shape[1]):
                raise UnsupportedError(
                    f"{self.name}: patches have {int(patches.shape[1])} dimensions, the question's "
                    f"embedding {int(clip.shape[1])}; supply the CLIP or SigLIP model that the "
                    "vision tower was taken from, whose picture side brings patches to the words' "
                    "space, or use cdpruner-lm"
                )
            relevance = to_unit_range(-mean_cosine(patches, clip))
            return Reduction.pick(arrays.greedy_dpp(segment.features, relevance, k), segment.n)

        return each(segments, counts, choose)


@register
@dataclass(frozen=True)
class CDPrunerLM(TokenMethod):
    """Conditional diversity with relevance from the language model's word embeddings."""

    name: ClassVar[str] = "cdpruner-lm"
    summary: ClassVar[str] = "diverse tokens weighed by likeness to the question's word embeddings"
    paper: ClassVar[Paper | None] = _PAPER
    evidence: ClassVar[Evidence] = "reference"
    needs: ClassVar[frozenset[Need]] = frozenset({Need("question")})

    def select(
        self, segments: list[Segment], counts: Counts, question: Question | None, rng: Rng
    ) -> list[Reduction]:
        words = words_of(question, self.name)

        def choose(segment: Segment, k: int) -> Reduction:
            relevance = to_unit_range(mean_cosine(segment.features, words))
            return Reduction.pick(arrays.greedy_dpp(segment.features, relevance, k), segment.n)

        return each(segments, counts, choose)
