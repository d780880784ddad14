"""InfiniPot-V: a cache of fixed size for a running video; no question is looked at.

M. Kim, K. Shim, J. Choi, S. Chang, "InfiniPot-V: Memory-Constrained KV Cache Compression for Streaming
Video Understanding", NeurIPS 2025, arXiv 2506.15745. Whenever a head holds |M| entries it is brought
to |C|. Temporal redundancy (TaR): the score of a visual entry before the r latest frames is minus the
mean cosine of its key with the keys of the same grid cell in those frames; the latest frames and the
entries with the best scores take α |C|. Value norm (VaN): the rest of |C| goes by the 2-norm of the
values, average-pooled over neighbours; as released over 7 x 7 cells in the lowest quarter of the
layers, 5 x 5 in the second, 3 along a row in the third, not at all in the last. The system prompt,
all text before the first visual token, always stays.

|C| is the budget, |M| is `capacity`: a third more than |C| where it is not given (blocks of 32 frames
are brought to 24 in the paper). A prompt that comes whole is brought to |C| once; one that comes in
parts, and the answer, whenever |M| is reached.

Reconstructed where the paper's streaming setting says nothing: all text stays, the latest first, as
far as |C| reaches, and the budget of visual entries is what it leaves; a still picture is a frame,
compared with frames of its own grid alone; an entry without any such partner counts as orthogonal,
and where TaR ties VaN decides, so that it ranks a single still picture alone; the latest frames stay
whole, the last first, as far as they fit in α of the visual budget, and compete by VaN where they do
not; places that were evicted before, and those beyond the border, are left out of means and pools
(released: zeros); layout tokens take part in VaN without neighbours. r is `recent` of the frames
there are, to the nearest (released: rounded down). Cost O(H n r a) a layer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, ClassVar

import numpy as np

from foveate.core import Paper, Reduction, arrays, register, setting
from foveate.core.errors import SettingError
from foveate.core.language import CachePolicy, KVView
from foveate.core.method import Evidence

REACH = ((0, 3, 3), (0, 2, 2), (0, 0, 1), (0, 0, 0))
"""Frames, rows and columns to each side that norms are averaged over, by quarter of the depth."""


def places(view: KVView, head: int) -> np.ndarray:
    """(n, 4): segment, frame, row and column of a head's entries; segment -1 for text, row -1 for
    layout tokens, which belong to no frame.
    """
    segment, cell = np.asarray(view.segment_of(head)), np.asarray(view.cell_of(head))
    out = np.full((len(segment), 4), -1, np.int64)
    out[:, 0] = segment
    for i in np.flatnonzero((segment >= 0) & (cell >= 0)):
        _, height, width = view.grids[segment[i]]
        frame, rest = divmod(int(cell[i]), height * width)
        out[i, 1:] = frame, *divmod(rest, width)
    return out


def redundancy(keys: Any, at: np.ndarray, latest: np.ndarray, grids: Any) -> np.ndarray:
    """TaR scores (n,) of entries with keys (n, a) at places (n, 4): minus the mean cosine with the
    entries of `latest` (n,) bool at the same cell of a frame of the same grid; 0 without a partner.
    """
    shape = {s: grids[s][1:] for s in np.unique(at[:, 0]) if s >= 0}
    names = [(*shape[s], r, c) if r >= 0 else None for s, _, r, c in at.tolist()]
    partners: dict[Any, list[int]] = {}
    for i in np.flatnonzero(latest):
        if names[i] is not None:
            partners.setdefault(names[i], []).append(int(i))
    mine, theirs = [], []
    for i in np.flatnonzero(~latest):
        for j in partners.get(names[i], ()) if names[i] is not None else ():
            mine.append(int(i))
            theirs.append(j)
    out = np.zeros(len(at))
    if mine:
        xp = arrays.namespace(keys)
        a, b = (arrays.take(keys, np.asarray(x)) for x in (mine, theirs))
        a, b = (xp.astype(x, arrays.wide(x)) for x in (a, b))
        norm = xp.sqrt(xp.sum(a * a, axis=-1) * xp.sum(b * b, axis=-1))
        cosine = arrays.to_numpy(xp.sum(a * b, axis=-1)) / np.maximum(arrays.to_numpy(norm), 1e-30)
        count = np.bincount(mine, minlength=len(at))
        out = -np.bincount(mine, cosine, len(at)) / np.maximum(count, 1)
    return arrays.on_grid(out)


def smoothed(norms: np.ndarray, at: np.ndarray, reach: tuple[int, int, int]) -> np.ndarray:
    """Norms (n,) averaged over the entries that are there within `reach` frames, rows and columns
    of their place (n, 4), in the same segment.
    """
    out = norms.astype(np.float64).copy()
    for segment in np.unique(at[at[:, 2] >= 0, 0]):
        index = np.flatnonzero((at[:, 0] == segment) & (at[:, 2] >= 0))
        spot = at[index, 1:] - at[index, 1:].min(0)
        box = np.zeros((2, *(spot.max(0) + 1)))
        box[0][tuple(spot.T)] = norms[index]
        box[1][tuple(spot.T)] = 1.0
        for axis, width in enumerate(reach):
            if width:
                box = _summed(box, axis + 1, width)
        total, count = box[0][tuple(spot.T)], box[1][tuple(spot.T)]
        out[index] = total / count
    return out


def _summed(box: np.ndarray, axis: int, reach: int) -> np.ndarray:
    """Sums over a window of 2 · reach + 1 along an axis, nothing beyond the border."""
    pad = [(reach, reach) if a == axis else (0, 0) for a in range(box.ndim)]
    wide = np.pad(box, pad)
    n = box.shape[axis]
    parts = (np.take(wide, np.arange(s, s + n), axis) for s in range(2 * reach + 1))
    return np.sum(list(parts), axis=0)


@register
@dataclass(frozen=True)
class InfiniPotV(CachePolicy):
    """Fixed memory by temporal redundancy of keys and norms of values, without a question."""

    name: ClassVar[str] = "infinipot-v"
    summary: ClassVar[str] = (
        "a cache of fixed size: frames that repeat the latest leave, strong values stay"
    )
    paper: ClassVar[Paper | None] = Paper(
        "InfiniPot-V: Memory-Constrained KV Cache Compression for Streaming Video Understanding",
        "Kim, Shim, Choi, Chang",
        2025,
        "2506.15745",
    )
    evidence: ClassVar[Evidence] = "reconstructed"
    when: ClassVar[Any] = "overflow"

    capacity: int | None = setting(
        None, "entries a head at which it is reduced; none = 4/3 of the budget", low=2
    )
    alpha: Fraction = setting(
        Fraction(1, 2), "share of the visual entries that goes by redundancy, 0 to 1"
    )
    recent: Fraction = setting(
        Fraction(1, 4), "share of the frames that others are compared with, 0 to 1"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("alpha", "recent"):
            if not 0 <= (value := getattr(self, name)) <= 1:
                raise SettingError(f"infinipot-v: {name} = {value} is out of range: 0 to 1")
        if self.capacity is not None and self.entries is not None and self.capacity <= self.entries:
            raise SettingError(
                f"infinipot-v: capacity = {self.capacity} must exceed entries = {self.entries}"
            )

    def overflows(self, entries: int, target: int) -> bool:
        return entries >= (target + -(-target // 3) if self.capacity is None else self.capacity)

    def select(self, layer: int, view: KVView, k: Sequence[int], stats: Any) -> list[Reduction]:
        reach = REACH[min(3, 4 * layer // max(1, view.layers))]
        return [self._head(view, head, count, reach) for head, count in enumerate(k)]

    def _head(self, view: KVView, head: int, count: int, reach: Any) -> Reduction:
        at = places(view, head)
        n, visual = len(at), at[:, 0] >= 0
        chosen = self._text(visual, count)
        left = min(count - len(chosen), int(visual.sum()))
        taken = np.zeros(n, bool)
        taken[chosen] = True
        if left:
            latest, frames = self._latest(at)
            part = int(self.alpha * left)
            for index in frames:
                if len(index) <= part:
                    taken[index] = True
                    part -= len(index)
            old = np.flatnonzero(visual & ~latest & ~taken)
            tar = redundancy(view.keys[head], at, latest, view.grids)
            van = smoothed(_norms(view.values[head]), at, reach)
            old = old[arrays.top_k(van[old], len(old))]  # so that ties go to the strongest
            taken[old[arrays.top_k(tar[old], part)]] = True
            rest = np.flatnonzero(visual & ~taken)
            taken[rest[arrays.top_k(van[rest], count - int(taken.sum()))]] = True
        return Reduction.pick(np.flatnonzero(taken), n, "cache")

    def _text(self, visual: np.ndarray, count: int) -> np.ndarray:
        """At most `count` entries that stay before any other: the last entry, the system prompt, then
        text, the latest first.
        """
        n = len(visual)
        text = np.flatnonzero(~visual)
        start = int(np.flatnonzero(visual)[0]) if visual.any() else 0
        order = [n - 1, *text[text < start].tolist(), *text[text >= start][::-1].tolist()]
        return np.asarray(list(dict.fromkeys(order))[:count], np.int64)

    def _latest(self, at: np.ndarray) -> tuple[np.ndarray, list[np.ndarray]]:
        """Mask (n,) of the entries of the latest frames, and the indices of each, the last first. All
        frames but one at most are latest ones.
        """
        inside = np.flatnonzero(at[:, 2] >= 0)
        names, which = np.unique(at[inside, :2], axis=0, return_inverse=True)
        count = min(len(names) - 1, int(self.recent * len(names) + Fraction(1, 2)))
        which = which.reshape(-1)
        frames = [inside[which == f] for f in range(len(names) - 1, len(names) - 1 - count, -1)]
        mask = np.zeros(len(at), bool)
        for index in frames:
            mask[index] = True
        return mask, frames


def _norms(values: Any) -> np.ndarray:
    """2-norms (n,) of values (n, b)."""
    xp = arrays.namespace(values)
    wide = xp.astype(values, arrays.wide(values))
    found: np.ndarray = arrays.to_numpy(xp.sqrt(xp.sum(wide * wide, axis=-1)))
    return found
