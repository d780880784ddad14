"""What the array API lacks, written once for numpy and torch, so that both make the same
choice.

Three rules hold everywhere:

- Heavy linear algebra runs where the features are, in float64 (float32 on MPS, which has no
  doubles). TF32 and autocast act on float32 only, so neither can touch a score; both are also kept
  away here.
- Scores, similarities that are compared, and choices live on the host as numpy arrays: they are
  small.
- Nothing is compared before it was rounded to a grid (`quantum`), and ties go to the lowest index.
  The grid (2**-20) is about 2**32 times coarser than the rounding of a float64 sum, so two
  libraries that add in different orders still agree, also on duplicate tokens. Where the order of
  nearly equal values matters, not only who wins, the grid is 2**-30 (ORDER_BITS) or 2**-32
  (FINE_BITS).

Shapes are (tokens, dim). Torch is never imported unless the caller hands over a tensor.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from typing import Any

import array_api_compat
import numpy as np

from foveate.core._cover import greedy_cover
from foveate.core._greedy import (
    GRAM_TOKENS,
    Similarity,
    greedy_dpp,
    greedy_maxmin,
    greedy_mean,
    greedy_mmr,
)
from foveate.core._linear import (
    GRID_BITS,
    ORDER_BITS,
    Array,
    check_finite,
    f32,
    namespace,
    nearest,
    on_grid,
    quantum,
    to_numpy,
    unit,
    wide,
)
from foveate.core.errors import InputError
from foveate.core.views import Reduction

__all__ = [
    "FINE_BITS",
    "GRAM_TOKENS",
    "GRID_BITS",
    "ORDER_BITS",
    "Array",
    "Similarity",
    "apply",
    "ascending",
    "bipartite",
    "check_finite",
    "cosine",
    "exact",
    "f32",
    "greedy_cover",
    "greedy_dpp",
    "greedy_maxmin",
    "greedy_mean",
    "greedy_mmr",
    "iarange",
    "mask_of",
    "namespace",
    "nearest",
    "nonzero",
    "on_grid",
    "quantile",
    "quantum",
    "scores_of",
    "segment_mean",
    "segment_sum",
    "take",
    "to_numpy",
    "top_k",
    "unit",
    "wide",
]

FINE_BITS = 32
_CHUNK_BYTES = 16 << 20


@contextlib.contextmanager
def exact(x: Array) -> Iterator[None]:
    """Leave autocast for the block, where `x` is a torch tensor; nothing to do for numpy."""
    if not array_api_compat.is_torch_array(x):
        yield
        return
    import torch

    with torch.autocast(x.device.type, enabled=False):
        yield


def iarange(n: int, like: Array) -> Array:
    """0 … n-1 as int64 in the library and on the device of `like`."""
    xp = namespace(like)
    return xp.arange(n, dtype=xp.int64, device=array_api_compat.device(like))


def ascending(indices: Any) -> np.ndarray:
    """Indices in rising order, int64 on the host."""
    return np.sort(np.asarray(to_numpy(indices), dtype=np.int64))


def mask_of(indices: Any, n: int) -> np.ndarray:
    """(n,) bool on the host, True at `indices`."""
    mask = np.zeros(n, dtype=bool)
    mask[np.asarray(to_numpy(indices), dtype=np.int64)] = True
    return mask


def nonzero(mask: Any) -> np.ndarray:
    """Positions of the True entries of a mask, rising, int64 on the host."""
    return np.flatnonzero(to_numpy(mask)).astype(np.int64)


def take(x: Array, indices: Any) -> Array:
    """Rows of `x` (n, …) at host indices; stays in the library and on the device of `x`."""
    xp = namespace(x)
    index = xp.asarray(
        np.ascontiguousarray(np.asarray(indices, dtype=np.int64)),
        device=array_api_compat.device(x),
    )
    return x[index]


def scores_of(x: Any, what: str = "scores") -> np.ndarray:
    """A score vector (n,) as finite float64 on the host; NonFiniteError otherwise."""
    out = to_numpy(x).astype(np.float64)
    if out.ndim != 1:
        raise InputError(f"{what} must be one number a token; got the shape {out.shape}")
    check_finite(out, what)
    return out


def top_k(scores: Any, k: int, bits: int = GRID_BITS) -> np.ndarray:
    """Indices of the k largest of (n,) scores, best first; ties go to the lowest index.

    The scores are scaled by a power of two so that the largest magnitude lies in [1/2, 1), then
    rounded to 2**-bits: the choice does not depend on their scale. Heavy-tailed scores that are
    exact to more than 20 bits (attention, reduced in float64) pass `bits=FINE_BITS`. Scores that
    may all be noise around 0, such as 1 - cosine, go through `on_grid` first. k above n gives all
    n.
    """
    s = scores_of(scores)
    peak = float(np.max(np.abs(s))) if s.size else 0.0
    if peak > 0.0:
        # ldexp twice: a single shift by up to 1100 powers of two would overflow for denormal peaks.
        shift = -math.frexp(peak)[1]
        s = np.ldexp(np.ldexp(s, shift // 2), shift - shift // 2)
    order = np.argsort(-quantum(s, bits), kind="stable")
    return order[: max(k, 0)].astype(np.int64)


def quantile(x: Any, q: float) -> float:
    """The q-quantile of a score vector, linear between order statistics, in float64."""
    return float(np.quantile(scores_of(x), q))


def cosine(a: Array, b: Array) -> Array:
    """Cosines (n, m) of rows of a (n, d) and b (m, d), float64, on their device. A zero row gives
    0.
    """
    with exact(a):
        return unit(a) @ unit(b).T


def segment_sum(values: Array, ids: Any, n: int) -> Array:
    """(n, …): sum of the rows of values (m, …) by target ids (m,); ids below 0 are left out."""
    index = np.asarray(to_numpy(ids), dtype=np.int64)
    if index.size and int(index.max()) >= n:
        raise InputError(f"segment ids must be below {n}; got {int(index.max())}")
    inside = np.flatnonzero(index >= 0)
    if inside.size != index.size:
        values, index = take(values, inside), index[inside]
    if array_api_compat.is_torch_array(values):
        import torch

        out = torch.zeros((n, *values.shape[1:]), dtype=values.dtype, device=values.device)
        return out.index_add(0, torch.from_numpy(index).to(values.device), values)
    result = np.zeros((n, *values.shape[1:]), dtype=values.dtype)
    if index.size:
        order = np.argsort(index, kind="stable")
        present, starts = np.unique(index[order], return_index=True)
        result[present] = np.add.reduceat(values[order], starts, axis=0)
    return result


def segment_mean(values: Array, ids: Any, n: int) -> Array:
    """(n, …): mean of the rows of values (m, …) by target; a target without rows is 0.

    Computed in float64 (float32 on MPS); vectors stay float64, wider rows return as float32, so
    that a mean of features costs no more memory than the features.
    """
    xp = namespace(values)
    index = np.asarray(to_numpy(ids), dtype=np.int64)
    size = np.maximum(np.bincount(index[index >= 0], minlength=n), 1).astype(np.float64)
    device = array_api_compat.device(values)
    divisor = xp.asarray(size, dtype=wide(values), device=device)
    if len(values.shape) == 1:
        return segment_sum(xp.astype(values, wide(values)), index, n) / divisor
    flat = xp.reshape(values, (int(values.shape[0]), -1))
    width = int(flat.shape[1])
    out = xp.empty((n, width), dtype=xp.float32, device=device)
    step = max(1, _CHUNK_BYTES // (8 * max(int(flat.shape[0]), 1)))
    for a in range(0, width, step):
        part = segment_sum(xp.astype(flat[:, a : a + step], wide(values)), index, n)
        out[:, a : a + step] = xp.astype(part / divisor[:, None], xp.float32)
    return xp.reshape(out, (n, *values.shape[1:]))


def bipartite(metric: Array, r: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """One round of even/odd matching (ToMe, Bolya et al. 2023, arXiv 2210.09461).

    Rows of metric (n, d) at even positions each take their most similar (cosine) odd one; the r
    most similar pairs are to be merged. Returns (sources, targets, unmerged): positions in 0 … n-1
    of the merged even rows, the odd rows they go to, and the even rows that stay, by falling
    similarity. r is capped at the number of even rows; without an odd row nothing merges. The order
    of near-equal pairs steers the next round, hence the grid of 2**-30. O(n²d).
    """
    n = int(metric.shape[0])
    even, odd = np.arange(0, n, 2), np.arange(1, n, 2)
    if odd.size == 0:
        return even[:0], odd, even
    best, partner = nearest(take(metric, even), take(metric, odd), bits=ORDER_BITS)
    order = np.argsort(-best, kind="stable")
    merged, rest = order[: max(r, 0)], order[max(r, 0) :]
    return even[merged], odd[partner[merged]], even[rest]


def apply(reduction: Reduction, x: Array, special: Array | None = None) -> Array:
    """out = W x: the kept tokens (k, d) of x (n, d), in x's dtype, library and device.

    `special` (s, d) are the tokens that columns n … n+s-1 of W stand for. Sums run in float32
    (float64 for float64), in pieces of 16 MiB. Torch gradients flow.
    """
    if int(x.shape[0]) != reduction.n:
        raise InputError(f"the reduction is of {reduction.n} tokens, got {int(x.shape[0])}")
    if reduction.is_pick:
        return x if reduction.is_identity else take(x, reduction.anchor)
    rows, cols, weights = reduction.rows, reduction.cols, reduction.weights
    if rows is None or cols is None or weights is None:
        raise InputError("rows, cols and weights come together")
    with exact(x):
        return _weighted(reduction, x, special, (rows, cols, weights))


def _weighted(
    reduction: Reduction,
    x: Array,
    special: Array | None,
    matrix: tuple[np.ndarray, np.ndarray, np.ndarray],
) -> Array:
    xp = namespace(x)
    rows, cols, weights = matrix
    known = reduction.n + (0 if special is None else int(special.shape[0]))
    if cols.size and int(cols.max()) >= known:
        raise InputError("the reduction uses special tokens (such as CLS); pass them as `special`")
    source = x if special is None else xp.concat([x, xp.astype(special, x.dtype)], axis=0)
    work = x.dtype if x.dtype == xp.float64 else xp.float32
    order = np.argsort(rows, kind="stable")
    rows, cols, weights = rows[order], cols[order], weights[order]
    step = max(1, _CHUNK_BYTES // (4 * max(int(x.shape[1]), 1)))
    device = array_api_compat.device(x)
    total: Array | None = None
    for start in range(0, max(rows.size, 1), step):
        part = slice(start, start + step)
        scale = xp.asarray(weights[part][:, None], dtype=work, device=device)
        piece = xp.astype(take(source, cols[part]), work) * scale
        summed = segment_sum(piece, rows[part], reduction.k)
        total = summed if total is None else total + summed
    return xp.astype(total, x.dtype)
