"""Greedy choices on integer similarities: max-min, lowest mean, coverage, determinant, relevance
against redundancy.

The loops run on the host in numpy: a step costs two vector operations of n integers, microseconds,
where a step on a device would cost several kernel launches and a synchronisation. Indices come back
in the order of choice; ties go to the lowest index.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from foveate.core._linear import GRID_BITS, Array, check_finite, namespace, quantum, to_numpy, unit

GRAM_TOKENS = 4096
_BLOCK = 512
_ROWS_AHEAD = 16
_ONE = 1 << GRID_BITS
_TAKEN = np.iinfo(np.int64).max


class Similarity:
    """Cosines of n tokens (n, d) in units of 2**-bits, integers on the host.

    Up to GRAM_TOKENS tokens the whole matrix is held (int32, 64 MiB at most; only its upper half is
    computed); above, rows are computed when asked for, so that no n x n matrix ever exists.
    """

    def __init__(
        self,
        x: Array,
        what: str = "features",
        *,
        gram_tokens: int = GRAM_TOKENS,
        bits: int = GRID_BITS,
    ) -> None:
        check_finite(x, what)
        self.n = int(x.shape[0])
        # Each factor carries half of the grid, so that a product is on it without another pass.
        scaled = unit(x)
        scaled *= float(1 << (bits // 2))
        self._scaled: Array | None = scaled
        self._gram: np.ndarray | None = None
        if self.n <= gram_tokens:
            self._gram = self._dense()
            self._scaled = None

    def _block(self, rows: slice, columns: slice) -> np.ndarray:
        u: Any = self._scaled
        xp = namespace(u)
        return to_numpy(xp.astype(xp.round(u[rows, :] @ u[columns, :].T), xp.int32))

    def _dense(self) -> np.ndarray:
        gram = np.empty((self.n, self.n), dtype=np.int32)
        for a in range(0, self.n, _BLOCK):
            b = min(a + _BLOCK, self.n)
            part = self._block(slice(a, b), slice(a, self.n))
            gram[a:b, a:] = part
            gram[b:, a:b] = part[:, b - a :].T
        return gram

    @property
    def dense(self) -> np.ndarray | None:
        """The matrix (n, n), or None where rows are computed on demand. Not to be written to."""
        return self._gram

    def row(self, j: int) -> np.ndarray:
        """Similarities (n,) of token j to all, itself included."""
        if self._gram is not None:
            return self._gram[j]
        return self._block(slice(j, j + 1), slice(0, self.n))[0]

    def rows(self, indices: np.ndarray) -> np.ndarray:
        """Similarities (b, n) of several tokens."""
        if self._gram is not None:
            return self._gram[indices]
        u: Any = self._scaled
        xp = namespace(u)
        left = xp.stack([u[int(j), :] for j in indices])
        return to_numpy(xp.astype(xp.round(left @ u.T), xp.int32))

    def blocks(self) -> Iterator[tuple[int, np.ndarray]]:
        """(first row, rows (b, n)) from top to bottom. The rows are not to be written to."""
        step = _BLOCK if self._gram is not None else max(1, (1 << 20) // max(self.n, 1))
        for a in range(0, self.n, step):
            if self._gram is not None:
                yield a, self._gram[a : a + step]
            else:
                yield a, self._block(slice(a, min(a + step, self.n)), slice(0, self.n))

    def neighbour(self) -> np.ndarray:
        """(n,) the largest similarity of each token to another one."""
        out = np.empty(self.n, dtype=np.int64)
        for a, block in self.blocks():
            index = np.arange(block.shape[0])
            # Up to and behind the diagonal; a masked copy of the block would double the memory.
            own = block[index, a + index].copy()
            block[index, a + index] = np.iinfo(np.int32).min
            out[a : a + block.shape[0]] = block.max(axis=1)
            block[index, a + index] = own
        return out

    def sums(self) -> np.ndarray:
        """(n,) sum of the similarities of each token to all others."""
        out = np.empty(self.n, dtype=np.int64)
        for a, block in self.blocks():
            index = np.arange(block.shape[0])
            out[a : a + block.shape[0]] = (
                block.sum(axis=1, dtype=np.int64) - block[index, a + index]
            )
        return out


class _Ahead:
    """Rows of a Similarity; without its matrix, likely next choices come in one product."""

    def __init__(self, source: Similarity) -> None:
        self.source = source
        self._ready: dict[int, np.ndarray] = {}

    def row(self, j: int, cost: np.ndarray) -> np.ndarray:
        """Row j; tokens of low `cost` (n,) are expected to be asked for next."""
        if self.source.dense is not None:
            return self.source.dense[j]
        if j not in self._ready:
            count = min(_ROWS_AHEAD, self.source.n)
            likely = np.argpartition(cost, count - 1)[:count]
            wanted = np.unique(np.append(likely[cost[likely] != _TAKEN], j))
            rows = self.source.rows(wanted)
            self._ready = dict(zip(wanted.tolist(), rows, strict=True))
        return self._ready[j]


def greedy_maxmin(x: Array | Similarity, k: int) -> np.ndarray:
    """k tokens of (n, d) that are far from each other: max-min of 1 - cosine (DivPrune, arXiv
    2503.02175).

    Starts with the token whose nearest neighbour is furthest, then adds the token whose most
    similar chosen one is least similar. O(n²d/2) for the matrix and O(nk) for the loop; above
    GRAM_TOKENS rows of likely next tokens are computed a few at a time, which changes nothing but
    the time.
    """
    s = x if isinstance(x, Similarity) else Similarity(x)
    k = min(k, s.n)
    if k <= 0:
        return np.empty(0, dtype=np.int64)
    closest = np.full(s.n, np.iinfo(np.int64).min, dtype=np.int64)
    chosen = [int(s.neighbour().argmin()) if s.n > 1 else 0]
    ahead = _Ahead(s)
    while len(chosen) < k:
        j = chosen[-1]
        np.maximum(closest, ahead.row(j, closest), out=closest)
        closest[j] = _TAKEN
        chosen.append(int(closest.argmin()))
    return np.asarray(chosen, dtype=np.int64)


def greedy_mean(x: Array | Similarity, k: int) -> np.ndarray:
    """k tokens of (n, d) with a low mean similarity to each other (RepMax, TrimTokenator, arXiv
    2509.00320).

    Starts with the token of the lowest mean similarity to all others, then adds the one with the
    lowest mean similarity to the chosen. Sums are integers, so the order of adding cannot matter.
    """
    s = x if isinstance(x, Similarity) else Similarity(x)
    k = min(k, s.n)
    if k <= 0:
        return np.empty(0, dtype=np.int64)
    total = np.zeros(s.n, dtype=np.int64)
    free = np.ones(s.n, dtype=bool)
    cost = total
    chosen = [int(s.sums().argmin())]
    ahead = _Ahead(s)
    while len(chosen) < k:
        j = chosen[-1]
        free[j] = False
        total = total + ahead.row(j, cost)
        cost = np.where(free, total, _TAKEN)
        chosen.append(int(cost.argmin()))
    return np.asarray(chosen, dtype=np.int64)


def greedy_mmr(x: Array | Similarity, relevance: np.ndarray, balance: float, k: int) -> np.ndarray:
    """Maximal marginal relevance: add argmax balance * relevance - (1 - balance) * max cosine to
    the chosen.

    relevance (n,) in [0, 1], on the host (Carbonell and Goldstein 1998). The first choice has the
    largest relevance. O(n²d/2 + nk).
    """
    s = x if isinstance(x, Similarity) else Similarity(x)
    k = min(k, s.n)
    if k <= 0:
        return np.empty(0, dtype=np.int64)
    gain = quantum(relevance * balance)
    closest = np.full(s.n, -_ONE, dtype=np.int64)
    free = np.ones(s.n, dtype=bool)
    cost = -gain
    chosen = [int(quantum(relevance).argmax())]
    ahead = _Ahead(s)
    while len(chosen) < k:
        j = chosen[-1]
        free[j] = False
        np.maximum(closest, ahead.row(j, cost), out=closest)
        spent = np.rint((1.0 - balance) * closest).astype(np.int64) - gain
        cost = np.where(free, spent, _TAKEN)
        chosen.append(int(cost.argmin()))
    return np.asarray(chosen, dtype=np.int64)


def greedy_cover(
    columns: Callable[[np.ndarray], np.ndarray],
    gain: np.ndarray,
    k: int,
    quality: np.ndarray | None = None,
) -> np.ndarray:
    """Facility location: add argmax_j quality_j * sum_u max(0, U[u, j] - cover_u), cover = max over
    chosen.

    columns(indices (b,)) gives U's columns as rows (b, R), non-negative; gain (n,) is the sum of
    each column; cover starts at 0. Gains only shrink as the cover grows, so a gain computed earlier
    is an upper bound and only the candidates at the top are computed anew (lazy greedy, Minoux
    1978): the choice is that of the full computation. Compared on a grid of 2**-32 of the largest
    first gain.
    """
    n = int(gain.shape[0])
    k = min(k, n)
    weight = np.ones(n) if quality is None else quality.astype(np.float64)
    peak = float(np.max(gain * weight, initial=0.0))
    scale = 2.0**32 / peak if peak > 0 else 0.0
    bound = np.rint(gain * weight * scale)
    fresh = np.zeros(n, dtype=np.int64)
    cover: np.ndarray | float = 0.0
    chosen: list[int] = []
    while len(chosen) < k:
        j = int(bound.argmax())
        if fresh[j] == len(chosen):
            cover = np.maximum(cover, columns(np.asarray([j]))[0])
            chosen.append(j)
            bound[j] = -1.0
            continue
        count = min(_ROWS_AHEAD, n)
        top = np.argpartition(-bound, count - 1)[:count]
        top = top[(bound[top] >= 0) & (fresh[top] < len(chosen))]
        top = np.union1d(top, [j])
        left = np.maximum(columns(top) - cover, 0.0).sum(axis=1)
        bound[top] = np.rint(left * weight[top] * scale)
        fresh[top] = len(chosen)
    return np.asarray(chosen, dtype=np.int64)


def greedy_dpp(x: Array | Similarity, quality: np.ndarray, k: int) -> np.ndarray:
    """Greedy maximum of det L over k tokens, L = diag(q) S diag(q) with S the cosines of x (n, d).

    Incremental Cholesky (Chen, Zhang and Zhou 2018, arXiv 1709.05135, algorithm 1): O(n k²) time
    and O(n k) memory. Where nothing is left in the span of the kernel (its rank is at most d), the
    rest is filled in the order of quality.
    """
    s = x if isinstance(x, Similarity) else Similarity(x)
    k = min(k, s.n)
    q = quality.astype(np.float64)
    # A zero vector has similarity 0 to itself; its determinant is 0 as it should be.
    left = np.where(_diagonal(s) > 0, q * q, 0.0)
    floor = float(np.max(left, initial=0.0)) * 2.0**-16
    basis = np.empty((k, s.n), dtype=np.float64)
    chosen: list[int] = []
    free = np.ones(s.n, dtype=bool)
    while len(chosen) < k:
        grid = np.where(free, quantum(left / (floor or 1.0), 12), -_TAKEN)
        j = int(grid.argmax())
        if left[j] <= floor:
            rest = np.argsort(
                -np.where(free, quantum(q / (q.max() or 1.0)), -_TAKEN), kind="stable"
            )
            return np.asarray(chosen + rest[: k - len(chosen)].tolist(), dtype=np.int64)
        i = len(chosen)
        kernel = q * (q[j] / _ONE) * s.row(j)
        basis[i] = (kernel - basis[:i, j] @ basis[:i]) / np.sqrt(left[j])
        left = left - basis[i] ** 2
        free[j] = False
        chosen.append(j)
    return np.asarray(chosen, dtype=np.int64)


def _diagonal(s: Similarity) -> np.ndarray:
    if s.dense is not None:
        return np.diagonal(s.dense)
    parts = [block[np.arange(len(block)), a + np.arange(len(block))] for a, block in s.blocks()]
    return np.concatenate(parts)
