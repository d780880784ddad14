"""How many visual tokens each language-model layer keeps: one nested, non-increasing list for a
whole run.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

from foveate.core.budget import Budget, image_count
from foveate.core.errors import SettingError


@dataclass(frozen=True)
class Schedule:
    """keep[l]: share of the entered visual tokens present at layer l, in [0, 1], non-increasing."""

    keep: tuple[Fraction, ...]

    def __post_init__(self) -> None:
        last = Fraction(1)
        for layer, ratio in enumerate(self.keep):
            if not 0 <= ratio <= 1:
                raise SettingError(f"schedule: keep[{layer}] = {ratio} is out of range: 0 to 1")
            if ratio > last:
                raise SettingError(
                    f"schedule grows at layer {layer}: {ratio} > {last}; dropped tokens cannot return"
                )
            last = ratio

    @staticmethod
    def steps(layers: int, at: Sequence[tuple[int, Fraction]]) -> Schedule:
        """A staircase: from layer `l` on keep `ratio`, for each (l, ratio) in `at`."""
        keep = [Fraction(1)] * layers
        for layer, ratio in sorted(at):
            if not 0 <= layer < layers:
                raise SettingError(
                    f"schedule: layer {layer} is outside the model's 0 to {layers - 1}"
                )
            keep[layer:] = [ratio] * (layers - layer)
        return Schedule(tuple(keep))

    def counts(self, n: int) -> tuple[int, ...]:
        """Tokens kept at each layer of `n` entered; 0 only where the ratio is 0."""
        return tuple(image_count(Budget(keep=r), n) if r else 0 for r in self.keep)

    @property
    def mean_keep(self) -> Fraction:
        """Layer-averaged keep ratio, the published "average tokens" over N."""
        return sum(self.keep, Fraction(0)) / len(self.keep) if self.keep else Fraction(1)
