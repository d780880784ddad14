"""HybridKV: heads that look at few places are pruned, the others fetch pages from host memory.

B. Zeng, F. Ren, J. Zhang, X. Gu, K. Chen, L. Shou, H. Li, "HybridKV: Hybrid KV Cache Compression for
Efficient Multimodal Large Language Model Inference", 2026, arXiv 2604.05887. Three steps after the
prompt. (1) A head is static where the attention of text queries concentrates (θ = 0.9), else dynamic.
(2) The budget is split by type, then by head: static heads by their sparsity, dynamic heads evenly, in
whole chunks. (3) Static heads are pruned once, text first; dynamic heads keep all entries in host
memory and each step retrieves the chunks that its query wants.

Reconstructed: no code was released, and only the abstract and a summary of the paper were at hand, so
the formulas are ours. p is the attention of the question's words over the entries, averaged over words
and over the query heads of a KV head; m is how many of its largest weights hold θ. A head is static if
m is at most `share` of the entries, and static heads share by m. `ratio` is what a dynamic head gets
for one entry of a static head, on average. "Text first" is read as in LOOK-M: text before pictures,
each by p, the last entry before all. A chunk is a page of `page` entries; of the P pages a step takes
those with the largest mean over query heads of softmax_P(q · mean key / √a), ties to the lowest. The
newest 1 to `page` entries of the prompt, and the answer, are always seen. A dynamic head whose share
holds no page beside these is pruned like a static one.

The budget counts entries on the device: of dynamic heads the pages of a step and the newest entries.
The mean keys come on top, half an entry a page; the report's bytes hold them, and say what lies in
host memory. In layers with windows a page that a window hides may still be chosen. Cost O(H t n a) a
layer for t words, and O(H P a) a step.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, ClassVar

import numpy as np

from foveate.core import Paper, Reduction, arrays, largest_remainder, register, setting
from foveate.core.errors import SettingError
from foveate.core.language import CachePolicy, KVView, Pages, PageView
from foveate.core.method import Evidence
from foveate.memory import _shares

ROWS = 64
"""Words whose attention is computed at once."""


@dataclass(frozen=True)
class HeadUse:
    """How text looks at one layer: weights (Hkv, n), and reach (Hkv,), the entries that hold θ."""

    weights: np.ndarray
    reach: tuple[int, ...]


def reach_of(weights: Any, theta: Fraction) -> int:
    """The number of largest weights (n,) that hold `theta` of their sum; n where the sum is 0."""
    order = np.sort(np.asarray(weights, np.float64))[::-1]
    total = np.cumsum(order)
    if not total[-1] > 0:
        return len(order)
    held = np.searchsorted(total, float(theta) * total[-1] * (1 - 1e-12)) + 1
    return int(min(held, len(order)))


@register
@dataclass(frozen=True)
class HybridKV(CachePolicy):
    """Prunes static heads once; dynamic heads see the pages that each step retrieves."""

    name: ClassVar[str] = "hybridkv"
    summary: ClassVar[str] = (
        "heads that look at few places are pruned, others fetch pages from host memory at every step"
    )
    paper: ClassVar[Paper | None] = Paper(
        "HybridKV: Hybrid KV Cache Compression for Efficient Multimodal Large Language Model Inference",
        "Zeng, Ren, Zhang, Gu, Chen, Shou, Li",
        2026,
        "2604.05887",
    )
    evidence: ClassVar[Evidence] = "reconstructed"
    scope: ClassVar[Any] = "model"
    reads: ClassVar[frozenset[Any]] = frozenset({"all"})
    pages: ClassVar[bool] = True

    theta: Fraction = setting(
        Fraction(9, 10), "share of the question's attention that a static head finds in few entries"
    )
    share: Fraction = setting(
        Fraction(1, 10), "share of the entries that is few, 0 (all heads dynamic) to 1 (all static)"
    )
    ratio: Fraction = setting(
        Fraction(1), "entries of a dynamic head for each one of a static head, on average"
    )
    page: int = setting(16, "entries a page of a dynamic head", low=1)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.theta <= 1:
            raise SettingError(f"hybridkv: theta = {self.theta} is out of range: 0 < theta <= 1")
        if not 0 <= self.share <= 1:
            raise SettingError(f"hybridkv: share = {self.share} is out of range: 0 to 1")
        if self.ratio <= 0:
            raise SettingError(f"hybridkv: ratio = {self.ratio} is out of range: above 0")

    def observe(self, layer: int, view: KVView) -> HeadUse:
        n, heads = len(view.keys[0]), len(view.keys)
        words = np.flatnonzero(np.asarray(view.question)[np.asarray(view.origin[0])])
        if not words.size:
            words = np.asarray([n - 1])
        total: Any = 0.0
        for start in range(0, len(words), ROWS):
            part = view.rows(words[start : start + ROWS])
            total = total + _shares.grouped(part.sum(1), heads)
        weights = arrays.to_numpy(total).astype(np.float64) / len(words)
        return HeadUse(weights, tuple(reach_of(w, self.theta) for w in weights))

    def static(self, reach: int, n: int) -> bool:
        """Whether a head that needs `reach` of n entries is pruned once."""
        return self.share > 0 and reach <= max(1, int(self.share * n))

    def allocate(
        self, stats: Sequence[Any], room: Sequence[Sequence[int]], budget: int
    ) -> list[list[int]]:
        flat = [n for layer in room for n in layer]
        if budget >= sum(flat):
            return [list(layer) for layer in room]
        reach = [m for use in stats for m in use.reach]
        kinds = [self.static(m, n) for m, n in zip(reach, flat, strict=True)]
        counts = self._dynamic(kinds, flat, budget)
        pruned = [i for i, k in enumerate(counts) if k == 0]
        left = budget - sum(counts)
        caps = [flat[i] for i in pruned]
        weights = [reach[i] for i in pruned]
        parts = largest_remainder(min(left, sum(caps)), weights, floor=1, caps=caps)
        for i, k in zip(pruned, parts, strict=True):
            counts[i] = k
        left -= sum(parts)
        while left >= self.page:  # what static heads cannot use is more pages for the others
            more = [i for i, n in enumerate(flat) if counts[i] < n]
            for i in more[: left // self.page]:
                counts[i] += self.page
                left -= self.page
        ends = np.cumsum([0, *map(len, room)])
        return [counts[a:b] for a, b in zip(ends[:-1], ends[1:], strict=True)]

    def _dynamic(self, kinds: Sequence[bool], flat: Sequence[int], budget: int) -> list[int]:
        """Entries of each dynamic head that are on the device; 0 for heads that are to be pruned."""
        still, moving = sum(kinds), len(kinds) - sum(kinds)
        if not moving:
            return [0] * len(kinds)
        each = min(
            budget * self.ratio / (still + self.ratio * moving), Fraction(budget - still, moving)
        )
        counts = []
        for static, n in zip(kinds, flat, strict=True):
            newest = n - Pages(self.page, 1).count(n) * self.page
            wanted = 0 if static else max(0, (int(each) - newest) // self.page)
            counts.append(min(n, newest + wanted * self.page) if wanted else 0)
        return counts

    def select(
        self, layer: int, view: KVView, k: Sequence[int], stats: Any
    ) -> list[Reduction | Pages]:
        out: list[Reduction | Pages] = []
        for head, count in enumerate(k):
            n = len(view.keys[head])
            if count == n:
                out.append(Reduction.pick(np.arange(n), n, "cache"))
                continue
            wanted = max(1, (count - n) // self.page + Pages(self.page, 1).count(n))
            pages = Pages(self.page, wanted)
            if not self.static(stats.reach[head], n) and pages.resident(n) == count:
                out.append(pages)
            else:
                text = np.asarray(view.modality_of(head)) == 0
                out.append(_pruned(stats.weights[head], text, count))
        return out

    def retrieve(self, layer: int, query: Any, pages: PageView) -> np.ndarray:
        import torch

        logits = query.float() @ pages.mean.float().transpose(1, 2) * query.shape[-1] ** -0.5
        scores = arrays.to_numpy(torch.softmax(logits, -1).mean(1))
        return np.stack([_shares.best(s, pages.spec.wanted) for s in scores])


def _pruned(weights: Any, text: np.ndarray, count: int) -> Reduction:
    """`count` of n entries: the last one, then text (n,) bool by weight, then the others by weight."""
    scores = arrays.scores_of(weights, "attention")
    n = len(scores)
    chosen = [np.asarray([n - 1])]
    early = np.arange(n) < n - 1
    for part in (early & text, early & ~text):
        index = np.flatnonzero(part)
        left = count - sum(map(len, chosen))
        chosen.append(index[_shares.best(scores[index], left)])
    return Reduction.pick(np.concatenate(chosen), n, "cache")
