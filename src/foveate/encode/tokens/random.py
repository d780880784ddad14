"""A random choice of visual tokens: the control every method must beat."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from foveate.core.budget import Counts
from foveate.core.method import Evidence, Rng, TokenMethod
from foveate.core.registry import register
from foveate.core.views import Question, Reduction, Segment
from foveate.encode.tokens._common import each


@register
@dataclass(frozen=True)
class Random(TokenMethod):
    """k of n tokens without repetition, uniformly, from the plan's seed and the segment alone.
    O(n).
    """

    name: ClassVar[str] = "random"
    summary: ClassVar[str] = "keeps randomly chosen tokens (control)"
    evidence: ClassVar[Evidence] = "control"

    def select(
        self, segments: list[Segment], counts: Counts, question: Question | None, rng: Rng
    ) -> list[Reduction]:
        def choose(segment: Segment, k: int) -> Reduction:
            return Reduction.pick(rng(segment).permutation(segment.n)[:k], segment.n)

        return each(segments, counts, choose)
