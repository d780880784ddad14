"""A LayerView over given arrays, written plainly: full attention matrices, numpy or torch."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch


def softmax(x: Any) -> Any:
    if torch.is_tensor(x):
        return torch.softmax(x, -1)
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


@dataclass
class ToyView:
    """S tokens: q, k by source ("previous", "next") as (H, S, a) and (Hkv, S, a), hidden (S, D).

    `attention` by source overrides what q and k would give; `logits` does so before the softmax.
    """

    hidden: Any
    modality: np.ndarray
    q: dict[str, Any] = field(default_factory=dict)
    k: dict[str, Any] = field(default_factory=dict)
    attention: dict[str, Any] = field(default_factory=dict)
    logits: dict[str, Any] = field(default_factory=dict)
    question: Any = None
    origin: Any = None
    segment: Any = None
    cell: Any = None
    entered: int = -1
    layers: int = 32
    norm: Any = None
    guidance: Any = None

    def __post_init__(self) -> None:
        s = len(self.modality)
        visual = self.modality > 0
        if self.origin is None:
            self.origin = np.arange(s)
        if self.segment is None:
            self.segment = np.where(visual, 0, -1)
        if self.question is None:
            last = int(np.flatnonzero(visual).max(initial=-1))
            self.question = ~visual & (np.arange(s) > last)
        self.position = np.asarray(self.origin)[None]
        if self.entered < 0:
            self.entered = int(visual.sum())
        if self.cell is None:
            self.cell = np.where(visual, np.cumsum(visual) - 1, -1)
        self.grids = ((1, 1, int(np.max(self.cell)) + 1),)

    @property
    def visual(self) -> np.ndarray:
        return np.flatnonzero(self.modality > 0)

    def queries(self, source: str = "previous") -> Any:
        return self.q[source]

    def keys(self, source: str = "previous") -> Any:
        return self.k[source]

    def _logits(self, source: str) -> Any:
        if source in self.logits:
            return self.logits[source]
        q, k = self.q[source], self.k[source]
        group = q.shape[0] // k.shape[0]
        index = [h // group for h in range(q.shape[0])]
        raw = q @ k[index].swapaxes(-1, -2) * q.shape[-1] ** -0.5
        s = len(self.modality)
        later = np.triu(np.ones((s, s), bool), 1)
        if torch.is_tensor(raw):
            return raw.masked_fill(torch.as_tensor(later), -torch.inf)
        return np.where(later, -np.inf, raw)

    def _matrix(self, source: str, temperature: float = 1.0) -> Any:
        if source in self.attention:
            assert temperature == 1.0
            return self.attention[source]
        return softmax(self._logits(source) / temperature)

    def rows(self, query_index: Any, source: str = "previous") -> Any:
        return self._matrix(source)[:, np.asarray(query_index)]

    def position_rows(self, query_index: Any, source: str = "previous") -> Any:
        """Of ones, rotated by their origin times 10000 ** (-2 i / a)."""
        size, s = self.q[source].shape[-1], len(self.modality)
        angle = np.asarray(self.origin)[:, None] * 10000.0 ** (-np.arange(0, size, 2) / size)
        logits = 2 * (np.cos(angle) @ np.cos(angle).T + np.sin(angle) @ np.sin(angle).T)
        later = np.triu(np.ones((s, s), bool), 1)
        rows = softmax(np.where(later, -np.inf, logits * size**-0.5))[np.asarray(query_index)]
        rows = rows.astype(np.float32)
        return torch.from_numpy(rows) if torch.is_tensor(self.hidden) else rows

    def left_multiply(self, s: Any, source: str = "previous", temperature: float = 1.0) -> Any:
        return (s[:, None, :] @ self._matrix(source, temperature))[:, 0]

    def normed(self) -> Any:
        return self.hidden if self.norm is None else self.norm(self.hidden)


def toy_view(
    visual: int = 12,
    lead: int = 3,
    tail: int = 5,
    *,
    heads: int = 4,
    kv_heads: int = 2,
    dim: int = 8,
    width: int = 16,
    seed: int = 0,
    layers: int = 32,
    library: str = "numpy",
    twins: tuple[tuple[int, int], ...] = (),
) -> ToyView:
    """Random tokens: `lead` of text, `visual`, `tail` of text. twins: visual tokens that are equal."""
    rng = np.random.default_rng(seed)
    s = lead + visual + tail

    def drawn(*shape: int) -> Any:
        x = rng.standard_normal(shape).astype(np.float32)
        axis = len(shape) - 2
        for a, b in twins:
            index = [slice(None)] * len(shape)
            index[axis] = lead + b
            other = list(index)
            other[axis] = lead + a
            x[tuple(index)] = x[tuple(other)]
        return torch.from_numpy(x) if library == "torch" else x

    modality = np.array([0] * lead + [1] * visual + [0] * tail, np.int8)
    sources = ("previous", "next")
    return ToyView(
        hidden=drawn(s, width),
        modality=modality,
        q={n: drawn(heads, s, dim) for n in sources},
        k={n: drawn(kv_heads, s, dim) for n in sources},
        layers=layers,
        guidance=rng.random(visual).astype(np.float32),
    )
