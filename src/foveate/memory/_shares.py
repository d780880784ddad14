"""Shared parts of cache policies: budgets brought to whole entries, and picks that protect some."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from foveate.core import Reduction, arrays, largest_remainder

TINY = 2.0**-126  # the smallest normal float32


def by_layer(
    weights: Sequence[Any], room: Sequence[Sequence[int]], budget: int, floor: int = 1
) -> list[list[int]]:
    """Entries of each layer's heads, `budget` in all, in proportion to one weight a layer; the heads
    of a layer are alike as far as whole numbers allow. Each head keeps `floor` entries if it has them.
    """
    heads = {len(layer) for layer in room}
    even = all(len(set(layer)) == 1 for layer in room)
    if len(heads) == 1 and even and budget % (each := heads.pop()) == 0:
        caps = [layer[0] for layer in room]
        parts = largest_remainder(budget // each, weights, floor=floor, caps=caps)
        return [[k] * each for k in parts]
    flat = [n for layer in room for n in layer]
    spread = [w for w, layer in zip(weights, room, strict=True) for _ in layer]
    return by_head(spread, flat, [len(layer) for layer in room], budget, floor)


def by_head(
    weights: Sequence[Any], flat: Sequence[int], sizes: Sequence[int], budget: int, floor: int = 1
) -> list[list[int]]:
    """Entries of each head, `budget` in all, in proportion to one weight a head; `flat` are the
    entries each has, `sizes` the heads of each layer.
    """
    parts = largest_remainder(budget, weights, floor=floor, caps=flat)
    ends = np.cumsum([0, *sizes])
    return [parts[a:b] for a, b in zip(ends[:-1], ends[1:], strict=True)]


def grouped(rows: Any, heads: int, how: str = "mean") -> Any:
    """Scores (H, …) of query heads brought to their KV heads (heads, …), by mean, sum or max."""
    split = rows.reshape(heads, -1, *rows.shape[1:])
    if how == "sum":
        return split.sum(1)
    return split.mean(1) if how == "mean" else split.amax(1)


def best(scores: Any, k: int) -> np.ndarray:
    """Indices of the k largest of attention scores (n,), best first; ties go to the lowest index.

    Scores are 0 or above, float32 made, and their tail is heavy: they are compared by their logarithm
    on a grid of 2**-20. Beside a first token that takes nearly all attention the others keep their
    order, and two that differ by less than a millionth of themselves tie.
    """
    level = np.log(np.maximum(arrays.scores_of(scores, "attention"), TINY))
    return arrays.top_k(arrays.on_grid(level, arrays.GRID_BITS), k, arrays.FINE_BITS)


def keep_best(scores: Any, count: int, protected: Sequence[int] = ()) -> Reduction:
    """`count` of n entries: the protected ones first, as given, then the best by score (n,); ties
    go to the lowest index.
    """
    s = arrays.scores_of(scores, "attention")
    n = len(s)
    first = list(dict.fromkeys(int(i) for i in protected))[:count]
    rest = np.setdiff1d(np.arange(n), first)
    others = rest[best(s[rest], count - len(first))]
    return Reduction.pick(np.concatenate([np.asarray(first, np.int64), others]), n, "cache")


def ends(n: int, first: int, last: int) -> list[int]:
    """Indices to protect, by rank: the last entry, the first ones, then the others of the last."""
    late = list(range(n - 1, max(-1, n - 1 - max(1, last)), -1))
    return [*late[:1], *range(min(first, n)), *late[1:]]
