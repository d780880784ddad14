"""AIM, the merging half: similar tokens are averaged in rounds, each frame or image by itself.

Paper: Y. Zhong, Z. Liu, Y. Li, L. Wang, "AIM: Adaptive Inference of Multi-Modal LLMs via Token
Merging and Pruning", ICCV 2025, arXiv 2412.03248, its merging before the language model. Tokens at
even positions each look for the most similar (cosine) token at an odd position; the most similar
pairs merge, a receiver becomes the plain mean of itself and all that came to it. A round removes at
most half of the tokens; rounds follow until k are left. The next round sees the unmerged even
tokens in falling order of similarity, then the odd.

Differs from the authors' code: the count is met exactly for any k (they fix the rounds), and a
merged token takes the place of its receiver, where their output order is not spatial. The second
half of AIM, pruning by PageRank inside the language model, is `aim-pagerank`: AIM as a whole is
`aim:keep=1/4+aim-pagerank` in one plan.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from foveate.core import arrays
from foveate.core.budget import Counts, largest_remainder
from foveate.core.method import Evidence, Paper, Rng, TokenMethod
from foveate.core.registry import register
from foveate.core.views import Array, Grid, Question, Reduction, Segment
from foveate.encode.tokens._common import each, full_grid


def merge_rounds(
    x: Array, k: int, metric: Array | None = None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Merge n tokens (n, d) to k >= 1 by their own similarity or that of `metric` (n, a).

    Returns (anchor (k,), row (n,), weight (n,)): whose place a merged token takes, which one each
    token goes to, and its share in it. O(n²d) for the first round, a quarter of it for each next.
    """
    n = int(x.shape[0])
    keys = arrays.f32(x if metric is None else metric)
    anchor, row, weight = np.arange(n), np.arange(n), np.ones(n)
    while anchor.size > k:
        now = anchor.size
        sources, targets, rest = arrays.bipartite(keys, min(now // 2, now - k))
        order = np.concatenate([rest, np.arange(1, now, 2)])
        place = np.empty(now, dtype=np.int64)
        place[order] = np.arange(order.size)
        place[sources] = place[targets]
        keys = arrays.segment_mean(keys, place, order.size)
        weight = weight / np.bincount(place, minlength=order.size)[place[row]]
        row, anchor = place[row], anchor[order]
    return anchor, row, weight


@register
@dataclass(frozen=True)
class AIM(TokenMethod):
    """Bipartite merging of the projected tokens, frame by frame; at least one token a frame."""

    name: ClassVar[str] = "aim"
    summary: ClassVar[str] = "merges the most similar tokens of a picture or frame in rounds"
    paper: ClassVar[Paper | None] = Paper(
        "AIM: Adaptive Inference of Multi-Modal LLMs via Token Merging and Pruning",
        "Zhong, Liu, Li, Wang",
        2025,
        "2412.03248",
        "Apache-2.0",
    )
    evidence: ClassVar[Evidence] = "golden"

    def count(self, grid: Grid, k: int) -> int:
        return max(k, grid[0]) if k > 0 else 0

    def select(
        self, segments: list[Segment], counts: Counts, question: Question | None, rng: Rng
    ) -> list[Reduction]:
        def choose(segment: Segment, k: int) -> Reduction:
            t = full_grid(segment, self.name)[0] if segment.grid[0] > 1 else 1
            size = segment.n // t
            anchors, rows, weights, done = [], [], [], 0
            for frame, part in enumerate(largest_remainder(k, [1] * t, floor=1, caps=[size] * t)):
                x = segment.features[frame * size : (frame + 1) * size, :]
                anchor, row, weight = merge_rounds(x, part)
                anchors.append(anchor + frame * size)
                rows.append(row + done)
                weights.append(weight)
                done += part
            parts = (np.concatenate(rows), np.arange(segment.n), np.concatenate(weights))
            return Reduction.of(np.concatenate(anchors), *parts, segment.n)

        return each(segments, counts, choose)
