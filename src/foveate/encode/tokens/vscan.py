"""VScan, the encoder half: a local scan of every window, a global scan, and the rest merged in.

Paper: C. Zhang, K. Ma, T. Fang, W. Yu, H. Zhang, Z. Zhang, Y. Xie, K. Sycara, H. Mi, D. Yu, "VScan:
Rethinking Visual Token Reduction for Efficient Large Vision-Language Models", 2025, arXiv
2505.22654. Half of k is local: the most attended tokens of a shallow layer, spread
over windows of the grid; the other half is global: the most attended of a deep layer. Each dropped
token is then averaged into the kept token that is most similar to it (cosine of projected tokens).

Windows take tokens in falling attention up to ceil(local / windows) each, a remainder of the grid
joins the last window of its row or column (the rule of the authors' Qwen code). Where windows
divide the grid and the local half, this is also their rule for LLaVA; elsewhere that one keeps
fewer than k tokens, here k is always met.

VScan as a whole drops once more inside the language model, by the method `vscan-lm`:
`vscan:keep=1/6+vscan-lm:keep=1/3` in one plan is 96 of 576 tokens, and 32 from the middle layer on.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from foveate.core import arrays
from foveate.core.budget import Counts
from foveate.core.method import Evidence, Paper, Rng, TokenMethod, setting
from foveate.core.registry import register
from foveate.core.views import Array, Grid, Need, Question, Reduction, Segment
from foveate.encode.tokens._common import each, full_grid, saliency


def window_of(grid: Grid, side: int) -> np.ndarray:
    """(n,) window number of each token; each frame has its own windows of side x side tokens."""
    t, h, w = grid
    rows, columns = max(1, h // side), max(1, w // side)
    y = np.minimum(np.arange(h) // side, rows - 1)
    x = np.minimum(np.arange(w) // side, columns - 1)
    frame = (y[:, None] * columns + x[None, :]).ravel()
    return (np.arange(t)[:, None] * rows * columns + frame).ravel()


def local_scan(score: np.ndarray, window: np.ndarray, k: int) -> np.ndarray:
    """k tokens in falling score, at most ceil(k / windows) of a window; full windows pass
    theirs on.
    """
    if k <= 0:
        return np.empty(0, dtype=np.int64)
    cap = -(-k // (int(window.max()) + 1))
    order = arrays.top_k(score, score.shape[0], arrays.FINE_BITS)
    # Rank of each token inside its window, best first: a stable sort by window keeps the order.
    grouped = order[np.argsort(window[order], kind="stable")]
    starts = np.searchsorted(window[grouped], np.arange(int(window.max()) + 1))
    rank = np.empty(score.shape[0], dtype=np.int64)
    rank[grouped] = np.arange(grouped.size) - starts[window[grouped]]
    allowed = order[rank[order] < cap]
    over = order[rank[order] >= cap]
    return np.concatenate([allowed, over])[:k]


def merge_into(features: Array, kept: np.ndarray) -> Reduction:
    """Every token of (n, d) outside `kept` averaged into its most similar kept one. O(n k d)."""
    n = int(features.shape[0])
    kept = arrays.ascending(kept)
    rest = arrays.nonzero(~arrays.mask_of(kept, n))
    _, home = arrays.nearest(arrays.take(features, rest), arrays.take(features, kept))
    rows = np.concatenate([np.arange(kept.size), home])
    weights = 1.0 / np.bincount(rows, minlength=kept.size)[rows]
    return Reduction.of(kept, rows, np.concatenate([kept, rest]), weights, n)


@register
@dataclass(frozen=True)
class VScan(TokenMethod):
    """Local and global scan, then merging into the nearest kept token."""

    name: ClassVar[str] = "vscan"
    summary: ClassVar[str] = (
        "keeps tokens of a local and a global scan, and merges the rest into them"
    )
    paper: ClassVar[Paper | None] = Paper(
        "VScan: Rethinking Visual Token Reduction for Efficient Large Vision-Language Models",
        "Zhang, Ma, Fang, Yu, Zhang, Zhang, Xie, Sycara, Mi, Yu",
        2025,
        "2505.22654",
        "MIT",
    )
    evidence: ClassVar[Evidence] = "golden"
    needs: ClassVar[frozenset[Need]] = frozenset({Need("saliency", 5), Need("saliency", -2)})

    shallow: int = setting(5, "encoder block of the local scan, counted from 0")
    deep: int = setting(-2, "encoder block of the global scan, negative from the end")
    window: int = setting(6, "side of a local window in tokens", low=1)

    def __post_init__(self) -> None:
        super().__post_init__()
        wanted = frozenset({Need("saliency", self.shallow), Need("saliency", self.deep)})
        object.__setattr__(self, "needs", wanted)

    def select(
        self, segments: list[Segment], counts: Counts, question: Question | None, rng: Rng
    ) -> list[Reduction]:
        def choose(segment: Segment, k: int) -> Reduction:
            window = window_of(full_grid(segment, self.name), self.window)
            kept = local_scan(saliency(segment, self.shallow, self.name), window, k // 2)
            rest = arrays.nonzero(~arrays.mask_of(kept, segment.n))
            score = saliency(segment, self.deep, self.name)[rest]
            best = rest[arrays.top_k(score, k - kept.size, arrays.FINE_BITS)]
            return merge_into(segment.features, np.concatenate([kept, best]))

        return each(segments, counts, choose)
