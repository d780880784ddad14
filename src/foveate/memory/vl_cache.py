"""VL-Cache: layers share the budget by how dense their attention is, entries go by late attention.

D. Tu, D. Vashchilenko, Y. Lu, P. Xu, "VL-Cache: Sparsity and Modality-Aware KV Cache Compression for
Vision-Language Model Inference Acceleration", ICLR 2025, arXiv 2410.23317. The
queries of the text after the last visual token (the post-vision window) are read. An attention weight
counts as zero if it is at most p = 1 % of its row's largest; γ_l is the share of zeros among the
weights a causal row can have, mean over heads. Layer l gets the share (1 - γ_l) / Σ (1 - γ) of the
model's entries, at least 1 % of its own. Entries are ranked by the attention they get, summed over
the window.

Reconstructed, because no code is public: the query heads of a KV head are summed; of its count a
head keeps `recent` for the last entries (at least one), the rest goes by score; the window is cut
to its last `window` queries (the paper's speed tests use 50); a prompt without pictures, or with
nothing after them, is read from its last queries. Counts sum up to the budget exactly, by largest
remainder. Cost O(H w n a + H n log n) a layer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, ClassVar

import numpy as np

from foveate.core import Paper, Reduction, register, setting
from foveate.core.errors import SettingError
from foveate.core.language import CachePolicy, KVView
from foveate.core.method import Evidence
from foveate.memory import _shares

LEAST = Fraction(1, 100)


def post_vision(view: KVView, window: int) -> np.ndarray:
    """Indices of the last queries, at most `window`, that come after the last visual token; where
    none does, the last one. Without visual tokens the last `window`.
    """
    modality = np.asarray(view.modality_of(0))
    n = len(modality)
    seen = np.flatnonzero(modality > 0)
    start = int(seen[-1]) + 1 if seen.size else 0
    return np.arange(min(max(start, n - window), n - 1), n)


def density(rows: Any, queries: np.ndarray, threshold: float) -> float:
    """1 - γ of attention rows (H, w, n): the share of the weights up to each query's own place that
    exceed `threshold` times the row's largest.
    """
    peak = rows.amax(-1, keepdim=True)
    dense = (rows > threshold * peak).sum()
    return float(dense) / (rows.shape[0] * float((queries + 1).sum()))


@register
@dataclass(frozen=True)
class VLCache(CachePolicy):
    """Budgets by a layer's density, entries by the attention of the text after the picture."""

    name: ClassVar[str] = "vl-cache"
    summary: ClassVar[str] = (
        "layers share by how dense their attention is; entries stay by attention after the picture"
    )
    paper: ClassVar[Paper | None] = Paper(
        "VL-Cache: Sparsity and Modality-Aware KV Cache Compression for Vision-Language Model "
        "Inference Acceleration",
        "Tu, Vashchilenko, Lu, Xu",
        2025,
        "2410.23317",
    )
    evidence: ClassVar[Evidence] = "reconstructed"
    scope: ClassVar[Any] = "model"
    reads: ClassVar[frozenset[Any]] = frozenset({"window"})

    window: int = setting(50, "most queries after the picture that are read", low=1)
    threshold: float = setting(
        0.01, "attention at most this part of its row's largest counts as zero", low=0.0, high=1.0
    )
    recent: Fraction = setting(
        Fraction(1, 10), "share of a head's entries that is for the last ones, 0 to 1"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.recent <= 1:
            raise SettingError(f"vl-cache: recent = {self.recent} is out of range: 0 to 1")

    def observe(self, layer: int, view: KVView) -> Any:
        queries = post_vision(view, self.window)
        rows = view.rows(queries)
        scores = _shares.grouped(rows.sum(1), len(view.keys), "sum")
        return density(rows, queries, self.threshold), scores

    def allocate(
        self, stats: Sequence[Any], room: Sequence[Sequence[int]], budget: int
    ) -> list[list[int]]:
        longest = max(max(layer) for layer in room)
        floor = max(1, int(LEAST * longest))
        floor = min(floor, budget // sum(len(layer) for layer in room))
        return _shares.by_layer([dense for dense, _ in stats], room, budget, max(1, floor))

    def select(self, layer: int, view: KVView, k: Sequence[int], stats: Any) -> list[Reduction]:
        _, scores = stats
        out = []
        for head, count in enumerate(k):
            late = int(self.recent * count)
            out.append(
                _shares.keep_best(scores[head], count, _shares.ends(len(scores[head]), 0, late))
            )
        return out
