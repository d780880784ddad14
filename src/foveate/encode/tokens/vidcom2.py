"""VidCom2: unusual frames get more tokens, and in a frame the unusual tokens stay.

Paper: X. Liu, Y. Wang, J. Ma, L. Zhang, "Video Compression Commander: Plug-and-Play Inference
Acceleration for Video Large Language Models", EMNLP 2025, arXiv 2505.14454. On the half of the
channels with the lowest variance, tokens are brought to length one. Their likeness to a centre is
the sum over alpha = 2**-3 … 2**1 of exp(-distance**2 / (2 alpha)), the centres are the mean of the
video and the mean of the frame, not normalised again. A frame's share is 1 + softmax(-mean likeness
to the video / 0.01) minus its mean over frames; the tokens with the lowest sum of both likenesses
stay.

Differs from the authors' code: the budget is met exactly (theirs rounds each frame), frames by
largest remainder, at least one token a frame if k allows. A picture is a video of one frame.
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
from foveate.encode.tokens._common import blocks, each, full_grid


def quiet_channels(features: Array, share: float) -> np.ndarray:
    """The `share` of channels of (n, d) with the lowest variance over all tokens, ascending."""
    xp = arrays.namespace(features)
    n, d = int(features.shape[0]), int(features.shape[1])
    mean = sum(xp.sum(rows, axis=0) for _, rows in blocks(features)) / n
    spread = sum(xp.sum((rows - mean) ** 2, axis=0) for _, rows in blocks(features)) / n
    quiet = arrays.top_k(-arrays.to_numpy(spread), max(1, int(d * share)), arrays.FINE_BITS)
    return arrays.ascending(quiet)


def likeness(tokens: Array, centre: Array) -> np.ndarray:
    """(n,): sum over five widths of a Gaussian of the distance of each token to the centre (d,)."""
    xp = arrays.namespace(tokens)
    squared = np.empty(int(tokens.shape[0]))
    for part, rows in blocks(tokens):
        squared[part] = arrays.to_numpy(xp.sum((rows - centre) ** 2, axis=1))
    # Brought to the grid before the exponential, so that equal tokens stay equal in any library.
    squared = arrays.on_grid(squared, arrays.FINE_BITS)
    widths = 2.0 ** np.arange(-3, 2)
    return np.exp(-squared[:, None] / (2.0 * widths)).sum(axis=1)


def frame_shares(mean: np.ndarray, temperature: float) -> np.ndarray:
    """(t,) relative budgets from each frame's mean likeness to the video."""
    logits = -mean / temperature
    weight = np.exp(logits - logits.max())
    weight = weight / weight.sum()
    return 1.0 + weight - weight.mean()


@register
@dataclass(frozen=True)
class VidCom2(TokenMethod):
    """Frame budgets and token choice by distance from the mean. O(n d)."""

    name: ClassVar[str] = "vidcom2"
    summary: ClassVar[str] = "video: more tokens for unusual frames, unusual tokens in each"
    paper: ClassVar[Paper | None] = Paper(
        "Video Compression Commander: Plug-and-Play Inference Acceleration for Video LLMs",
        "Liu, Wang, Ma, Zhang",
        2025,
        "2505.14454",
        "Apache-2.0",
    )
    evidence: ClassVar[Evidence] = "reference"

    channels: float = setting(0.5, "share of channels of lowest variance used", low=0.01, high=1.0)
    temperature: float = setting(0.01, "softmax temperature of the frame budgets", low=1e-4)

    def select(
        self, segments: list[Segment], counts: Counts, question: Question | None, rng: Rng
    ) -> list[Reduction]:
        def choose(segment: Segment, k: int) -> Reduction:
            t, h, w = full_grid(segment, self.name)
            x = _columns(segment.features, quiet_channels(segment.features, self.channels))
            xp = arrays.namespace(x)
            tokens, size = arrays.unit(x), h * w
            video = likeness(tokens, xp.mean(tokens, axis=0))
            frames = [tokens[f * size : (f + 1) * size, :] for f in range(t)]
            own = np.concatenate([likeness(x, xp.mean(x, axis=0)) for x in frames])
            shares = frame_shares(video.reshape(t, size).mean(axis=1), self.temperature)
            weights = [Fraction(int(q)) for q in arrays.quantum(shares)]
            floor = 1 if k >= t else 0
            parts = largest_remainder(k, weights, floor=floor, caps=[size] * t)
            score = -(video + own)
            kept = [
                f * size + arrays.top_k(score[f * size : (f + 1) * size], q, arrays.FINE_BITS)
                for f, q in enumerate(parts)
            ]
            return Reduction.pick(np.concatenate(kept), segment.n)

        return each(segments, counts, choose)


def _columns(x: Array, indices: np.ndarray) -> Array:
    return arrays.take(arrays.namespace(x).permute_dims(x, (1, 0)), indices).T
