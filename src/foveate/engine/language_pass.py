"""A prefill on its way through the decoder: which tokens of each row are still there, and the layer
arguments brought to them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from foveate.core.views import Reduction
from foveate.engine.splice import weighted
from foveate.models.compat_language import gathered


@dataclass
class RowMeta:
    """One request's prompt as the language model gets it, n tokens: modality (n,) 0 text, 1 image, 2
    video; segment (n,), -1 for text; question (n,) bool; position (p, n); grids by segment; cell
    (n,) the place in the segment's grid, -1 for layout tokens and text; guidance (n,) or None, the
    guide's scores, NaN for text.
    """

    modality: np.ndarray
    segment: np.ndarray
    question: np.ndarray
    position: np.ndarray
    cell: np.ndarray
    grids: tuple[tuple[int, int, int], ...] = ()
    guidance: np.ndarray | None = None

    @property
    def n(self) -> int:
        return int(self.modality.shape[0])

    @property
    def entered(self) -> int:
        """Visual tokens."""
        return int((self.modality > 0).sum())


@dataclass
class Seen:
    """One attention call of the whole batch: q (B, H, S, a), k (B, Hkv, S, a) and its mask."""

    q: Tensor
    k: Tensor
    mask: Tensor | None
    scaling: float | None
    softcap: float | None = None


@dataclass
class _Version:
    """The tokens present from some layer on. index (B, W) points into the padded full sequence."""

    index: Tensor
    valid: Tensor
    present: list[np.ndarray]
    padded: bool


@dataclass
class Prefill:
    """State of one prefill. `present[b]` are the prompt places still there, padding left out;
    `deepest[b]` those of the deepest layer that has visual tokens; `call` the arguments, but for
    hidden states, of the layer before a decision.
    """

    meta: list[RowMeta]
    valid: Tensor
    side: str
    versions: list[_Version] = field(default_factory=list)
    at_layer: dict[int, int] = field(default_factory=dict)
    counts: list[list[int]] = field(default_factory=list)
    last: Seen | None = None
    ahead: Seen | None = None
    call: tuple[list[Any], dict[str, Any]] = field(default_factory=lambda: ([], {}))
    states: list[Any] = field(default_factory=list)
    memo: dict[tuple[int, int, int], tuple[Any, Any]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        b, width = self.valid.shape
        index = torch.arange(width, device=self.valid.device).expand(b, -1)
        present = [np.arange(m.n) for m in self.meta]
        self.first = [int(row.long().argmax()) for row in self.valid]
        self.versions = [_Version(index, self.valid, present, not bool(self.valid.all()))]
        self.states = [None] * b
        self.counts = [[] for _ in range(b)]
        self.deepest = list(present)

    @property
    def now(self) -> _Version:
        return self.versions[-1]

    @property
    def width(self) -> int:
        """Padded length of the prompt that entered."""
        return int(self.valid.shape[1])

    def columns(self, row: int) -> Tensor:
        """Padded places of a row's present tokens, in the current tensors."""
        return self.now.valid[row].nonzero()[:, 0]

    def enter(self, layer: int) -> None:
        """Note what is present at a layer, for later layers that read its keys and for the report."""
        self.at_layer[layer] = len(self.versions) - 1
        for row, m in enumerate(self.meta):
            self.counts[row].append(int((m.modality[self.now.present[row]] > 0).sum()))

    def note_call(self, args: list[Any], kwargs: dict[str, Any]) -> None:
        """Note what a layer is called with, but for the hidden states, which would live as long."""
        rest = {"hidden_states": None}
        self.call = ([None, *args[1:]], kwargs) if args else ([], {**kwargs, **rest})

    def narrow(self, kept: Sequence[np.ndarray]) -> Tensor:
        """Go on with the prompt places kept[b] (ascending) of each row.

        Returns the index (B, W') of the new tokens among the current ones.
        """
        old, device = self.now, self.valid.device
        width = max(len(k) for k in kept)
        index = torch.zeros(len(kept), width, dtype=torch.long, device=device)
        relative = torch.zeros_like(index)
        valid = torch.zeros(len(kept), width, dtype=torch.bool, device=device)
        for b, places in enumerate(kept):
            start = width - len(places) if self.side == "left" else 0
            where = slice(start, start + len(places))
            among = np.searchsorted(old.present[b], places)
            index[b, where] = torch.as_tensor(places + self.first[b], device=device)
            relative[b, where] = self.columns(b)[torch.as_tensor(among, device=device)]
            valid[b, where] = True
            if (self.meta[b].modality[places] > 0).any():
                self.deepest[b] = places
        self.versions.append(_Version(index, valid, list(kept), not bool(valid.all())))
        self.memo.clear()
        return relative

    def merge(
        self,
        row: int,
        hidden: Tensor,
        out: Tensor,
        before: Tensor,
        reduction: Reduction,
        visual: np.ndarray,
    ) -> None:
        """Write the merged tokens of a row: W times its `visual` tokens of the hidden states before."""
        meta = self.meta[row]
        old = before[torch.as_tensor(visual, device=before.device)]
        now = self.columns(row)
        there = np.flatnonzero(meta.modality[self.now.present[row]] > 0)
        new = now[torch.as_tensor(there, device=now.device)]
        if hidden.ndim == 3:
            out[row, new] = weighted(reduction, hidden[row, old])
        else:
            for plane in range(hidden.shape[0]):
                out[plane, row, new] = weighted(reduction, hidden[plane, row, old])

    # --- layer arguments ---------------------------------------------------------------------------
    def fitted(self, name: str, value: Any, source: int) -> Any:
        """A layer argument, made for the full sequence, for the tokens present now; the columns of a
        mask are those of layer `source`, whose keys are read.
        """
        if name == "attention_mask":
            return self._mask(value, self.at_layer.get(source, len(self.versions) - 1))
        if isinstance(value, tuple):
            return tuple(self.fitted(name, v, source) for v in value)
        if not torch.is_tensor(value):
            return value
        if name == "position_ids" and value.shape[-1] == self.width:
            return self._once(value, -1, value.ndim - 2)
        if value.ndim >= 3 and value.shape[-2] == self.width:
            return self._once(value, -2, value.ndim - 3)
        return value

    def _once(self, value: Tensor, dim: int, batch_dim: int) -> Tensor:
        key = (id(value), dim, 0)
        if (
            key not in self.memo
        ):  # the value is kept beside its result, so that its id stays its own
            self.memo[key] = (value, gathered(value, self.now.index, dim, batch_dim))
        out: Tensor = self.memo[key][1]
        return out

    def _mask(self, mask: Any, columns: int) -> Any:
        key = (id(mask), 0, columns)
        if key not in self.memo:
            self.memo[key] = (mask, self._fit_mask(mask, self.versions[columns]))
        return self.memo[key][1]

    def _fit_mask(self, mask: Any, keys: _Version) -> Any:
        now = self.now
        if mask is None:
            if keys is now and not now.padded:
                return None
            causal = now.index[:, :, None] >= keys.index[:, None, :]
            return self._closed(causal[:, None], keys)
        if not torch.is_tensor(mask):
            return mask
        if mask.ndim == 2 and mask.shape[-1] == self.width:
            return gathered(mask, now.index, -1, 0) * now.valid.to(mask.dtype)
        if mask.ndim != 4:
            return mask
        rows = mask if mask.shape[-2] == 1 else gathered(mask, now.index, -2, 0)
        return self._closed(gathered(rows, keys.index, -1, 0), keys)

    def _closed(self, mask: Tensor, keys: _Version) -> Tensor:
        """Padding hidden as a key; a padded query sees all, so that its softmax stays finite."""
        seen, nobody = keys.valid[:, None, None, :], ~self.now.valid[:, None, :, None]
        if mask.dtype == torch.bool:
            return (mask & seen) | nobody if self.now.padded else mask & seen
        out = mask.masked_fill(~seen, torch.finfo(mask.dtype).min)
        return out.masked_fill(nobody, 0.0) if self.now.padded else out


def last_row(prefill: Prefill, kwargs: dict[str, Any], source: int) -> Any:
    """The mask of a layer that computes the last token alone, over the keys of layer `source`."""
    mask = kwargs["attention_mask"]
    if not torch.is_tensor(mask) or mask.ndim != 4:
        return mask
    keys = prefill.versions[prefill.at_layer[source]]
    out = gathered(mask, keys.index, -1, 0)
    seen = keys.valid[:, None, None, :]
    if out.dtype == torch.bool:
        return out & seen
    return out.masked_fill(~seen, torch.finfo(out.dtype).min)
