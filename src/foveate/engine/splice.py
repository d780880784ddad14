"""Apply reductions: kept features, kept sequence positions, and the shortened inputs of a whole
batch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from foveate.core.errors import InputError
from foveate.core.views import EncoderView, Reduction
from foveate.engine.rows import Placed
from foveate.models.adapter import AutoAdapter


@dataclass
class Kept:
    """What stays of one piece: payload (k', p), positions in the row (k',), DeepStack rows, fixed
    kept.
    """

    payload: Tensor
    at: np.ndarray
    deepstack: list[Tensor] | None
    fixed: int

    def some(self, index: np.ndarray) -> Kept:
        """These tokens of the piece only."""
        i = torch.as_tensor(index, device=self.payload.device)
        deep = None if self.deepstack is None else [layer[i] for layer in self.deepstack]
        return Kept(self.payload[i], self.at[index], deep, 0)


def weighted(reduction: Reduction, x: Tensor) -> Tensor:
    """W x in float32 for x (n + specials, d), in x's dtype; a plain pick copies rows."""
    if reduction.rows is None or reduction.cols is None or reduction.weights is None:
        return x[torch.as_tensor(reduction.anchor, device=x.device)]
    rows = torch.as_tensor(reduction.rows, device=x.device)
    cols = torch.as_tensor(reduction.cols, device=x.device)
    weights = torch.as_tensor(reduction.weights, device=x.device)
    out = torch.zeros(reduction.k, x.shape[1], dtype=torch.float32, device=x.device)
    return out.index_add_(0, rows, x[cols].float() * weights[:, None]).to(x.dtype)


def _in_encoder_space(adapter: AutoAdapter, view: EncoderView, reduction: Reduction) -> Tensor:
    """Merge encoder tokens, then project: W [encoder tokens in projected order; specials]."""
    there = (view.group >= 0).nonzero()[:, 0]
    order = torch.empty_like(there)
    order[view.group[there]] = there
    features: Any = view.features
    tokens = features[order]
    if view.special is not None:
        tokens = torch.cat([tokens, view.special])
    return adapter.project(weighted(reduction, tokens))


def keep(
    adapter: AutoAdapter,
    placed: Placed,
    reduction: Reduction,
    view: EncoderView | None,
    newlines: str = "auto",
) -> Kept:
    """Apply one reduction; a fixed token stays where its grid row keeps a token, or always with
    newlines "all".
    """
    piece, free = placed.piece, placed.free
    body = piece.payload
    if free.size != piece.n:
        body = body[torch.as_tensor(free, device=body.device)]
    if reduction.space == "encoder" and not reduction.is_identity and view is not None:
        chosen = _in_encoder_space(adapter, view, reduction)
    else:
        chosen = weighted(reduction, body)
    anchors = free[reduction.anchor]
    restored = 0
    if piece.fixed is not None:
        ends = np.flatnonzero(piece.fixed.cpu().numpy())
        row_of = np.searchsorted(ends, anchors)
        stays = np.intersect1d(np.arange(ends.size), row_of)
        ends = ends if newlines == "all" else ends[stays]
        spots = np.searchsorted(anchors, ends)
        picks = np.insert(np.arange(anchors.size), spots, anchors.size + np.arange(ends.size))
        anchors = np.insert(anchors, spots, ends)
        tail = piece.payload[torch.as_tensor(ends, device=body.device)]
        both = torch.cat([chosen.to(tail.dtype), tail])
        chosen = both[torch.as_tensor(picks, device=body.device)]
        restored = int(ends.size)
    index = torch.as_tensor(anchors, device=body.device)
    deep = [layer[index] for layer in piece.deepstack] if piece.deepstack is not None else None
    return Kept(chosen.to(piece.payload.dtype), placed.at[anchors], deep, restored)


def row_index(
    length: int, placed: Sequence[Placed], kept: Sequence[Kept], real: np.ndarray
) -> np.ndarray:
    """Sequence positions that stay in one row, in order; text always stays. real (S,) bool: not
    padding.
    """
    text = real.copy()
    for p in placed:
        text[p.at] = False
    return np.sort(np.concatenate([np.flatnonzero(text), *(k.at for k in kept)]).astype(np.int64))


def padding_side(mask: Tensor) -> str:
    """The side a batch is padded on; left if there is none. Holes inside a row are refused."""
    m = mask.cpu().numpy() != 0
    if m.all():
        return "left"
    left, right = bool((~m[:, 0]).any()), bool((~m[:, -1]).any())
    first, last = m.argmax(1), m.shape[1] - m[:, ::-1].argmax(1)
    if (m.sum(1) != last - first).any():
        raise InputError("attention_mask has holes inside a row; pad on one side only")
    if left and right:
        raise InputError(
            "attention_mask pads some rows left and others right; pad on one side only"
        )
    return "right" if right else "left"


def regather(x: Tensor, index: Sequence[np.ndarray], side: str, fill: Any) -> Tensor:
    """Rows of x (…, B, S) picked by position and padded again on `side` with `fill`."""
    width = max(len(i) for i in index)
    out = x.new_full((*x.shape[:-1], width), fill)
    for row, picks in enumerate(index):
        at = torch.as_tensor(picks, device=x.device)
        where = slice(width - len(picks), width) if side == "left" else slice(0, len(picks))
        out[..., row, where] = x[..., row, at]
    return out


_FILL = {"attention_mask": 0, "labels": -100}


def shorten(
    kwargs: Mapping[str, Any], index: Sequence[np.ndarray], side: str, pad_id: int
) -> dict[str, Any]:
    """Every per-token input (B, S) or (p, B, S) of a call, brought to the kept positions."""
    ids = kwargs["input_ids"]
    out = dict(kwargs)
    for name, value in kwargs.items():
        if torch.is_tensor(value) and value.shape[-2:] == ids.shape and value.ndim in (2, 3):
            fill = pad_id if name == "input_ids" else _FILL.get(name, 0)
            out[name] = regather(value, index, side, fill)
    return out
