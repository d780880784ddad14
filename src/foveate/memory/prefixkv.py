"""PrefixKV: every layer keeps the shortest prefix of its ranking that holds one common share.

A. Wang, H. Chen, J. Tan, K. Zhang, X. Cai, Z. Lin, J. Han, G. Ding, "PrefixKV: Adaptive Prefix KV
Cache is What Vision Instruction-Following Models Need for Efficient Generation", NeurIPS 2025, arXiv
2412.03409: the importance of a token in a layer is the attention it gets from all queries
of the prompt, mean over heads. Sorted and normalised, its running sum is P^l. One p for all layers is
found by binary search, so that Σ_l min{o: P^l_o >= p} meets the budget. The first four tokens and
the last always stay, beside these o (as released); where the budget is too small for that, within it.

What differs: the released code averages the layers' shares over ten samples and stores them; here
they are found for each request. It stops within five entries of the budget; here what the search
leaves goes to the layers whose next entry has the lowest running sum, so that the sum is exact. It
goes on evicting while answering; here new tokens come on top. Every head of a layer keeps the same
tokens. Cost O(H n² a) a layer for the sums, in blocks, and O(L n log n).
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

STEPS = 64


def running_share(importance: Any) -> np.ndarray:
    """P (n,): running sum of the importance, largest first, over its total."""
    s = np.sort(arrays.scores_of(importance, "attention"))[::-1]
    total = np.cumsum(s)
    if total[-1] <= 0:
        return (np.arange(len(s)) + 1.0) / len(s)
    # On a grid, so that the last bits of a batch's sums do not move an entry between layers.
    return arrays.on_grid(total / total[-1])


def prefix_lengths(shares: Sequence[np.ndarray], budget: int, extra: int = 0) -> list[int]:
    """Entries o_l + extra of each layer with the sum `budget`, clipped to what there is; a budget that
    cannot hold the extra ones has none.
    """
    room = [len(s) for s in shares]
    budget = min(max(budget, len(room)), sum(room))
    if budget < len(room) * (extra + 1):
        extra = 0

    def lengths(p: float) -> list[int]:
        found = (int(np.searchsorted(s, p)) + 1 + extra for s in shares)
        return [min(n, o) for n, o in zip(room, found, strict=True)]

    low, high = 0.0, 1.0
    for _ in range(STEPS):
        p = (low + high) / 2
        low, high = (p, high) if sum(lengths(p)) <= budget else (low, p)
    out = lengths(low)
    while sum(out) < budget:
        open_ = [layer for layer, n in enumerate(room) if out[layer] < n]
        nearest = min(open_, key=lambda layer: (shares[layer][out[layer] - 1 - extra], layer))
        out[nearest] += 1
    return out


@register
@dataclass(frozen=True)
class PrefixKV(CachePolicy):
    """One cumulative share of attention for all layers decides how many entries each keeps."""

    name: ClassVar[str] = "prefixkv"
    summary: ClassVar[str] = "each layer keeps what holds one common share of its attention"
    paper: ClassVar[Paper | None] = Paper(
        "PrefixKV: Adaptive Prefix KV Cache is What Vision Instruction-Following Models Need for "
        "Efficient Generation",
        "Wang, Chen, Tan, Zhang, Cai, Lin, Han, Ding",
        2025,
        "2412.03409",
    )
    evidence: ClassVar[Evidence] = "reference"
    scope: ClassVar[Any] = "model"
    reads: ClassVar[frozenset[Any]] = frozenset({"all"})

    sinks: int = setting(4, "first tokens that always stay", low=0)

    def observe(self, layer: int, view: KVView) -> Any:
        return view.column_sum().mean(0)

    def allocate(
        self, stats: Sequence[Any], room: Sequence[Sequence[int]], budget: int
    ) -> list[list[int]]:
        shares = [running_share(s) for s in stats]
        heads = {len(layer) for layer in room}
        if len(heads) == 1 and budget % (each := heads.pop()) == 0:
            found = prefix_lengths(shares, budget // each, self.sinks + 1)
            return [[k] * each for k in found]
        # Layers with other numbers of heads: every head counts as a layer of its own.
        spread = [s for s, layer in zip(shares, room, strict=True) for _ in layer]
        flat, at = prefix_lengths(spread, budget, self.sinks + 1), 0
        out = []
        for layer in room:
            out.append(flat[at : at + len(layer)])
            at += len(layer)
        return out

    def select(self, layer: int, view: KVView, k: Sequence[int], stats: Any) -> list[Reduction]:
        protected = _shares.ends(len(stats), self.sinks, 1)
        return [_shares.keep_best(stats, count, protected) for count in k]
