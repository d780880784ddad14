"""Early cut: tokens that the first blocks of the vision encoder hardly look at leave it.

No paper: the plainest form of what several do inside the tower, kept as a control for merging.
After a share of the blocks, tokens are ranked by the attention they got in the last of them (the
class token's attention where there is one, else the mean over all queries) and the best stay. A
token that leaves keeps the state it had; where the language model sees tokens one by one it is
dropped there as well.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from typing import ClassVar

import numpy as np

from foveate.core import arrays
from foveate.core.budget import Budget, image_count
from foveate.core.errors import InputError, SettingError
from foveate.core.method import Evidence, Paper, TowerMethod, setting
from foveate.core.registry import register
from foveate.core.views import BlockView, Reduction


@register
@dataclass(frozen=True)
class EarlyCut(TowerMethod):
    """Keeps round(keep n) tokens from block max(1, floor(depth * L)) on. O(n log n) and one block's
    attention.
    """

    name: ClassVar[str] = "early-cut"
    summary: ClassVar[str] = "drops what the first encoder blocks hardly look at (control)"
    paper: ClassVar[Paper | None] = None
    evidence: ClassVar[Evidence] = "control"
    proportional: ClassVar[bool] = False

    keep: Fraction = setting(Fraction(1, 2), "share of the tokens that stay, 0 < keep <= 1")
    depth: Fraction = setting(Fraction(1, 3), "share of the blocks that see every token, 0 to 1")

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.keep <= 1:
            raise SettingError(f"{self.name}: keep = {self.keep} is out of range: 0 < keep <= 1")
        if not 0 <= self.depth < 1:
            raise SettingError(f"{self.name}: depth = {self.depth} is out of range: 0 <= depth < 1")

    def at(self, layers: int) -> int:
        """The first block without the tokens that were cut."""
        return min(max(1, int(self.depth * layers)), layers - 1)

    def reads(self, layer: int, layers: int) -> frozenset[str]:
        cuts = layer == self.at(layers) and self.keep < 1
        return frozenset({"saliency"}) if cuts else frozenset()

    def block(self, layer: int, layers: int, view: BlockView) -> Reduction | None:
        """The cut, a pick of the m tokens present; None before and after it."""
        if layer != self.at(layers):
            return None
        protected = arrays.to_numpy(view.protected).astype(bool)
        free = np.flatnonzero(~protected)
        k = image_count(Budget(keep=self.keep), free.size)
        if k >= free.size:
            return None
        if view.attention is None:
            raise InputError(f"{self.name} needs the attention of the block before")
        score = arrays.scores_of(view.attention.saliency, "attention of the vision encoder")[free]
        kept = free[arrays.top_k(score, k, arrays.FINE_BITS)]
        stays = np.concatenate([np.flatnonzero(protected), kept])
        return Reduction.pick(stays, protected.size, "hidden")
