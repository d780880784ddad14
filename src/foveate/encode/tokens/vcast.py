"""V-CAST: frames where the video bends get more tokens; in a frame, those far from its mean and
strong.

Paper: X. Lin, X. Liu, Y. Wang, T. Ma, W. Ren, "V-CAST: Video Curvature-Aware Spatio-Temporal
Pruning for Efficient Video Large Language Models", 2026, arXiv 2603.27650. A frame is represented
by the normalised mean of its tokens. Its curvature is 1 - cosine between the step that leads to it
and the step that leaves it, 1 at both ends; budgets follow softmax(curvature / 0.7), at least one
token a frame, by largest remainder. In a frame the tokens with the largest (1 - cosine to the
frame's mean) + min-max of their length stay.

A step of length zero has no direction and counts as curvature 1. With fewer tokens than frames some
frames keep none.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from typing import ClassVar

import numpy as np

from foveate.core import arrays
from foveate.core.budget import Counts, largest_remainder
from foveate.core.method import Evidence, Paper, Rng, TokenMethod, setting
from foveate.core.registry import register
from foveate.core.views import Array, Question, Reduction, Segment
from foveate.encode.tokens._common import blocks, each, frame_means, full_grid


def curvature(frames: Array) -> np.ndarray:
    """(t,): how sharply the path through the (t, d) frame representations turns at each frame."""
    xp = arrays.namespace(frames)
    steps = arrays.unit(frames)
    steps = steps[1:, :] - steps[:-1, :]
    # Steps shorter than rounding have no direction; without this, noise would have one.
    length = arrays.to_numpy(xp.sqrt(xp.sum(steps * steps, axis=1)))
    turn = np.ones(int(frames.shape[0]))
    if turn.size > 2:
        u = arrays.unit(steps)
        cosine = arrays.to_numpy(xp.sum(u[1:, :] * u[:-1, :], axis=1))
        moving = (length[1:] > 2.0**-20) & (length[:-1] > 2.0**-20)
        turn[1:-1] = np.where(moving, 1.0 - cosine, 1.0)
    return turn


def prominence(features: Array) -> np.ndarray:
    """(n,): 1 - cosine to the mean token, plus the length of each token brought to [0, 1]."""
    xp = arrays.namespace(features)
    n = int(features.shape[0])
    centre = sum(xp.sum(rows, axis=0) for _, rows in blocks(features)) / n
    centre = arrays.unit(xp.reshape(centre, (1, -1)))[0, :]
    away = arrays.on_grid(1.0 - arrays.unit(features) @ centre)
    length = np.empty(n)
    for part, rows in blocks(features):
        length[part] = arrays.to_numpy(xp.sqrt(xp.sum(rows * rows, axis=1)))
    peak = float(length.max()) or 1.0
    length = arrays.on_grid(length / peak)
    width = float(length.max() - length.min())
    return away + ((length - length.min()) / width if width > 0.0 else 0.0)


@register
@dataclass(frozen=True)
class VCast(TokenMethod):
    """Frame budgets by curvature, tokens by prominence. O(n d)."""

    name: ClassVar[str] = "v-cast"
    summary: ClassVar[str] = "video: more tokens where the video bends, prominent ones in a frame"
    paper: ClassVar[Paper | None] = Paper(
        "V-CAST: Video Curvature-Aware Spatio-Temporal Pruning for Efficient Video LLMs",
        "Lin, Liu, Wang, Ma, Ren",
        2026,
        "2603.27650",
        "unknown",
    )
    evidence: ClassVar[Evidence] = "reference"

    temperature: float = setting(0.7, "softmax temperature of the frame budgets", low=0.01)

    def select(
        self, segments: list[Segment], counts: Counts, question: Question | None, rng: Rng
    ) -> list[Reduction]:
        def choose(segment: Segment, k: int) -> Reduction:
            t, h, w = full_grid(segment, self.name)
            turn = curvature(frame_means(segment.features, t))
            weight = np.exp((turn - turn.max()) / self.temperature)
            weights = [Fraction(int(q)) for q in arrays.quantum(weight)]
            floor = 1 if k >= t else 0
            parts = largest_remainder(k, weights, floor=floor, caps=[h * w] * t)
            kept = []
            for f, q in enumerate(parts):
                frame = segment.features[f * h * w : (f + 1) * h * w, :]
                kept.append(f * h * w + arrays.top_k(prominence(frame), q))
            return Reduction.pick(np.concatenate(kept), segment.n)

        return each(segments, counts, choose)
