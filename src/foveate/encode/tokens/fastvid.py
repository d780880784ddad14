"""FastVID: a video is cut where its frames change; salient tokens stay, the others merge on
anchor frames.

Paper: L. Shen, G. Gong, T. He, Y. Zhang, P. Liu, S. Zhao, G. Ding, "FastVID: Dynamic Density
Pruning for Fast Video Large Language Models", 2025, arXiv 2503.11187. Segments are cut
at the cuts - 1 lowest similarities of neighbouring frames and at every similarity below tau. Each
frame has an equal budget; a share 1 - d of it goes to its most attended tokens. The rest of a
segment's budget goes to density peaks (k nearest neighbours, k = 4, among a frame's non-salient
tokens) on anchor frames: the last one of the segment and every step-th before it. All non-salient
tokens of the segment are assigned to the nearest peak (cosine) of every anchor frame, and a peak
becomes w * itself + (1 - w) * mean of its members, itself among them, w = max(1 / (members + 1),
beta).

Differs from the authors' code: the count is met exactly (what their floors lose and what does not
fit on an anchor frame goes to further tokens); ties are broken by position, not by noise; a frame
is represented by the mean of its projected tokens, where theirs has the attention-pooling head of
its tower.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from foveate.core import arrays
from foveate.core.budget import Counts, largest_remainder
from foveate.core.density import density_peaks
from foveate.core.method import Evidence, Paper, Rng, TokenMethod, setting
from foveate.core.registry import register
from foveate.core.views import Array, Need, Question, Reduction, Segment
from foveate.encode.tokens._common import each, frame_means, full_grid, saliency
from foveate.encode.tokens.uniform import shares

LAYER = -1


def cut(frames: Array, cuts: int, tau: float) -> list[int]:
    """Lengths of the segments of (t, c) frame features: cut at low similarity of neighbours."""
    xp = arrays.namespace(frames)
    u = arrays.unit(frames)
    t = int(u.shape[0])
    close = arrays.quantum(xp.sum(u[1:, :] * u[:-1, :], axis=1))
    lowest = np.argsort(close, kind="stable")[: cuts - 1]
    below = np.flatnonzero(close < arrays.quantum(np.asarray(tau)))
    borders = np.union1d(lowest, below) + 1
    return np.diff(np.concatenate([[0], borders, [t]])).astype(int).tolist()


@dataclass(frozen=True)
class Shares:
    """How many tokens each frame keeps for its attention, and how many as density peaks."""

    salient: np.ndarray
    peaks: np.ndarray


def split(budget: np.ndarray, lengths: list[int], size: int, d: float, step: int) -> Shares:
    """Split each frame's budget (t,) of `size` tokens; the peaks' part moves to the anchor
    frames.
    """
    context = (budget * d).astype(np.int64)
    salient, peaks = budget - context, np.zeros_like(budget)
    start = 0
    for length in lengths:
        end = start + length
        anchors = np.arange(end - 1, start - 1, -step)
        wanted = int(context[start:end].sum())
        caps = (size - salient[anchors]).tolist()
        parts = largest_remainder(wanted, [1] * anchors.size, caps=caps)
        peaks[anchors] = parts
        free = (size - salient[start:end] - peaks[start:end]).tolist()
        more = largest_remainder(wanted - sum(parts), [1] * length, caps=free)
        salient[start:end] += np.asarray(more, dtype=np.int64)
        start = end
    return Shares(salient, peaks)


def fast_video(
    features: Array, score: np.ndarray, lengths: list[int], parts: Shares, beta: float, step: int
) -> Reduction:
    """The reduction of t frames (n, d) with attention (n,), cut into segments of `lengths`
    frames.
    """
    n, t = int(features.shape[0]), sum(lengths)
    size = n // t
    anchor: list[np.ndarray] = []
    rows: list[np.ndarray] = []
    cols: list[np.ndarray] = []
    weights: list[np.ndarray] = []
    done = start = 0
    for length in lengths:
        frames = range(start, start + length)
        salient = [
            f * size
            + arrays.top_k(
                score[f * size : (f + 1) * size], int(parts.salient[f]), arrays.FINE_BITS
            )
            for f in frames
        ]
        kept = np.concatenate(salient)
        anchor.append(kept)
        rows.append(done + np.arange(kept.size))
        cols.append(kept)
        weights.append(np.ones(kept.size))
        done += kept.size
        rest = start * size + arrays.nonzero(~arrays.mask_of(kept - start * size, length * size))
        for f in reversed(frames):
            if not parts.peaks[f]:
                continue
            own = rest[(rest >= f * size) & (rest < (f + 1) * size)]
            peaks = own[density_peaks(arrays.take(features, own), int(parts.peaks[f]))]
            _, home = arrays.nearest(arrays.take(features, rest), arrays.take(features, peaks))
            members = np.bincount(home, minlength=peaks.size)
            own_share = np.maximum(1.0 / (members + 1), beta)
            anchor.append(peaks)
            rows += [done + np.arange(peaks.size), done + home]
            cols += [peaks, rest]
            weights += [own_share, ((1.0 - own_share) / np.maximum(members, 1))[home]]
            done += peaks.size
        start += length
    matrix = (np.concatenate(rows), np.concatenate(cols), np.concatenate(weights))
    return Reduction.of(np.concatenate(anchor), *matrix, n)


@register
@dataclass(frozen=True)
class FastVID(TokenMethod):
    """Segments, salient tokens, density peaks. O(t n² d / t²) for the peaks, O(n k d) for the
    merging.
    """

    name: ClassVar[str] = "fastvid"
    summary: ClassVar[str] = "video: salient tokens of each frame, the rest merged on anchor frames"
    paper: ClassVar[Paper | None] = Paper(
        "FastVID: Dynamic Density Pruning for Fast Video Large Language Models",
        "Shen, Gong, He, Zhang, Liu, Zhao, Ding",
        2025,
        "2503.11187",
        "MIT",
    )
    evidence: ClassVar[Evidence] = "golden"
    needs: ClassVar[frozenset[Need]] = frozenset({Need("saliency", LAYER)})

    cuts: int = setting(8, "segments that a video has at least", low=1)
    tau: float = setting(0.9, "frames less similar than this are cut apart", low=-1.0, high=1.0)
    d: float = setting(0.4, "share of the budget that merged tokens have", low=0.0, high=1.0)
    step: int = setting(4, "frames between the anchor frames of a segment", low=1)
    beta: float = setting(0.6, "least share of a merged token that is itself", low=0.0, high=1.0)

    def select(
        self, segments: list[Segment], counts: Counts, question: Question | None, rng: Rng
    ) -> list[Reduction]:
        def choose(segment: Segment, k: int) -> Reduction:
            t, h, w = full_grid(segment, self.name)
            score = saliency(segment, LAYER, self.name)
            lengths = cut(frame_means(segment.features, t), self.cuts, self.tau)
            parts = split(shares(k, t), lengths, h * w, self.d, self.step)
            return fast_video(segment.features, score, lengths, parts, self.beta, self.step)

        return each(segments, counts, choose)
