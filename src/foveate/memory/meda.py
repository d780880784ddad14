"""MEDA: layers with more spread attention between text and pictures keep more.

Z. Wan, H. Shen, X. Wang, C. Liu, Z. Mai, M. Zhang, "MEDA: Dynamic KV Cache Allocation for Efficient
Multimodal Long-Context Inference", NAACL 2025, arXiv 2502.17599. With T the text and V the
visual tokens, E_l = H(softmax(Q_T K_V)) / |T| + H(softmax(Q_V K_T)) / |V| is the entropy of layer l's
attention across modalities, summed over queries, mean over heads. Layer l keeps the share
clip(softmax(E)_l L ρ, 0.01, 1) of its entries at a mean share ρ. Entries are chosen with LOOK-M's text
prior, half by column sums, half the latest, and what leaves is averaged into its nearest key.

`entropy=full` is the released code's default: the entropy of all attention, per query. What differs:
attention stays causal, so that a query adds nothing where none of the other modality came before it;
a prompt of one modality is measured in full; counts sum up to the budget exactly, by largest
remainder; the rest as in `look-m`. Cost O(H n² a) a layer, in blocks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from foveate.core import Paper, arrays, register, setting
from foveate.core.language import KVView
from foveate.core.method import Evidence
from foveate.memory import _shares
from foveate.memory.look_m import MERGES, LookM

LEAST = 0.01
BLOCK_ELEMENTS = 2**22


def entropy(rows: Any, columns: np.ndarray) -> float:
    """Entropy in nats of rows (H, r, n) over these columns alone, each brought to sum 1, summed over
    the r queries, mean over heads. A row without weight there adds nothing.
    """
    p = rows[:, :, columns].double()
    mass = p.sum(-1, keepdim=True)
    p = p / mass.clamp_min(1e-300)
    return float(-(p * p.clamp_min(1e-300).log()).sum() / rows.shape[0])


def cross_entropy(view: KVView, how: str) -> float:
    """E of one layer: across modalities ("cross") or of all attention ("full"), a query on average."""
    n = len(view.keys[0])
    visual = np.asarray(view.modality_of(0)) > 0
    every = np.arange(n)
    parts = [(every[~visual], every[visual]), (every[visual], every[~visual])]
    if how == "full" or visual.all() or not visual.any():
        parts = [(every, every)]
    total = 0.0
    for queries, columns in parts:
        heads = view.rows(queries[:1]).shape[0]
        block = max(1, BLOCK_ELEMENTS // (heads * n))
        found = (
            entropy(view.rows(queries[a : a + block]), columns)
            for a in range(0, len(queries), block)
        )
        total += sum(found) / len(queries)
    return total


@register
@dataclass(frozen=True)
class MEDA(LookM):
    """LOOK-M's choice under layer budgets by the softmax of cross-modal entropies."""

    name: ClassVar[str] = "meda"
    summary: ClassVar[str] = (
        "layers share by the entropy of attention across modalities; entries as in look-m"
    )
    paper: ClassVar[Paper | None] = Paper(
        "MEDA: Dynamic KV Cache Allocation for Efficient Multimodal Long-Context Inference",
        "Wan, Shen, Wang, Liu, Mai, Zhang",
        2025,
        "2502.17599",
    )
    evidence: ClassVar[Evidence] = "reference"
    scope: ClassVar[Any] = "model"

    merge: str = setting("averaged", "how what leaves is merged", choices=MERGES)
    entropy: str = setting("cross", "attention that is measured", choices=("cross", "full"))

    def observe(self, layer: int, view: KVView) -> Any:
        return cross_entropy(view, self.entropy), super().observe(layer, view)

    def allocate(
        self, stats: Sequence[Any], room: Sequence[Sequence[int]], budget: int
    ) -> list[list[int]]:
        e = np.asarray([entropy for entropy, _ in stats])
        share = np.exp(e - e.max())
        weights = arrays.on_grid(share / share.sum())
        longest = max(max(layer) for layer in room)
        floor = min(int(LEAST * longest), budget // sum(len(layer) for layer in room))
        return _shares.by_layer(weights.tolist(), room, budget, max(1, floor))

    def select(self, layer: int, view: KVView, k: Sequence[int], stats: Any) -> Any:
        return super().select(layer, view, k, stats[1])
