"""TrimTokenator-LC: one budget over many images, spent where the content is.

Paper: H. Zhang, M. Lyu, B. Huang, Y. Ao, Y. Lin, "TrimTokenator-LC: Towards Adaptive Visual Token
Pruning for Large Multimodal Models with Long Contexts", 2025, arXiv 2512.22748. Known from it: the
diversity inside an image D_intra = mean of 1 - cosine over its pairs of tokens; a variation D_inter
between images; a local stage (a budget by content for each image, greedy representative tokens) and
a global one (diversity filter, then a Pareto choice of diversity and text alignment); text only at
the end.

Reconstructed, for want of code and of the exact formulas: D_inter is the mean of 1 - cosine between
images' mean tokens; the local stage passes T1 = T (1 + kappa D_intra / (D_intra + D_inter)) tokens,
shared in proportion to tokens times D_intra, at least one an image; the global filter (RepMax over
all) passes pool * T; candidates are ranked by non-dominated fronts of (1 - mean cosine to the pool,
largest cosine to a word of the question), inside a front by crowding distance (Deb et al. 2002).
Every image keeps at least one token. Tiles count as images of their own in the local stage, as one
image in that floor.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction
from typing import ClassVar, Literal

import numpy as np

from foveate.core import arrays
from foveate.core.budget import Counts, largest_remainder
from foveate.core.errors import InputError
from foveate.core.method import Evidence, Paper, Rng, TokenMethod, setting
from foveate.core.registry import register
from foveate.core.views import Array, Need, Question, Reduction, Segment
from foveate.encode.tokens._common import identity, on_device_of, pairs, words_of


def diversity(features: Array) -> tuple[int, np.ndarray]:
    """D_intra in units of 2**-20 and the sum of the unit tokens (d,). One token has no
    diversity.
    """
    xp = arrays.namespace(features)
    n = int(features.shape[0])
    total = arrays.to_numpy(xp.sum(arrays.unit(features), axis=0))
    if n < 2:
        return 0, total
    mean = (float(total @ total) - n) / (n * (n - 1))
    return max(0, int(arrays.quantum(np.asarray(1.0 - mean)))), total


def fronts(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """(p,) number of the non-dominated front, 0 the best, of two integer objectives, both to be
    large.

    Equal points share a front. One pass in falling order with a binary search: O(p log p).
    """
    points, owner = np.unique(np.stack([first, second], axis=1), axis=0, return_inverse=True)
    front = np.empty(len(points), dtype=np.int64)
    tops: list[int] = []
    for i in range(len(points) - 1, -1, -1):
        value = int(points[i, 1])
        low, high = 0, len(tops)
        while low < high:
            middle = (low + high) // 2
            low, high = (middle + 1, high) if tops[middle] >= value else (low, middle)
        tops[low : low + 1] = [value]
        front[i] = low
    return front[owner.reshape(-1)]


def crowding(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """(p,) crowding distance inside one front; its ends are infinitely far."""
    out = np.zeros(first.shape[0])
    for values in (first, second):
        order = np.argsort(values, kind="stable")
        width = float(values[order[-1]] - values[order[0]]) or 1.0
        out[order[[0, -1]]] = np.inf
        out[order[1:-1]] += (values[order[2:]] - values[order[:-2]]) / width
    return out


def pareto_order(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Positions from best to worst: by front, then crowding distance, then position."""
    front = fronts(first, second)
    far = np.empty(front.shape[0])
    for number in range(int(front.max()) + 1):
        members = np.flatnonzero(front == number)
        far[members] = crowding(first[members], second[members])
    return np.lexsort((np.arange(front.shape[0]), -far, front))


@register
@dataclass(frozen=True)
class TrimTokenatorLC(TokenMethod):
    """Local budgets by content, a global diversity filter, and a Pareto choice with the text."""

    name: ClassVar[str] = "trimtokenator-lc"
    summary: ClassVar[str] = "shares one budget over many images by content and question"
    paper: ClassVar[Paper | None] = Paper(
        "TrimTokenator-LC: Towards Adaptive Visual Token Pruning with Long Contexts",
        "Zhang, Lyu, Huang, Ao, Lin",
        2025,
        "2512.22748",
    )
    evidence: ClassVar[Evidence] = "reconstructed"
    counts: ClassVar[Literal["image", "request", "adaptive"]] = "request"
    needs: ClassVar[frozenset[Need]] = frozenset({Need("question")})

    kappa: float = setting(1.0, "how much more than the budget passes the local stage", low=0.0)
    pool: float = setting(1.5, "candidates of the last stage as a multiple of the budget", low=1.0)

    def select(
        self, segments: list[Segment], counts: Counts, question: Question | None, rng: Rng
    ) -> list[Reduction]:
        total = counts.total
        sizes = [s.n for s, _ in pairs(segments, counts)]
        if total >= sum(sizes):
            return [identity(s) for s in segments]
        words = words_of(question, self.name)
        images = sorted({s.image for s in segments if s.n})
        if total < len(images):
            raise InputError(f"{total} tokens cannot give each of {len(images)} images one")
        for s in segments:
            arrays.check_finite(s.features, f"features of image {s.image}:")
        local = self._local(segments, total)
        home = np.concatenate([np.full(x.size, i) for i, x in enumerate(local)])
        place = np.concatenate(local)
        owner = np.asarray([segments[i].image for i in home])
        xp = arrays.namespace(segments[0].features)
        union = xp.concat(
            [arrays.f32(arrays.take(s.features, x)) for s, x in zip(segments, local, strict=True)],
            axis=0,
        )
        candidates = min(place.size, math.ceil(self.pool * total))
        pool = arrays.ascending(arrays.greedy_mean(union, candidates))
        ranked = pool[self._rank(arrays.take(union, pool), words)]
        kept = _with_floor(ranked, owner, images, total)
        return [Reduction.pick(place[kept[home[kept] == i]], s.n) for i, s in enumerate(segments)]

    def _local(self, segments: list[Segment], total: int) -> list[np.ndarray]:
        facts = [diversity(s.features) for s in segments]
        inside = [d for d, _ in facts]
        means = arrays.unit(np.stack([z for _, z in facts]))
        m = len(segments)
        between = 0.0
        if m > 1:
            between = 1.0 - (float((means @ means.T).sum()) - m) / (m * (m - 1))
        inner = sum(inside) / m / 2.0**arrays.GRID_BITS
        both = inner + max(between, 0.0)
        wanted = total * (1.0 + self.kappa * (inner / both if both > 2.0**-20 else 0.0))
        sizes = [s.n for s in segments]
        weights = [Fraction(n * d) for n, d in zip(sizes, inside, strict=True)]
        budget = max(total, int(arrays.quantum(np.asarray(wanted), 0)))
        parts = largest_remainder(budget, weights, floor=1, caps=sizes)
        return [arrays.greedy_mean(s.features, b) for s, b in zip(segments, parts, strict=True)]

    def _rank(self, pool: Array, words: Array) -> np.ndarray:
        first = -arrays.Similarity(pool).sums()
        second, _ = arrays.nearest(pool, on_device_of(words, pool))
        return pareto_order(first, second)


def _with_floor(ranked: np.ndarray, owner: np.ndarray, images: list[int], total: int) -> np.ndarray:
    """The first `total` of the ranked candidates, but at least one of each image."""
    kept = []
    for image in images:
        own = ranked[owner[ranked] == image]
        # The filter may have dropped an image as a copy of another; its first local token returns.
        kept.append(int(own[0]) if own.size else int(np.flatnonzero(owner == image)[0]))
    rest = ranked[~np.isin(ranked, kept)]
    return np.sort(np.concatenate([np.asarray(kept), rest[: total - len(kept)]]))
