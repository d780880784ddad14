"""DyCoke, the prefill half: of every four frames one stays whole, the others keep what changed.

Paper: K. Tao, C. Qin, H. You, Y. Sui, H. Wang, "DyCoke: Dynamic Compression of Tokens for Fast
Video Large Language Models", CVPR 2025, arXiv 2411.15024, its temporal token merging. In
groups of four frames, the second is compared with the first, the fourth with the third, and the
third with the first, token by token at the same place; a compared frame keeps the places with the
lowest cosine.

Differs from the authors' code, where each compared frame keeps a fixed 30 %: the budget decides,
equally over the compared frames, those of earlier frames larger by one. The first frames of the
groups stay whole, which is the floor of the count. A request without a video is refused. The
dynamic pruning of the cache while decoding is a memory method.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from foveate.core import arrays
from foveate.core.budget import Counts, largest_remainder
from foveate.core.errors import InputError
from foveate.core.method import Evidence, Paper, Rng, TokenMethod
from foveate.core.registry import register
from foveate.core.views import Grid, Question, Reduction, Segment
from foveate.encode.tokens._common import each, full_grid, refuse_without_video

GROUP = 4


def compared_with(frame: int) -> int | None:
    """The frame that a frame is compared with, or None for the first of its group."""
    place = frame % GROUP
    return None if place == 0 else frame - (2 if place == 2 else 1)


@register
@dataclass(frozen=True)
class DyCoke(TokenMethod):
    """Whole first frames, changed places of the others. O(n d)."""

    name: ClassVar[str] = "dycoke"
    summary: ClassVar[str] = "video: one frame of four whole, changed places of the others"
    paper: ClassVar[Paper | None] = Paper(
        "DyCoke: Dynamic Compression of Tokens for Fast Video Large Language Models",
        "Tao, Qin, You, Sui, Wang",
        2025,
        "2411.15024",
        "Apache-2.0",
    )
    evidence: ClassVar[Evidence] = "reference"
    video_only: ClassVar[bool] = True

    def count(self, grid: Grid, k: int) -> int:
        return max(-(-grid[0] // GROUP) * grid[1] * grid[2], k)

    def select(
        self, segments: list[Segment], counts: Counts, question: Question | None, rng: Rng
    ) -> list[Reduction]:
        refuse_without_video(segments, self.name)

        def choose(segment: Segment, k: int) -> Reduction:
            t, h, w = full_grid(segment, self.name)
            size = h * w
            whole = [f for f in range(t) if compared_with(f) is None]
            if k < len(whole) * size:
                raise InputError(
                    f"dycoke keeps one frame of {GROUP}, {len(whole) * size} tokens; got {k}"
                )
            others = [f for f in range(t) if compared_with(f) is not None]
            left = k - len(whole) * size
            parts = largest_remainder(left, [1] * len(others), caps=[size] * len(others))
            kept = [np.arange(f * size, (f + 1) * size) for f in whole]
            xp = arrays.namespace(segment.features)
            for f, q in zip(others, parts, strict=True):
                before = compared_with(f) or 0
                a, b = (
                    arrays.unit(segment.features[i * size : (i + 1) * size, :]) for i in (f, before)
                )
                change = arrays.on_grid(1.0 - xp.sum(a * b, axis=1))
                kept.append(f * size + arrays.top_k(change, q))
            return Reduction.pick(np.concatenate(kept), segment.n)

        return each(segments, counts, choose)
