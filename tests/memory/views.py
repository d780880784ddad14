"""A plain KVView over given queries and keys, for tests without a model."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch


class PlainView:
    """q (H, n, a), k (Hkv, n, a), v (Hkv, n, b); modality, segment and cell (n,) default to text."""

    def __init__(
        self,
        q: Any,
        k: Any,
        v: Any,
        modality: Any = None,
        segment: Any = None,
        layers: int = 4,
        cell: Any = None,
        grids: Any = (),
    ) -> None:
        self.q, self.k = torch.as_tensor(q).float(), torch.as_tensor(k).float()
        values = torch.as_tensor(v).float()
        n = self.k.shape[1]
        self.keys, self.values = list(self.k), list(values)
        self.origin = [np.arange(n)] * len(self.keys)
        self.modality = np.zeros(n, int) if modality is None else np.asarray(modality)
        self.segment = np.full(n, -1) if segment is None else np.asarray(segment)
        self.cell = np.full(n, -1) if cell is None else np.asarray(cell)
        self.question = np.arange(n) > np.flatnonzero(self.modality > 0).max(initial=-1)
        self.position, self.grids, self.layers = np.arange(n)[None], grids, layers

    @property
    def n(self) -> int:
        return int(self.k.shape[1])

    def modality_of(self, head: int) -> Any:
        return self.modality[self.origin[head]]

    def segment_of(self, head: int) -> Any:
        return self.segment[self.origin[head]]

    def cell_of(self, head: int) -> Any:
        return self.cell[self.origin[head]]

    def rows(self, query_index: Any) -> Any:
        """softmax rows by a plain loop over heads and queries."""
        each = self.q.shape[0] // self.k.shape[0]
        out = torch.zeros(self.q.shape[0], len(query_index), self.n)
        for h in range(self.q.shape[0]):
            for j, i in enumerate(np.asarray(query_index)):
                logits = self.q[h, i] @ self.k[h // each, : i + 1].T / self.q.shape[-1] ** 0.5
                out[h, j, : i + 1] = torch.softmax(logits, -1)
        return out

    def column_sum(self) -> Any:
        return self.rows(np.arange(self.n)).sum(1)


def prompt_view(
    seed: int,
    *,
    lead: int = 5,
    grids: Any = ((1, 4, 5),),
    tail: int = 9,
    heads: tuple[int, int] = (4, 2),
    layers: int = 4,
    dim: int = 8,
    kind: int = 1,
) -> PlainView:
    """A random prompt: text, then the tokens of each grid, then text; (query heads, KV heads)."""
    sizes = [t * h * w for t, h, w in grids]
    modality = np.concatenate([np.zeros(lead, int), np.full(sum(sizes), kind), np.zeros(tail, int)])
    segment = np.concatenate(
        [np.full(lead, -1), np.repeat(np.arange(len(sizes)), sizes), np.full(tail, -1)]
    ).astype(int)
    cell = np.concatenate([np.full(lead, -1), *[np.arange(s) for s in sizes], np.full(tail, -1)])
    g = torch.Generator().manual_seed(seed)
    n = len(modality)
    q, k, v = (torch.randn(h, n, dim, generator=g) for h in (heads[0], heads[1], heads[1]))
    return PlainView(2 * q, k, v, modality, segment, layers, cell.astype(int), grids)
