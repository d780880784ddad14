"""LOOK-M: text entries come first, and what leaves is merged into the nearest entry that stays.

Z. Wan, Z. Wu, C. Liu, J. Huang, Z. Zhu, P. Jin, L. Wang, L. Yuan, "LOOK-M: Look-Once Optimization in
KV Cache for Efficient Multimodal Long-Context Inference", Findings of EMNLP 2024, arXiv 2406.18139.
Half of a head's entries are the latest, half those with the largest column sums
of the prompt's attention, text before visual tokens whatever the sums. Each evicted entry goes to the
kept one whose key has the largest cosine with its own; a kept entry c with L evicted e_i becomes
averaged (c + Σ e_i) / (L + 1), pivotal (c + Σ (c + e_i) / 2) / (L + 1), or weighted
(c + Σ cos_i e_i) / (L + 1), keys and values alike. Weighted drops those whose cosine is not above the
mean. This happens once, after the prompt.

What differs: the budget is exact, so that where the text alone does not fit, the text with the
smallest sums leaves too (published code goes over its budget instead); the query heads of a KV head
are summed; the mean cosine of `weighted` is the head's own (released: of all heads at one rank); the
released text-prior and averaging classes pair evicted entries with the wrong targets, which is not
followed. Merged keys were rotated for other positions; the paper does so too. Cost O(H n² a) a layer
for the sums, in blocks, and O(H k (n - k) a) for the cosines.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from foveate.core import Paper, Reduction, arrays, register, setting
from foveate.core.language import CachePolicy, KVView
from foveate.core.method import Evidence
from foveate.memory import _shares

MERGES = ("pivotal", "averaged", "weighted", "off")


def text_first(scores: Any, text: np.ndarray, count: int) -> np.ndarray:
    """Indices of `count` of n entries, ascending: the latest half of the count (at least one), then
    text (n,) bool by score, then the others by score.
    """
    s = arrays.scores_of(scores, "attention")
    n = len(s)
    late = max(1, count // 2)
    early = np.arange(n) < n - late
    chosen = [np.flatnonzero(~early)]
    left = count - late
    for part in (early & text, early & ~text):
        index = np.flatnonzero(part)
        chosen.append(index[_shares.best(s[index], left)])
        left -= len(chosen[-1])
    return np.sort(np.concatenate(chosen))


def merged(keys: Any, kept: np.ndarray, how: str) -> Reduction:
    """The reduction of n entries with keys (n, a) to the kept ones, the others merged into them."""
    n, k = int(keys.shape[0]), len(kept)
    gone = np.setdiff1d(np.arange(n), kept)
    if how == "off" or not gone.size:
        return Reduction.pick(kept, n, "cache")
    units, target = arrays.nearest(arrays.take(keys, gone), arrays.take(keys, kept))
    best = units * 2.0**-arrays.GRID_BITS
    if how == "weighted":
        close = best > best.mean()
        gone, target, best = gone[close], target[close], best[close]
    size = np.bincount(target, minlength=k) + 1.0
    own, other = 1.0 / size, 1.0 / size[target]
    if how == "pivotal":
        own, other = (1.0 + (size - 1.0) / 2.0) / size, other / 2.0
    elif how == "weighted":
        other = other * best
    rows = np.concatenate([np.arange(k), target])
    cols = np.concatenate([kept, gone])
    return Reduction.of(kept, rows, cols, np.concatenate([own, other]), n, "cache")


@register
@dataclass(frozen=True)
class LookM(CachePolicy):
    """Text prior, recent half, and merging of what leaves into its nearest key."""

    name: ClassVar[str] = "look-m"
    summary: ClassVar[str] = (
        "keeps text and the latest entries first, and merges what leaves into its nearest key"
    )
    paper: ClassVar[Paper | None] = Paper(
        "LOOK-M: Look-Once Optimization in KV Cache for Efficient Multimodal Long-Context Inference",
        "Wan, Wu, Liu, Huang, Zhu, Jin, Wang, Yuan",
        2024,
        "2406.18139",
    )
    evidence: ClassVar[Evidence] = "reference"
    reads: ClassVar[frozenset[Any]] = frozenset({"all"})

    merge: str = setting("pivotal", "how what leaves is merged", choices=MERGES)

    def observe(self, layer: int, view: KVView) -> Any:
        return _shares.grouped(view.column_sum(), len(view.keys), "sum")

    def select(self, layer: int, view: KVView, k: Sequence[int], stats: Any) -> list[Reduction]:
        out = []
        for head, count in enumerate(k):
            text = np.asarray(view.modality_of(head)) == 0
            kept = text_first(stats[head], text, count)
            out.append(merged(view.keys[head], kept, self.merge))
        return out
