"""Where the patches of one tower call went, and the merging and scattering back of their states."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from foveate.core.errors import PlanError
from foveate.core.views import Reduction


class TowerRun:
    """Where the patches of one tower call went: (passes, length) tokens in, specials included."""

    def __init__(self, passes: int, length: int, front: int, back: int, device: Any) -> None:
        self.passes, self.length, self.front, self.back = passes, length, front, back
        every = torch.arange(length, device=device).expand(passes, -1)
        self.group = every.clone()  # token of each original position, -1 = cut
        self.anchor = every.clone()  # original position that stands for each token
        self.size = torch.ones(passes, length, device=device)
        self.counts: list[int] = []
        self.offset = 0

    @property
    def patches(self) -> int:
        return self.length - self.front - self.back

    @property
    def now(self) -> int:
        return int(self.anchor.shape[1])

    @property
    def identity(self) -> bool:
        return self.now == self.length

    @property
    def protected(self) -> Tensor:
        """(passes, now): special tokens, which stay alone."""
        return (self.anchor < self.front) | (self.anchor >= self.length - self.back)

    def gather(self, full: Tensor) -> Tensor:
        """(passes, length, c) to the tokens present (passes, now, c)."""
        return full.gather(1, self.anchor[..., None].expand(-1, -1, full.shape[-1]))

    def scatter(self, tokens: Tensor, full: Tensor) -> Tensor:
        """Tokens (passes, now, c) to every position; cut ones keep `full` (passes, length, c)."""
        index = self.group.clamp(min=0)[..., None].expand(-1, -1, tokens.shape[-1])
        spread = tokens.gather(1, index)
        return torch.where((self.group >= 0)[..., None], spread, full)

    def merge(self, tokens: Tensor, answers: Sequence[Reduction]) -> Tensor:
        """Apply one checked reduction a pass, of equal k, and remember who went where."""
        k, m, c = answers[0].k, self.now, int(tokens.shape[-1])
        device = tokens.device
        parts = [entries(a) for a in answers]

        def flat(index: int, step: int) -> Tensor:
            shifted = [p[index] + i * step for i, p in enumerate(parts)]
            return torch.as_tensor(np.concatenate(shifted), device=device)

        rows, cols = flat(0, k), flat(1, m)
        weights = torch.as_tensor(np.concatenate([p[2] for p in parts]), device=device)
        picked = tokens.reshape(-1, c)[cols].float() * weights.float()[:, None]
        out = torch.zeros(self.passes * k, c, device=device).index_add_(0, rows, picked)
        size = torch.zeros(self.passes * k, device=device)
        size.index_add_(0, rows, self.size.reshape(-1)[cols])
        owner = torch.full((self.passes * m,), -1, device=device)
        owner[cols] = rows % k
        found = owner.reshape(self.passes, m).gather(1, self.group.clamp(min=0))
        self.group = torch.where(self.group >= 0, found, -1)
        anchors = torch.as_tensor(np.stack([a.anchor for a in answers]), device=device)
        self.anchor = self.anchor.gather(1, anchors)
        self.size = size.reshape(self.passes, k)
        return out.reshape(self.passes, k, c).to(tokens.dtype)

    def labels(self) -> np.ndarray:
        """(passes * patches,): a number for each group of patches, -1 for cut ones."""
        group = self.group[:, self.front : self.length - self.back]
        each = torch.arange(self.passes, device=group.device)[:, None] * self.length
        return host(torch.where(group >= 0, group + each + self.offset, -1)).reshape(-1)


def entries(reduction: Reduction) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(rows, cols, weights) of a pick or a merge."""
    if reduction.rows is None or reduction.cols is None or reduction.weights is None:
        return np.arange(reduction.k), reduction.anchor, np.ones(reduction.k, dtype=np.float32)
    return reduction.rows, reduction.cols, reduction.weights


def check(name: str, reduction: Reduction, m: int, protected: np.ndarray) -> None:
    """PlanError unless this is a partition into means that leaves special tokens alone."""
    if reduction.n != m:
        raise PlanError(f"{name}: {m} tokens are present, not {reduction.n}")
    reduction.check()
    rows, cols, weights = entries(reduction)
    if np.unique(cols).size != cols.size:
        raise PlanError(f"{name} put one token into two; a merge is a partition")
    total = np.bincount(rows, weights=weights, minlength=reduction.k)
    if (weights < 0).any() or np.abs(total - 1).max() > 1e-3:
        raise PlanError(f"{name}: the weights of a merged token must be positive and sum to 1")
    members = np.bincount(rows, minlength=reduction.k)
    inside = np.isin(np.flatnonzero(protected), cols)
    if not inside.all() or (members[rows[protected[cols]]] != 1).any():
        raise PlanError(f"{name} merged or dropped a special token of the tower; they stay alone")
    if reduction.k <= int(protected.sum()):
        raise PlanError(f"{name} left no patch of a tower pass; at least one is needed")


def numbered(runs: Sequence[TowerRun]) -> Sequence[TowerRun]:
    """The runs of one encode, each with an offset that keeps their group numbers apart."""
    offset = 0
    for run in runs:
        run.offset = offset
        offset += run.passes * run.length
    return runs


def host(x: Any) -> np.ndarray:
    return np.asarray(x.detach().cpu().numpy())
