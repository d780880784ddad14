"""Centres of clusters by density peaks, the same on numpy and torch."""

from __future__ import annotations

from collections.abc import Iterator

import array_api_compat
import numpy as np

from foveate.core import arrays
from foveate.core.views import Array


def density_peaks(x: Array, k: int, neighbours: int = 4) -> np.ndarray:
    """k centres of (m, d) by density peaks with nearest neighbours (DPC-KNN, Du et al. 2016).

    Density is exp(-mean squared distance to the nearest `neighbours`, itself among them); a centre
    has a high product of density and distance to the next denser token. Distances are divided by
    sqrt(d). O(m²d) time, in blocks of rows. The nearest denser token is mostly among the nearest
    tokens at all, which the first pass keeps; only for the others (about one in 16) are distances
    computed a second time.
    """
    xp = arrays.namespace(x)
    m, d = int(x.shape[0]), max(int(x.shape[1]), 1)
    wide = xp.astype(x.detach() if array_api_compat.is_torch_array(x) else x, arrays.wide(x))
    # On a grid relative to the tokens' size: equal tokens have equal densities in any library.
    size = float(_squares(wide).max()) or 1.0
    wide -= xp.mean(wide, axis=0)
    wide /= size**0.5
    own = _squares(wide)
    step = max(1, (1 << 20) // max(m, d))

    def distances(rows: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        for start in range(0, rows.size, step):
            part = rows[start : start + step]
            squared = arrays.to_numpy((arrays.take(wide, part) * -2.0) @ wide.T)
            squared += own[part, None]
            squared += own
            yield part, squared

    def gridded(squared: np.ndarray) -> np.ndarray:
        return np.maximum(arrays.on_grid(squared, 40), 0.0) * (size / d)

    few, count = min(max(16, neighbours), m), min(neighbours, m)
    near, index = np.empty((m, few)), np.empty((m, few), dtype=np.int64)
    farthest = 0.0
    for part, squared in distances(np.arange(m)):
        farthest = max(farthest, float(squared.max()))
        index[part] = np.argpartition(squared, few - 1, axis=1)[:, :few]
        near[part] = np.take_along_axis(squared, index[part], axis=1)
    # Rounding keeps the order, so only what is used has to be rounded.
    near, top = gridded(near), float(gridded(np.asarray(farthest)))
    density = np.exp(-np.sort(near, axis=1)[:, :count].mean(axis=1))
    level = arrays.quantum(density, arrays.FINE_BITS)
    denser = level[index] > level[:, None]
    gap = np.where(denser, near, top).min(axis=1)
    for part, squared in distances(np.flatnonzero(~denser.any(axis=1))):
        squared[level[None, :] <= level[part, None]] = farthest
        gap[part] = gridded(squared.min(axis=1))
    return arrays.top_k(density * np.sqrt(gap), k, arrays.FINE_BITS)


def _squares(x: Array) -> np.ndarray:
    """(n,) squared lengths of rows (n, d), on the host; in blocks, so that no copy of x is held."""
    xp = arrays.namespace(x)
    step = max(1, (1 << 17) // max(int(x.shape[1]), 1))
    parts = (x[a : a + step, :] for a in range(0, int(x.shape[0]), step))
    return np.concatenate([arrays.to_numpy(xp.sum(part * part, axis=1)) for part in parts])
