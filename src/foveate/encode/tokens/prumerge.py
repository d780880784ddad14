"""PruMerge and PruMerge+: tokens that stand out in the encoder's attention, with their
neighbours folded in.

Paper: Y. Shang, M. Cai, B. Xu, Y. J. Lee, Y. Yan, "LLaVA-PruMerge: Adaptive Token Reduction for
Efficient Large Multimodal Models", ICCV 2025, arXiv 2403.15388. Chosen are the
outliers of the attention (score above Q3 + 1.5 IQR); "+" adds evenly spaced tokens. To each chosen
token the features of the 32 tokens with the most similar keys are added, weighted by their
attention (the weights are not renormalised); one more token is the attention-weighted sum of all
that were not chosen.

Without a budget the count follows from the picture (`counts` is "adaptive"). With one the method is
reconciled to it: k tokens, one of them the sum of the rest; PruMerge takes the k - 1 most attended,
PruMerge+ the outliers first and then evenly spaced ones.

Differs from the authors' code: scores are the layer's own attention (mean over heads; received
attention without CLS) where theirs is a single head over the full width; the count is the number of
outliers, which their floating-point ratio can lose one of; quartiles are of one segment, not of the
batch; sampling covers any number of tokens, where theirs is fixed to 575 and fails above a third;
the order is spatial, the sum stands at the most attended token that was not chosen.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from typing import ClassVar, Literal

import numpy as np

from foveate.core import arrays
from foveate.core.budget import Budget, Counts
from foveate.core.method import Evidence, Paper, Rng, TokenMethod, setting
from foveate.core.registry import register
from foveate.core.views import Array, Need, Question, Reduction, Segment, Space
from foveate.encode.tokens._common import each, encoder_of, full_keys, saliency
from foveate.encode.tokens.uniform import spread

LAYER = -1
_PAPER = Paper(
    "LLaVA-PruMerge: Adaptive Token Reduction for Efficient Large Multimodal Models",
    "Shang, Cai, Xu, Lee, Yan",
    2024,
    "2403.15388",
    "Apache-2.0",
)


def outliers(score: np.ndarray) -> int:
    """How many of the scores (n,) lie above Q3 + 1.5 (Q3 - Q1)."""
    low, high = arrays.quantile(score, 0.25), arrays.quantile(score, 0.75)
    return int((score > high + 1.5 * (high - low)).sum())


def neighbours(keys: Array, chosen: np.ndarray, count: int) -> np.ndarray:
    """(t, count): for each chosen token the others with the most similar keys (n, a), by cosine."""
    n = int(keys.shape[0])
    count = min(count, n - 1)
    out = np.empty((chosen.size, count), dtype=np.int64)
    block = np.empty((min(chosen.size, 256), n), dtype=np.int32)
    place = np.arange(n)
    for a in range(0, chosen.size, 256):
        part = chosen[a : a + 256]
        own = arrays.unit(keys, part)
        close = block[: part.size]
        # Blocks of keys are brought to length one anew for each part: a float64 copy of all of
        # them would cost more memory than the time is worth.
        for b in range(0, n, 512):
            close[:, b : b + 512] = arrays.quantum(own @ arrays.unit(keys[b : b + 512, :]).T)
        close[np.arange(part.size), part] = -(2 << arrays.GRID_BITS)
        for i in range(0, part.size, 16):
            # The position breaks ties: every value differs, so a partition is a stable choice.
            rank = place - close[i : i + 16].astype(np.int64) * n
            found = np.argpartition(rank, count - 1, axis=1)[:, :count]
            out[a + i : a + i + 16] = found
    return out


def fold(score: np.ndarray, keys: Array, chosen: np.ndarray, count: int, space: Space) -> Reduction:
    """Chosen tokens plus attention-weighted neighbours, and the weighted sum of the others."""
    n, t = score.shape[0], chosen.size
    close = neighbours(keys, chosen, count)
    rest = arrays.nonzero(~arrays.mask_of(chosen, n))
    rows = [np.arange(t), np.repeat(np.arange(t), close.shape[1])]
    cols = [chosen, close.ravel()]
    weights = [np.ones(t), score[close.ravel()]]
    anchor = chosen
    if rest.size:
        last = rest[arrays.top_k(score[rest], 1, arrays.FINE_BITS)]
        anchor = np.concatenate([chosen, last])
        rows.append(np.full(rest.size, t))
        cols.append(rest)
        weights.append(score[rest])
    parts = (np.concatenate(rows), np.concatenate(cols), np.concatenate(weights))
    return Reduction.of(anchor, *parts, n, space)


@register
@dataclass(frozen=True)
class PruMerge(TokenMethod):
    """Attention outliers with their key neighbours folded in. O(t n a)."""

    name: ClassVar[str] = "prumerge"
    summary: ClassVar[str] = (
        "keeps attention outliers and folds their neighbours in; count by content"
    )
    paper: ClassVar[Paper | None] = _PAPER
    evidence: ClassVar[Evidence] = "golden"
    counts: ClassVar[Literal["image", "request", "adaptive"]] = "adaptive"
    needs: ClassVar[frozenset[Need]] = frozenset(
        {Need("saliency", LAYER), Need("keys", LAYER), Need("features", -2)}
    )

    neighbours: int = setting(32, "tokens folded into each chosen one", low=1)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.budgeted:
            object.__setattr__(self, "counts", "image")

    @property
    def budgeted(self) -> bool:
        return any(b is not None for b in (self.keep, self.per_image, self.per_request))

    @property
    def budget(self) -> Budget:
        """The budget, or all tokens where none was set: then the picture decides."""
        return super().budget if self.budgeted else Budget(keep=Fraction(1))

    def chosen(self, score: np.ndarray, k: int | None) -> np.ndarray:
        """Tokens kept by name, without the sum of the rest; `k` None leaves the count to the
        scores.
        """
        want = max(1, outliers(score) if k is None else k - 1)
        return arrays.ascending(arrays.top_k(score, want, arrays.FINE_BITS))

    def select(
        self, segments: list[Segment], counts: Counts, question: Question | None, rng: Rng
    ) -> list[Reduction]:
        def choose(segment: Segment, k: int) -> Reduction:
            space: Space = "encoder" if encoder_of(segment, self.name).tokenwise else "projected"
            score = saliency(segment, LAYER, self.name)
            chosen = self.chosen(score, k if self.budgeted else None)
            keys = full_keys(segment, LAYER, self.name)
            if self.budgeted and k == 1:
                return Reduction.pick(chosen, segment.n)
            return fold(score, keys, chosen, self.neighbours, space)

        return each(segments, counts, choose, always=not self.budgeted)


@register
@dataclass(frozen=True)
class PruMergePlus(PruMerge):
    """PruMerge with evenly spaced tokens beside the outliers."""

    name: ClassVar[str] = "prumerge-plus"
    summary: ClassVar[str] = "prumerge with evenly spaced tokens beside the outliers"

    def chosen(self, score: np.ndarray, k: int | None) -> np.ndarray:
        found = max(1, outliers(score))
        n = score.shape[0]
        if k is None:
            top = arrays.top_k(score, found, arrays.FINE_BITS)
            # As in the authors' code, n - 1 for their 575: about three samples an outlier.
            return np.union1d(top, np.arange(0, n - 1, max(1, int(n / found) // 3)))
        want = max(1, k - 1)
        top = arrays.top_k(score, min(found, want), arrays.FINE_BITS)
        rest = arrays.nonzero(~arrays.mask_of(top, n))
        return np.union1d(top, rest[spread(rest.size, want - top.size)])
