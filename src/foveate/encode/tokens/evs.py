"""EVS, efficient video sampling: drops tokens of a video that look like the frame before.

Paper: NVIDIA (N. Bagrov et al.), "Efficient Video Sampling: Pruning Temporally Redundant Tokens for
Faster VLM Inference", 2025, arXiv 2510.14624; the form that serving engines ship: dissimilarity 1 -
cosine between a projected token and the one at the same place a frame earlier, the first frame is
kept whole, then the highest dissimilarities of the whole video.

The count is exact and has a floor of one frame: max(h * w, k). An image has a single frame, so
nothing could be dropped from it; a request without a video is refused, beside a video images are
kept whole.
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
from foveate.core.views import Array, Grid, Question, Reduction, Segment
from foveate.encode.tokens._common import each, full_grid, refuse_without_video


def novelty(features: Array, t: int) -> np.ndarray:
    """(n - n / t,): 1 - cosine of each token of frames 1 … t-1 to its place a frame before."""
    xp = arrays.namespace(features)
    size = int(features.shape[0]) // t
    parts, before = [], arrays.unit(features[:size, :])
    for frame in range(1, t):
        now = arrays.unit(features[frame * size : (frame + 1) * size, :])
        parts.append(arrays.on_grid(1.0 - xp.sum(now * before, axis=1)))
        before = now
    return np.concatenate(parts)


@register
@dataclass(frozen=True)
class EVS(TokenMethod):
    """First frame, then the tokens that changed most. O(n d)."""

    name: ClassVar[str] = "evs"
    summary: ClassVar[str] = "video: keeps the first frame and the tokens that changed most"
    paper: ClassVar[Paper | None] = Paper(
        "Efficient Video Sampling: Pruning Temporally Redundant Tokens for Faster VLM Inference",
        "Bagrov et al. (NVIDIA)",
        2025,
        "2510.14624",
        "Apache-2.0",
    )
    evidence: ClassVar[Evidence] = "golden"
    video_only: ClassVar[bool] = True

    def count(self, grid: Grid, k: int) -> int:
        return max(grid[1] * grid[2], k)

    def select(
        self, segments: list[Segment], counts: Counts, question: Question | None, rng: Rng
    ) -> list[Reduction]:
        refuse_without_video(segments, self.name)

        def choose(segment: Segment, k: int) -> Reduction:
            t, h, w = full_grid(segment, self.name)
            if k < h * w:
                raise InputError(
                    f"evs keeps at least one frame, {h * w} tokens; got {k} (use count())"
                )
            changed = arrays.top_k(novelty(segment.features, t), k - h * w)
            return Reduction.pick(np.concatenate([np.arange(h * w), h * w + changed]), segment.n)

        return each(segments, counts, choose)
