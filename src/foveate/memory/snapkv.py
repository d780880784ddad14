"""SnapKV: each head keeps the entries that a window of the last queries attends to, and the window.

Li et al. 2024, "SnapKV: LLM Knows What You are Looking for Before Generation", arXiv 2404.14469,
section 4: votes are the attention of the last w queries on the prefix, summed over the window and
smoothed by 1-D pooling, so that neighbours of a hit stay with it. As released, average pooling counts
the zero padding. With grouped queries the votes of a KV head are the mean over its query heads before
pooling (the released code repeats keys instead and decides by query head). Kept entries stay in order
of position. Cost O(H w n a).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from foveate.core import Paper, Reduction, register, setting
from foveate.core.errors import SettingError
from foveate.core.language import CachePolicy, KVView
from foveate.core.method import Evidence
from foveate.memory import _shares


@register
@dataclass(frozen=True)
class SnapKV(CachePolicy):
    """Per KV head: the best of the prefix by pooled votes of the last `window` queries, and these."""

    name: ClassVar[str] = "snapkv"
    summary: ClassVar[str] = "each KV head keeps what the last queries of the prompt attend to"
    paper: ClassVar[Paper | None] = Paper(
        "SnapKV: LLM Knows What You are Looking for Before Generation",
        "Li et al.",
        2024,
        "2404.14469",
        code_licence="Apache-2.0",
    )
    evidence: ClassVar[Evidence] = "golden"
    reads: ClassVar[frozenset[Any]] = frozenset({"window"})

    window: int = setting(32, "last queries of the prompt that vote; they always stay", low=1)
    kernel: int = setting(5, "width of the pooling, odd", low=1)
    pooling: str = setting("avgpool", "how votes are smoothed", choices=("avgpool", "maxpool"))

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.kernel % 2 == 0:
            raise SettingError(
                f"{self.name}: kernel = {self.kernel} is out of range: an odd number"
            )

    def observe(self, layer: int, view: KVView) -> Any:
        return window_votes(view, self.window, self.kernel, self.pooling)

    def select(self, layer: int, view: KVView, k: Sequence[int], stats: Any) -> list[Reduction]:
        return [with_window(stats[h], len(view.keys[h]), count) for h, count in enumerate(k)]


def window_votes(
    view: KVView, window: int, kernel: int, pooling: str = "avgpool", mean: bool = False
) -> Any:
    """Pooled votes (Hkv, n - w) of the last w queries for each entry before them."""
    n = len(view.keys[0])
    w = min(window, n - 1)
    if w == 0:  # a prompt of one token: there is nothing to vote on
        return view.keys[0].new_zeros(len(view.keys), 0)
    rows = view.rows(np.arange(n - w, n))[:, :, : n - w]
    votes = rows.mean(1) if mean else rows.sum(1)
    votes = votes.view(len(view.keys), -1, n - w).mean(1)
    return pooled(votes, kernel, pooling)


def pooled(votes: Any, kernel: int, pooling: str) -> Any:
    """1-D pooling of votes (h, n) with stride 1 and the same length."""
    import torch.nn.functional as F

    pad = kernel // 2
    if pooling == "avgpool":
        return F.avg_pool1d(votes[None], kernel, 1, pad)[0][:, : votes.shape[1]]
    return F.max_pool1d(votes[None], kernel, 1, pad)[0][:, : votes.shape[1]]


def with_window(votes: Any, n: int, count: int) -> Reduction:
    """The best of the prefix by votes (n - w,) and the w last entries, `count` in all; if fewer than
    the window fit, its last ones.
    """
    prefix = int(votes.shape[0])
    best = _shares.best(votes, max(0, min(prefix, count - (n - prefix))))
    last = np.arange(max(prefix, n - (count - len(best))), n)
    return Reduction.pick(np.concatenate([best, last]), n, "cache")
