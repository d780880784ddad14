"""Keeps the first k tokens of each segment, the top left corner of a picture. An example, not a
good idea: it shows all that a method from outside needs.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from foveate.core.budget import Counts
from foveate.core.method import Evidence, Rng, TokenMethod
from foveate.core.views import Question, Reduction, Segment


@dataclass(frozen=True)
class ExampleCorner(TokenMethod):
    """The first k of n tokens, in raster order. O(k)."""

    name: ClassVar[str] = "example-corner"
    summary: ClassVar[str] = "keeps the first tokens of each picture (third-party example)"
    evidence: ClassVar[Evidence] = "control"

    def select(
        self, segments: list[Segment], counts: Counts, question: Question | None, rng: Rng
    ) -> list[Reduction]:
        return [
            Reduction.pick(np.arange(k), segment.n)
            for segment, k in zip(segments, counts.per_segment, strict=True)
        ]
