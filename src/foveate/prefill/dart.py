"""DART: keeps the visual tokens that are least like a few pivots.

Paper: Z. Wen, Y. Gao, S. Wang, J. Zhang, Q. Zhang, W. Li, C. He, L. Zhang, "Stop Looking for
Important Tokens in Multimodal Language Models: Duplication Matters More", EMNLP 2025, arXiv
2502.11494. Before layer K the pivots are the visual tokens and the text tokens behind the pictures
whose keys of layer K - 1 (rotated) have the largest L1 norm over all heads, four of each. In turn
each pivot claims the visual tokens least similar to it that are still free, by the cosine of layer
K - 1's output after the final norm. The visual pivots stay too.

Differs from the authors' code: exactly k tokens stay, the visual pivots among them, and what is left
is dealt out evenly, where theirs is 8 · floor(k / 8) + 4; pivots claim by falling strength, visual
ones first, where theirs follow the order of a hash set. With no text behind the pictures, or with
fewer tokens than pivots, there are fewer pivots. Pictures of a request are ranked together.

Cost: O(S a) for the norms, O(p V D) for p pivots; no attention is read.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, ClassVar

import numpy as np

from foveate.core import Paper, arrays, register, setting
from foveate.core.budget import largest_remainder
from foveate.core.errors import SettingError
from foveate.core.language import LayerView, PrefillMethod, Route
from foveate.core.method import Evidence
from foveate.core.views import Array, Reduction
from foveate.prefill import _stairs


def strength(keys: Array) -> np.ndarray:
    """(S,) L1 norm of keys (Hkv, S, a) over all heads, float64 on the host."""
    xp = arrays.namespace(keys)
    size = xp.abs(xp.astype(keys, arrays.wide(keys)))
    return arrays.scores_of(xp.sum(xp.sum(size, axis=2), axis=0), "keys")


def claimed(likeness: np.ndarray, taken: np.ndarray, shares: Sequence[int]) -> np.ndarray:
    """(V,) bool: `taken` and what each pivot in turn claims of the rest, the least like it first.

    likeness (p, V) are cosines; shares (p,) how many tokens each pivot claims.
    """
    taken = taken.copy()
    for row, share in zip(arrays.on_grid(likeness, arrays.GRID_BITS), shares, strict=True):
        free = arrays.nonzero(~taken)
        taken[free[arrays.top_k(-row[free], share, arrays.FINE_BITS)]] = True
    return taken


@register
@dataclass(frozen=True)
class DART(PrefillMethod):
    """Pivots by the norm of their keys; tokens by how little they repeat a pivot."""

    name: ClassVar[str] = "dart"
    summary: ClassVar[str] = (
        "keeps the visual tokens that are least like a few strong ones, at one layer"
    )
    paper: ClassVar[Paper | None] = Paper(
        "Stop Looking for Important Tokens in Multimodal Language Models: Duplication Matters More",
        "Wen, Gao, Wang, Zhang, Zhang, Li, He, Zhang",
        2025,
        "2502.11494",
        "Apache-2.0",
    )
    evidence: ClassVar[Evidence] = "golden"
    reads: ClassVar[frozenset[Any]] = frozenset({"previous"})

    layer: int = setting(2, "decoder layer before which tokens leave", low=1)
    keep: Fraction = setting(
        Fraction(2, 9), "share of the entered visual tokens kept, 0 < keep <= 1"
    )
    pivots_visual: int = setting(4, "visual tokens that are pivots; they stay", low=0)
    pivots_text: int = setting(4, "text tokens behind the pictures that are pivots", low=0)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.keep <= 1:
            raise SettingError(f"dart: keep = {self.keep} is out of range: 0 < keep <= 1")
        if self.pivots_visual + self.pivots_text == 0:
            raise SettingError("dart: pivots_visual and pivots_text are both 0; set one")

    def layers(self, count: int) -> tuple[int, ...]:
        return _stairs.layers_of((Fraction(self.layer),), count, "dart: layer")

    def pivots(self, view: LayerView, k: int) -> tuple[np.ndarray, np.ndarray]:
        """Places of the visual and of the text pivots among the tokens present, strongest first."""
        visual = view.visual
        strong = strength(view.keys("previous"))
        behind = np.flatnonzero(view.modality == 0)
        behind = behind[behind > visual[-1]]
        # At least one pivot must be there to claim; a visual one always can.
        wanted = self.pivots_visual or (0 if behind.size else 1)
        first = visual[arrays.top_k(strong[visual], min(wanted, k))]
        return first, behind[arrays.top_k(strong[behind], self.pivots_text)]

    def decide(self, layer: int, view: LayerView, state: Any) -> tuple[Route, Any]:
        visual = view.visual
        k = min(_stairs.count_of(self.keep, view.entered), visual.size)
        if k == visual.size:
            return Route(), state
        first, text = self.pivots(view, k)
        pivots = np.concatenate([first, text])
        normed = view.normed()
        likeness = arrays.cosine(arrays.take(normed, pivots), arrays.take(normed, visual))
        shares = largest_remainder(k - first.size, [1] * pivots.size)
        taken = arrays.mask_of(np.searchsorted(visual, first), visual.size)
        kept = arrays.nonzero(claimed(arrays.to_numpy(likeness), taken, shares))
        return Route(keep=Reduction.pick(kept, visual.size, "hidden")), state
