"""Downscale: the same picture, smaller. The control that every token method has to beat.

At an equal number of visual tokens a smaller picture costs less than choosing tokens of a large
one: the vision encoder too has less to do.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from typing import ClassVar

import numpy as np

from foveate.core.budget import Budget, image_count
from foveate.core.errors import SettingError
from foveate.core.method import Evidence, PixelMethod, setting
from foveate.core.registry import register
from foveate.core.views import PixelPlan, Pixels
from foveate.encode.pixels._common import scaled, share, within


@register
@dataclass(frozen=True)
class Downscale(PixelMethod):
    """Shrinks pictures to a longest side, or to a share of their tokens; never enlarges.

    `keep` takes the largest size that gives at most round(keep n) tokens by the model's own rule;
    a model that has a least size may give more, and the report says how many. O(log size).
    """

    name: ClassVar[str] = "downscale"
    summary: ClassVar[str] = "shows the model a smaller picture (control)"
    evidence: ClassVar[Evidence] = "control"

    side: int | None = setting(None, "longest side in pixels", low=1)
    keep: Fraction | None = setting(None, "share of the visual tokens that is kept, 0 < keep <= 1")

    def __post_init__(self) -> None:
        super().__post_init__()
        if (self.side is None) == (self.keep is None):
            raise SettingError(f"{self.name}: set exactly one of side (pixels) and keep (a share)")
        share(self.name, "keep", self.keep)

    def reduce(
        self, pixels: list[Pixels], rng: Callable[[Pixels], np.random.Generator]
    ) -> list[PixelPlan]:
        return [self._plan(p) for p in pixels]

    def _plan(self, p: Pixels) -> PixelPlan:
        if self.keep is not None:
            budget = image_count(Budget(keep=self.keep), p.tokens(PixelPlan()))
            return within(p, budget)
        longest = max(p.size)
        if self.side is None or longest <= self.side:
            return PixelPlan()
        return PixelPlan(size=scaled(p.size, Fraction(self.side, longest)))
