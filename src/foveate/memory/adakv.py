"""AdaKV: the heads of a layer share its budget by where the strong votes are.

Feng et al. 2024, "Ada-KV: Optimizing KV Cache Eviction by Adaptive Budget Allocation", arXiv
2407.11550, algorithm 1: of all pooled votes of a layer the top H B are counted by head, and a floor of
alpha B goes to every head: cap_h = round((1 - alpha) count_h + int(alpha B)), half to even, the window
on top; the sum may miss H B by rounding. With `normalize` a head's votes are weighted by the share of
its mass that its own top B hold (an option of the released code). Votes are the mean over the window,
brought to KV heads before pooling. Cost O(H w n a + H n log n).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from foveate.core import Paper, register, setting
from foveate.core.language import KVView
from foveate.core.method import Evidence
from foveate.memory import _shares
from foveate.memory.snapkv import SnapKV, pooled


@register
@dataclass(frozen=True)
class AdaKV(SnapKV):
    """SnapKV's votes; the layer's budget goes to the heads that hold the strongest ones."""

    name: ClassVar[str] = "adakv"
    summary: ClassVar[str] = (
        "SnapKV's votes, with the layer's budget shared among heads by their votes"
    )
    paper: ClassVar[Paper | None] = Paper(
        "Ada-KV: Optimizing KV Cache Eviction by Adaptive Budget Allocation for Efficient LLM "
        "Inference",
        "Feng et al.",
        2024,
        "2407.11550",
        code_licence="MIT",
    )
    evidence: ClassVar[Evidence] = "golden"

    kernel: int = setting(7, "width of the pooling, odd", low=1)
    pooling: str = setting("maxpool", "how votes are smoothed", choices=("avgpool", "maxpool"))
    alpha: float = setting(
        0.2, "share of the budget that every head has for sure", low=0.0, high=1.0
    )
    group: str = setting("mean", "query heads of a KV head to one vote", choices=("mean", "max"))
    normalize: bool = setting(False, "weight a head's votes by what its own best cover")

    def observe(self, layer: int, view: KVView) -> Any:
        n = len(view.keys[0])
        w = min(self.window, n - 1)
        if w == 0:  # a prompt of one token: there is nothing to vote on
            return view.keys[0].new_zeros(len(view.keys), 0)
        votes = view.rows(np.arange(n - w, n))[:, :, : n - w].mean(1)
        votes = votes.view(len(view.keys), -1, n - w)
        votes = votes.mean(1) if self.group == "mean" else votes.amax(1)
        return pooled(votes, self.kernel, self.pooling)

    def allocate(
        self, stats: Sequence[Any], room: Sequence[Sequence[int]], budget: int
    ) -> list[list[int]]:
        return [self._heads(votes, list(n), budget) for votes, n in zip(stats, room, strict=True)]

    def _heads(self, votes: Any, room: list[int], budget: int) -> list[int]:
        heads, prefix = votes.shape
        window = room[0] - prefix
        base = budget // heads - window
        if base >= prefix:
            return room
        if base <= 0:
            return [max(1, budget // heads)] * heads
        scores = votes
        if self.normalize:
            mass = votes.sum(1)
            best = votes.sort(1, descending=True).values[:, :base].sum(1)
            scores = votes * (best / mass.clamp_min(_shares.TINY))[:, None]
        top = _shares.best(scores.reshape(-1), heads * base)
        counts = np.bincount(np.asarray(top) // prefix, minlength=heads)
        floor = int(base * self.alpha)
        caps = [round(float(c) * (1 - self.alpha) + floor) for c in counts]
        return [min(n, cap + window) for n, cap in zip(room, caps, strict=True)]
