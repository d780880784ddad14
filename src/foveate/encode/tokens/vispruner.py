"""VisPruner: half of the tokens by encoder attention, the other half thinned of duplicates.

Paper: Q. Zhang, A. Cheng, M. Lu, R. Zhang, Z. Zhuo, J. Cao, S. Guo, Q. She, S. Zhang, "Beyond
Text-Visual Attention: Exploiting Visual Cues for Effective Token Pruning in VLMs", ICCV 2025, arXiv
2412.01818 (version 2 on). Important tokens are the top share by CLS (or received)
attention. The rest, ordered by falling attention, is split into even and odd positions in rounds;
each even token's largest cosine to an odd one says how redundant it is, and the most redundant go,
until the diverse share is left. Cosines are those of encoder features before the projector.

What the authors' code does and this file follows: the even survivors of a round are left in falling
order of their redundancy, before the odd ones, and this order decides the next split.

What differs: an odd number of tokens leaves one more at even positions (their code fails); a round
drops max(step, R // 64) of R tokens instead of `step`, equal up to 575 tokens (their tiles hold
576), so that the number of rounds grows with log n, not n.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from foveate.core import arrays
from foveate.core.budget import Counts
from foveate.core.method import Evidence, Paper, Rng, TokenMethod, setting
from foveate.core.registry import register
from foveate.core.views import Array, Need, Question, Reduction, Segment
from foveate.encode.tokens._common import each, encoder_features, saliency

LAYER = -2
_NEAREST = 32
_COPIED = 1 << 21  # elements


class Twins:
    """The largest similarity of tokens (r, c) to those of a changing set, from lists of the nearest.

    Each token keeps its _NEAREST most similar ones among those alive when the lists were made. The
    first of them that is in the set is the most similar of the whole set; a token whose list has
    none is compared with the set itself. Similarities are in units of 2**-ORDER_BITS.
    """

    def __init__(self, u: Array) -> None:
        self._u = u
        self._index = self._value = np.empty((0, 0), dtype=np.int32)
        self._list()

    def _products(
        self, rows: np.ndarray, others: np.ndarray | None = None
    ) -> Iterator[tuple[slice, np.ndarray]]:
        xp = arrays.namespace(self._u)
        right = self._u if others is None else arrays.take(self._u, others)
        step = max(1, (1 << 20) // max(1, *self._u.shape))
        for a in range(0, rows.size, step):
            part = slice(a, min(a + step, rows.size))
            left = arrays.take(self._u, rows[part]) * float(1 << arrays.ORDER_BITS)
            yield part, arrays.to_numpy(xp.round(left @ right.T))

    def _list(self) -> None:
        n = int(self._u.shape[0])
        shape = (n, min(_NEAREST, n - 1))
        self._index, self._value = np.zeros(shape, dtype=np.int32), np.zeros(shape, dtype=np.int32)
        for part, block in self._products(np.arange(n)):
            rows = np.arange(block.shape[0])
            block[rows, part.start + rows] = -np.inf
            near = np.argpartition(block, -shape[1], axis=1)[:, -shape[1] :]
            value = np.take_along_axis(block, near, axis=1)
            order = np.argsort(-value, axis=1)
            self._index[part] = np.take_along_axis(near, order, axis=1)
            self._value[part] = np.take_along_axis(value, order, axis=1)

    def narrow(self, alive: np.ndarray) -> None:
        """Leave only the tokens alive (rising), renumbered from 0, with new lists: O(alive² c).

        In place: a copy of half of the rows would be the largest piece of memory here.
        """
        step = max(1, (1 << 20) // max(1, int(self._u.shape[1])))
        for a in range(0, alive.size, step):
            # Row i comes from a row at or after i, so nothing is overwritten before it is read.
            part = alive[a : a + step]
            self._u[a : a + part.size, :] = arrays.take(self._u, part)
        self._u = self._u[: alive.size, :]
        self._list()

    def nearest(self, rows: np.ndarray, others: np.ndarray) -> tuple[np.ndarray, int]:
        """(largest similarity (b,) of `rows` to `others`, how many were not in the lists)."""
        hit = arrays.mask_of(others, self._index.shape[0])[self._index[rows]]
        first = hit.argmax(axis=1)
        best = self._value[rows, first].astype(np.int64)
        missed = np.flatnonzero(~hit[np.arange(rows.size), first])
        if missed.size:
            # A copy of the others halves the work, where it is small beside the features.
            few = others.size * int(self._u.shape[1]) <= _COPIED
            for part, block in self._products(rows[missed], others if few else None):
                best[missed[part]] = (block if few else block[:, others]).max(axis=1)
        return best, missed.size


def thin_out(features: Array, order: np.ndarray, k: int, step: int) -> np.ndarray:
    """Positions of the k tokens of `order` (r,) that rounds of even/odd duplicate removal
    leave.

    O(r²c) for the lists of nearest tokens; they are made anew when tokens have gone from them, by
    then for a fraction of r. No (r, r) matrix is held, and one copy of the features.
    """
    if k <= 0 or order.size <= k:
        return order[: max(k, 0)]
    left = np.arange(order.size)
    twins = Twins(arrays.unit(features, order))
    while left.size > k:
        even, odd = left[::2], left[1::2]
        twin, missed = twins.nearest(even, odd)
        drop = min(max(step, left.size // 64), left.size - k)
        ranked = even[np.argsort(-twin, kind="stable")]
        left = np.concatenate([ranked[drop:], odd])
        if missed * 16 > even.size and left.size > k:
            alive = arrays.ascending(left)
            order, left = order[alive], np.searchsorted(alive, left)
            twins.narrow(alive)
    return order[left]


@register
@dataclass(frozen=True)
class VisPruner(TokenMethod):
    """Important tokens by attention, diverse ones by duplicate removal."""

    name: ClassVar[str] = "vispruner"
    summary: ClassVar[str] = "keeps attended tokens, and a diverse rest without duplicates"
    paper: ClassVar[Paper | None] = Paper(
        "Beyond Text-Visual Attention: Exploiting Visual Cues for Effective Token Pruning in VLMs",
        "Zhang, Cheng, Lu, Zhang, Zhuo, Cao, Guo, She, Zhang",
        2025,
        "2412.01818",
        "Apache-2.0",
    )
    evidence: ClassVar[Evidence] = "golden"
    needs: ClassVar[frozenset[Need]] = frozenset({Need("saliency", LAYER), Need("features", LAYER)})

    important: float = setting(
        0.5, "share of the kept tokens that attention chooses", low=0.0, high=1.0
    )
    step: int = setting(8, "tokens that a round of duplicate removal drops", low=1)

    def select(
        self, segments: list[Segment], counts: Counts, question: Question | None, rng: Rng
    ) -> list[Reduction]:
        def choose(segment: Segment, k: int) -> Reduction:
            score = saliency(segment, LAYER, self.name)
            order = arrays.top_k(score, segment.n, arrays.FINE_BITS)
            first = int(k * self.important)
            kept = order[:first]
            if first < k:
                features = encoder_features(segment, LAYER, self.name)
                diverse = thin_out(features, order[first:], k - first, self.step)
                kept = np.concatenate([kept, diverse])
            return Reduction.pick(kept, segment.n)

        return each(segments, counts, choose)
