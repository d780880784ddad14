"""Greedy choices on integer similarities: max-min, lowest mean, determinant, relevance against
redundancy; coverage is in _cover.

The loops run on the host in numpy: a step costs two vector operations of n integers, microseconds,
where a step on a device would cost several kernel launches and a synchronisation. Indices come back
in the order of choice; ties go to the lowest index.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import array_api_compat
import numpy as np

from foveate.core._linear import GRID_BITS, Array, check_finite, namespace, quantum, to_numpy, unit

GRAM_TOKENS = 4096
# 256 rows keep a float64 product near its full rate; 512 columns keep its result at 1 MiB.
_BLOCK, _TILE = 256, 512
_STRIP = 16
_ROWS_AHEAD = 16
_ONE = 1 << GRID_BITS
_TAKEN = np.iinfo(np.int64).max


def block_rows(n: int) -> int:
    """How many rows of n numbers are worked on at a time: 256, fewer above 16384 (16 MiB as
    int32).
    """
    return max(16, min(_BLOCK, (1 << 22) // max(n, 1)))


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
        self._space = np.empty(0, dtype=np.int32)
        if self.n <= gram_tokens:
            self._gram = self._dense()
            self._scaled, self._space = None, self._space[:0].copy()

    def _block(self, rows: slice, columns: slice) -> np.ndarray:
        u: Any = self._scaled
        return self._product(u[rows, :], u[columns, :])

    def _product(self, left: Array, right: Array) -> np.ndarray:
        """left @ right.T, rounded, int32 on the host; float64 only a tile of columns at a time.

        Blocks share one workspace: a result lives until the next call. Fresh ones of 10 MiB each
        leave the heap in pieces that the next block does not fit.
        """
        xp = namespace(left)
        m, n = int(left.shape[0]), int(right.shape[0])
        if self._space.size < m * n:
            self._space = np.empty(m * n, dtype=np.int32)
        out = self._space[: m * n].reshape(m, n)
        for a in range(0, n, _TILE):
            tile = xp.round(left @ right[a : a + _TILE, :].T)
            out[:, a : a + _TILE] = to_numpy(xp.astype(tile, xp.int32))
        return out

    def _dense(self) -> np.ndarray:
        gram = np.empty((self.n, self.n), dtype=np.int32)
        step = block_rows(self.n)
        for a in range(0, self.n, step):
            b = min(a + step, self.n)
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
        return self._block(slice(j, j + 1), slice(0, self.n))[0].copy()

    def rows(self, indices: np.ndarray) -> np.ndarray:
        """Similarities (b, n) of several tokens. They may be written to, and live until the next
        call.
        """
        if self._gram is not None:
            return self._gram[indices]
        u: Any = self._scaled
        index = namespace(u).asarray(indices, device=array_api_compat.device(u))
        return self._product(u[index], u)

    def blocks(self) -> Iterator[tuple[int, np.ndarray]]:
        """(first row, rows (b, n)) from top to bottom, each until the next one. Not to be written
        to.
        """
        step = block_rows(self.n)
        for a in range(0, self.n, step):
            b = min(a + step, self.n)
            if self._gram is not None:
                yield a, self._gram[a:b]
            else:
                yield a, self._block(slice(a, b), slice(0, self.n))

    def upper(self) -> Iterator[tuple[int, np.ndarray]]:
        """(first row a, strip (b, n - a) from column a on), each until the next one: every pair of
        tokens once, pairs inside a strip twice. Half the work of `blocks`. Not to be written to.
        """
        step = block_rows(self.n)
        for a in range(0, self.n, step):
            b = min(a + step, self.n)
            if self._gram is not None:
                block = self._gram[a:b, a:]
            else:
                block = self._block(slice(a, b), slice(a, self.n))
            for i in range(0, b - a, _STRIP):
                yield a + i, block[i : i + _STRIP, i:]

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
            rows = self.source.rows(wanted).copy()
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
