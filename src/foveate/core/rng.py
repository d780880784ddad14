"""Randomness that depends on the plan's seed and the segment alone, never on batch order or the
array library.
"""

from __future__ import annotations

import numpy as np

from foveate.core.views import Pixels, Segment


class PlanRng:
    """Makes one Philox generator for each segment: equal segments of equal plans draw equal
    numbers.
    """

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def __call__(self, item: Segment | Pixels) -> np.random.Generator:
        if isinstance(item, Segment):
            words = [self.seed, item.ordinal, *item.grid]
        else:
            words = [self.seed, item.image, *item.array.shape[:3]]
        return np.random.Generator(np.random.Philox(np.random.SeedSequence(words)))
