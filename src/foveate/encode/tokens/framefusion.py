"""FrameFusion, the merging half: runs of alike tokens at one place of a video become their
mean.

Paper: T. Fu, T. Liu, Q. Han, G. Dai, S. Yan, H. Yang, X. Ning, Y. Wang, "FrameFusion: Combining
Similarity and Importance for Video Token Reduction on Large Vision Language Models", ICCV 2025,
arXiv 2501.01986. A token that is alike (cosine) the token at the same place one frame before joins
its run; a run becomes the mean of its tokens.

Differs from the paper, which merges everything above a similarity of 0.6 in the first layers of the
language model and then prunes by attention to the budget: here the n - k most alike neighbours are
joined, so that exactly k tokens stay. A place keeps at least one token, so the count has a floor of
one frame. A merged token stands where its run begins. A request without a video is refused.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from foveate.core import arrays
from foveate.core.budget import Counts
from foveate.core.errors import InputError
from foveate.core.method import Evidence, Paper, Rng, TokenMethod
from foveate.core.registry import register
from foveate.core.views import Grid, Question, Reduction, Segment
from foveate.encode.tokens._common import each, full_grid, refuse_without_video
from foveate.encode.tokens.evs import novelty


@register
@dataclass(frozen=True)
class FrameFusion(TokenMethod):
    """Joins the most alike neighbours in time. O(n d)."""

    name: ClassVar[str] = "framefusion"
    summary: ClassVar[str] = "video: averages runs of alike tokens at the same place"
    paper: ClassVar[Paper | None] = Paper(
        "FrameFusion: Combining Similarity and Importance for Video Token Reduction",
        "Fu, Liu, Han, Dai, Yan, Yang, Ning, Wang",
        2025,
        "2501.01986",
        "MIT",
    )
    evidence: ClassVar[Evidence] = "reference"
    video_only: ClassVar[bool] = True

    def count(self, grid: Grid, k: int) -> int:
        return max(grid[1] * grid[2], k)

    def select(
        self, segments: list[Segment], counts: Counts, question: Question | None, rng: Rng
    ) -> list[Reduction]:
        refuse_without_video(segments, self.name)

        def choose(segment: Segment, k: int) -> Reduction:
            t, h, w = full_grid(segment, self.name)
            size, n = h * w, segment.n
            if k < size:
                raise InputError(f"framefusion keeps at least one frame, {size} tokens; got {k}")
            joined = size + arrays.top_k(-novelty(segment.features, t), n - k)
            begin = ~arrays.mask_of(joined, n)
            # The start of each token's run: its own, or that of the token one frame before.
            start = np.arange(n)
            for f in range(1, t):
                here = np.arange(f * size, (f + 1) * size)
                start[here] = np.where(begin[here], here, start[here - size])
            anchor = arrays.nonzero(begin)
            row = np.searchsorted(anchor, start)
            weight = 1.0 / np.bincount(row, minlength=k)[row]
            return Reduction.of(anchor, row, np.arange(n), weight, n)

        return each(segments, counts, choose)
