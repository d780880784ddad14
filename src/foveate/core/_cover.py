"""Greedy facility location, exact, without the n x n matrix and without evaluating candidates anew.

Gains of all candidates are kept exact: when the choice of token j raises the cover of row i from c to
c', every candidate loses clip(U[i, :], c, c') - c in that row. So a step touches only the rows whose
cover rises. While tokens are alike that are about n / t rows at step t: a row's cover is the largest
of t draws, and the t-th is a new record with probability 1 / t.

The price is rows of U, which cost 2 n d operations each where no matrix is held. Entries at or below a
row's cover never matter again, so a row is held as a short list (column, value) as soon as at most
n / ROW_SHARE of its entries are above its cover; from then on a step reads lists alone. A row is
computed once for each record until then, 1 + ln(ROW_SHARE) = 4.2 times for 1 / 25: with k = 1138 of
n = 10240 tokens of d = 1152, 4.2 n rows are 1.0e12 operations in float64, where a full evaluation at
every step takes 2.7e14 and a lazy one (Minoux 1978) degrades to that while no candidate stands out.
Memory: 6 bytes an entry, so 6 n² / ROW_SHARE bytes (24 MiB at n = 10240, 48 MiB at most: beyond that
lists are shorter and rows are computed a little more often), and one block of rows.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from foveate.core._greedy import block_rows

Rows = Callable[[np.ndarray], np.ndarray]
ROW_SHARE = 25
LIST_ENTRIES = 1 << 23
_FETCH_STEP = 64
_STRIP = 16


class Cover:
    """How well chosen tokens cover n rows, and what each candidate (n,) could still add.

    rows(indices (b,)) gives rows of U (b, n), int32, which are overwritten; column(j) gives U[:, j]
    (n,). Entries below 0 count as 0.
    """

    def __init__(self, rows: Rows, column: Callable[[int], np.ndarray], n: int) -> None:
        self.n = n
        self._rows, self._column = rows, column
        self._cover = np.zeros(n, dtype=np.int32)
        self._limit = max(1, min(n // ROW_SHARE, LIST_ENTRIES // n))
        self._position = np.empty(n * self._limit, np.uint16 if n <= 1 << 16 else np.int32)
        self._value = np.empty(n * self._limit, dtype=np.int32)
        # Lists stand one behind the other in the order of `_order`; -1: this row has none yet.
        self._size = np.full(n, -1, dtype=np.int64)
        self._start = np.zeros(n, dtype=np.int64)
        self._order = np.empty(n, dtype=np.int64)
        self._held = self._used = self._steps = 0

    def add(self, j: int) -> np.ndarray:
        """Choose token j; what every candidate loses by it, (n,) whole numbers in float64."""
        self._steps += 1
        lost = np.zeros(self.n)
        held = self._held
        self._from_lists(j, lost)
        if held < self.n:
            value = self._column(j).astype(np.int32, copy=False)
            free = np.flatnonzero((self._size < 0) & (value > self._cover))
            self._from_rows(free, value[free], lost)
            if self._steps >= _FETCH_STEP and self._steps & (self._steps - 1) == 0:
                # Rows that no choice ever touched; without them no column is needed any more.
                left = np.flatnonzero(self._size < 0)
                self._from_rows(left, self._cover[left], lost)
        return lost

    def _from_rows(self, index: np.ndarray, value: np.ndarray, lost: np.ndarray) -> None:
        """Raise the cover of rows `index` to `value` by their entries, and hold those that are
        short.
        """
        step = block_rows(self.n)
        for a in range(0, index.size, step):
            part, new = index[a : a + step], value[a : a + step, None]
            block, old = self._rows(part), self._cover[part][:, None]
            for i in range(0, part.size, _STRIP):
                strip = slice(i, i + _STRIP)  # small enough to stay in the cache
                above = block[strip] > new[strip]
                for r in np.flatnonzero(np.count_nonzero(above, axis=1) <= self._limit):
                    self._hold(int(part[i + r]), np.flatnonzero(above[r]), block[i + r])
                taken = np.clip(block[strip], old[strip], new[strip], out=block[strip])
                lost += taken.sum(axis=0, dtype=np.int64)
            lost -= old.sum(dtype=np.int64)
            self._cover[part] = new[:, 0]

    def _hold(self, i: int, position: np.ndarray, row: np.ndarray) -> None:
        end = self._used + position.size
        self._position[self._used : end] = position
        self._value[self._used : end] = row[position]
        self._start[i], self._size[i] = self._used, position.size
        self._order[self._held] = i
        self._held += 1
        self._used = end

    def _from_lists(self, j: int, lost: np.ndarray) -> None:
        """Raise the cover of the held rows that have token j in their list."""
        found = np.flatnonzero(self._position[: self._used] == j)
        if not found.size:
            return
        order = self._order[: self._held]
        index = order[np.searchsorted(self._start[order], found, side="right") - 1]
        value = self._value[found]
        higher = value > self._cover[index]
        index, value = index[higher], value[higher]
        size = self._size[index]
        ends = np.cumsum(size)
        entry = np.arange(int(size.sum())) + np.repeat(self._start[index] - ends + size, size)
        old = np.repeat(self._cover[index], size)
        taken = np.clip(self._value[entry], old, np.repeat(value, size)) - old
        lost += np.bincount(self._position[entry], weights=taken, minlength=self.n)
        self._cover[index] = value


def greedy_cover(
    rows: Rows,
    column: Callable[[int], np.ndarray],
    gain: np.ndarray,
    k: int,
    quality: np.ndarray | None = None,
    extra: np.ndarray | None = None,
) -> np.ndarray:
    """Facility location: add argmax_j quality_j * sum_i max(0, U[i, j] - cover_i), cover = max over
    chosen, 0 at the start.

    rows and column give U (n, n) as in `Cover`; extra (m, n) int64 are further rows that are held in
    full; gain (n,) is the sum of each column, its negative entries as 0. All are whole numbers below
    2**53 in sum, so the order of adding cannot matter. Compared on a grid of 2**-32 of the largest
    first gain; ties go to the lowest index.
    """
    n = int(gain.shape[0])
    k = min(k, n)
    weight = np.ones(n) if quality is None else quality.astype(np.float64)
    left = gain.astype(np.float64)
    peak = float(np.max(left * weight, initial=0.0))
    scale = 2.0**32 / peak if peak > 0 else 0.0
    state = Cover(rows, column, n)
    covered = np.zeros(0 if extra is None else extra.shape[0], dtype=np.int64)
    free = np.ones(n, dtype=bool)
    chosen: list[int] = []
    while len(chosen) < k:
        worth = np.where(free, np.rint(left * weight * scale), -1.0)
        j = int(worth.argmax())
        chosen.append(j)
        free[j] = False
        if worth[j] <= 0.0:  # nothing is left to cover: the rest by index
            rest = np.flatnonzero(free)[: k - len(chosen)]
            return np.asarray(chosen + rest.tolist(), dtype=np.int64)
        left -= state.add(j)
        if extra is not None:
            raised = np.flatnonzero(extra[:, j] > covered)
            old, new = covered[raised, None], extra[raised, j, None]
            left -= (np.clip(extra[raised], old, new) - old).sum(axis=0)
            covered[raised] = new[:, 0]
    return np.asarray(chosen, dtype=np.int64)
