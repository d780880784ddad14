"""Attention of new tokens over ragged entries: one call a head group, and a padded reference twin."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from foveate.engine import kv_flex
from foveate.engine.kv import HeadGroup, LayerStore
from foveate.engine.kv_coded import CodedStore
from foveate.engine.kv_pages import PagedGroup

Inner = Callable[..., Any]
Visible = Callable[[Tensor, Tensor], Tensor | None]
"""(query origin (s, 1), key origin (1, n)) -> bool (s, n), or None where all earlier keys are seen."""


def group_mask(at: Tensor, origin: Tensor, visible: Visible | None) -> Tensor | None:
    """What queries at `origin` (s,), the last s of the entries `at` (1 or h, n), may see: (1 or h, s,
    n) bool, or None where a single query sees everything.
    """
    s, n = origin.shape[0], at.shape[1]
    seen = None
    if visible is not None:
        seen = torch.stack([_allowed(origin, row, visible) for row in at])
    if s == 1:
        return None if seen is None or bool(seen.all()) else seen
    order = torch.arange(n, device=origin.device)
    causal = order[None, :] <= (n - s + torch.arange(s, device=origin.device))[:, None]
    return causal[None] if seen is None else causal[None] & seen


def _allowed(origin: Tensor, row: Tensor, visible: Visible) -> Tensor:
    found = visible(origin[:, None], row[None, :])
    if found is None:
        return torch.ones(origin.shape[0], row.shape[0], dtype=torch.bool, device=row.device)
    return found


def attend(
    inner: Inner,
    module: Any,
    query: Tensor,
    store: LayerStore,
    origin: Tensor,
    visible: Visible | None,
    kwargs: dict[str, Any],
) -> Tensor:
    """Output (1, s, H, b) of query (1, H, s, a), whose keys are the last s entries of the store.

    `inner` is the model's own attention function, so that caps, sinks and scales stay its own.
    """
    if isinstance(store, CodedStore):
        scaling = kwargs.get("scaling")
        return store.attend(query, query.shape[-1] ** -0.5 if scaling is None else scaling)
    heads, each = query.shape[1], query.shape[1] // store.heads
    out: Tensor | None = None
    for group in store.groups:
        whole = len(group.heads) == store.heads
        wanted = [h * each + j for h in group.heads for j in range(each)]
        q = query if whole else query[:, wanted]
        if isinstance(group, PagedGroup):
            part = _by_query(inner, module, q, group, origin, visible, kwargs)
        else:
            part = _over(inner, module, q, group, group.n, origin, visible, kwargs)
        if whole:
            return part
        if out is None:
            out = part.new_empty(1, query.shape[2], heads, part.shape[-1])
        out[:, :, wanted] = part
    if out is None:
        raise RuntimeError("attention over a layer without entries")
    return out


def _by_query(
    inner: Inner,
    module: Any,
    q: Tensor,
    group: PagedGroup,
    origin: Tensor,
    visible: Visible | None,
    kwargs: dict[str, Any],
) -> Tensor:
    """Output (1, s, H, b): every query sees the pages that it asked for itself."""
    s, parts = q.shape[2], []
    for i in range(s):
        group.retrieve(q[0, :, i].unflatten(0, (len(group.heads), -1)))
        end, one = group.n - s + i + 1, slice(i, i + 1)
        parts.append(_over(inner, module, q[:, :, one], group, end, origin[one], visible, kwargs))
    return parts[0] if s == 1 else torch.cat(parts, 1)


def _over(
    inner: Inner,
    module: Any,
    q: Tensor,
    group: HeadGroup,
    n: int,
    origin: Tensor,
    visible: Visible | None,
    kwargs: dict[str, Any],
) -> Tensor:
    """Output (1, s, H, b) of q (1, H, s, a) over the first n entries of a group."""
    each = q.shape[1] // len(group.heads)
    k, v, at = group.keys[None, :, :n], group.values[None, :, :n], group.at[:, :n]
    masked = visible is not None or origin.shape[0] > 1
    if masked and kv_flex.chosen(inner, q, v):
        return kv_flex.attend_flex(q, k, v, at, origin, visible, kwargs.get("scaling"))
    mask = group_mask(at, origin, visible) if masked else None
    if mask is not None:
        mask = mask.repeat_interleave(each, 0)[None] if mask.shape[0] > 1 else mask[None]
        if getattr(inner, "__name__", "") != "sdpa_attention_forward":
            floor = torch.finfo(q.dtype).min
            mask = torch.zeros_like(mask, dtype=q.dtype).masked_fill_(~mask, floor)
    part = inner(module, q, k, v, mask, **{**kwargs, "is_causal": False})
    found: Tensor = part[0] if isinstance(part, tuple) else part
    return found


def attend_reference(
    query: Tensor, store: LayerStore, origin: Tensor, visible: Visible | None, scaling: float
) -> Tensor:
    """The same in plain steps, head by head, in float32 without softcaps: for tests."""
    each = query.shape[1] // store.heads
    out = []
    for h in range(query.shape[1]):
        k, v, at = store.head(h // each)
        logits = (query[0, h].float() @ k.float().T) * scaling
        n, s = k.shape[0], query.shape[2]
        for i in range(s):
            for j in range(n):
                hidden = j > n - s + i
                if visible is not None:
                    found = visible(origin[i].reshape(1, 1), at[j].reshape(1, 1))
                    hidden = hidden or (found is not None and not bool(found))
                if hidden:
                    logits[i, j] = -torch.inf
        out.append(torch.softmax(logits, -1) @ v.float())
    return torch.stack(out, 1)[None].to(query.dtype)
