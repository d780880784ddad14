"""What a prefill method sees of one request at one decoder layer."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, MutableMapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from foveate.core.errors import UnsupportedError
from foveate.engine.language_pass import Prefill, RowMeta, Seen
from foveate.models import compat, compat_language

BLOCK_ELEMENTS = 2**22


class RowView:
    """A `foveate.core.language.LayerView` over row `row` of a batch."""

    def __init__(
        self,
        method: str,
        prefill: Prefill,
        row: int,
        hidden: Tensor,
        layers: int,
        norm: nn.Module | None,
        ahead: Callable[[], Seen],
        even: Callable[[str], Seen],
    ) -> None:
        self._method, self._prefill, self._row, self._ahead = method, prefill, row, ahead
        self._norm, self._even = norm, even
        self._columns = prefill.columns(row)
        meta: RowMeta = prefill.meta[row]
        present = prefill.now.present[row]
        self.hidden = hidden[self._columns]
        self.modality, self.segment = meta.modality[present], meta.segment[present]
        self.question, self.origin = meta.question[present], present
        self.position = meta.position[:, present]
        self.cell = meta.cell[present]
        self.grids: Sequence[tuple[int, int, int]] = meta.grids
        self.entered, self.layers = meta.entered, layers
        scores = meta.guidance
        self.guidance = None if scores is None else scores[present][self.visual]

    @property
    def visual(self) -> np.ndarray:
        """Indices (V,) of the visual tokens among those present."""
        return np.flatnonzero(self.modality > 0)

    def _seen(self, source: str) -> Seen:
        if source == "next":
            return self._ahead()
        last = self._prefill.last
        if last is None:
            raise UnsupportedError(
                f"{self._method} reads the attention of the layer before, which was not kept: it is "
                "no attention layer, or the method does not declare it in `reads`"
            )
        return last

    def queries(self, source: str = "previous") -> Tensor:
        """Queries (H, S, a), rotated."""
        return self._seen(source).q[self._row][:, self._columns]

    def keys(self, source: str = "previous") -> Tensor:
        """Keys (Hkv, S, a), rotated."""
        return self._seen(source).k[self._row][:, self._columns]

    def rows(self, query_index: Any, source: str = "previous") -> Tensor:
        """Attention rows (H, r, S) of these queries, float32."""
        index = torch.as_tensor(np.asarray(query_index, np.int64), device=self._columns.device)
        return self._attention(self._seen(source), index)

    def position_rows(self, query_index: Any, source: str = "previous") -> Tensor:
        """Attention (r, S) of these queries if all queries and keys were ones, float32."""
        if source == "previous":
            self._seen(source)
        index = torch.as_tensor(np.asarray(query_index, np.int64), device=self._columns.device)
        return self._attention(self._even(source), index)[0]

    def _attention(self, seen: Seen, index: Tensor, temperature: float = 1.0) -> Tensor:
        columns = self._columns
        mask = None
        if seen.mask is not None:
            row = min(self._row, seen.mask.shape[0] - 1)
            part = seen.mask[row, 0] if seen.mask.ndim == 4 else seen.mask[row][None]
            part = part[columns[index]] if part.shape[0] > 1 else part
            mask = part[:, columns]
        q, k = seen.q[self._row][:, columns[index]], seen.k[self._row][:, columns]
        return attention_rows(q, k, mask, index, seen.scaling, seen.softcap, temperature)

    def left_multiply(
        self, s: Tensor, source: str = "previous", temperature: float = 1.0
    ) -> Tensor:
        """s (H, S) times the attention matrix, (H, S) float32, a block of queries at a time."""
        seen, total = self._seen(source), len(self._columns)
        heads = seen.q.shape[1]
        block = max(1, BLOCK_ELEMENTS // max(1, heads * total))
        out = torch.zeros(heads, total, device=s.device)
        for start in range(0, total, block):
            index = torch.arange(start, min(start + block, total), device=self._columns.device)
            out += (s[:, index, None].float() * self._attention(seen, index, temperature)).sum(1)
        return out

    def normed(self) -> Tensor:
        """hidden (S, D) after the language model's final norm."""
        if self._norm is None:
            raise UnsupportedError(f"{self._method} reads the final norm, which was not found")
        out: Tensor = self._norm(self.hidden)
        return out


def of_ones(
    method: str,
    layer: nn.Module,
    called: tuple[list[Any], dict[str, Any]],
    look: Callable[[list[Any], dict[str, Any]], Seen],
) -> Seen:
    """What a layer would see if its queries and keys were ones before they are rotated: q and k
    (B, 1, S, a), which all heads have in common.

    The layer's own code rotates them, or not, so that no family's positions are written down here.
    Its projections give ones while it is looked at, and its norms what they get.
    """
    args, kwargs = called
    # Layers that keep keys for later ones write them into a mapping, which must not get these.
    kwargs = {k: copy.copy(v) if isinstance(v, MutableMapping) else v for k, v in kwargs.items()}
    attention = compat_language.attention_of(layer)
    with contextlib.ExitStack() as stack:
        for child in attention.children() if attention is not None else ():
            if hasattr(child, "out_features") or any(True for _ in child.parameters()):
                stack.enter_context(compat.instance_attribute(child, "forward", _ones(child)))
        seen = look(args, kwargs)
    q, k = seen.q[:, :1], seen.k[:, :1]
    if not bool((seen.q == q).all() & (seen.k == k).all()):
        raise UnsupportedError(
            f"{method} asks what positions alone would give, which {type(attention).__name__} does not "
            "show: its heads differ where all projections give ones"
        )
    return Seen(q, k, seen.mask, seen.scaling, seen.softcap)


def _ones(child: nn.Module) -> Callable[..., Tensor]:
    """In place of forward: a projection gives ones, a norm what it gets."""
    width = getattr(child, "out_features", None)

    def forward(x: Tensor, *_: Any, **__: Any) -> Tensor:
        return x if width is None else x.new_ones(*x.shape[:-1], width)

    return forward


@torch.no_grad()
def attention_rows(
    q: Tensor,
    k: Tensor,
    mask: Tensor | None,
    index: Tensor,
    scaling: float | None,
    softcap: float | None = None,
    temperature: float = 1.0,
) -> Tensor:
    """softmax of q (H, r, a) against k (Hkv, S, a): (H, r, S) float32. index (r,) are the places of
    the queries among the S; mask (r or 1, S) bool or additive; None is causal. Logits are divided by
    the temperature. A query that sees no key has a row of zeros.
    """
    with torch.autocast(q.device.type, enabled=False):
        heads, rows = q.shape[0], q.shape[1]
        group = heads // k.shape[0]
        q32 = q.float().reshape(k.shape[0], group * rows, -1)
        logits = (q32 @ k.float().transpose(-1, -2)).view(heads, rows, -1)
        logits *= scaling if scaling is not None else q.shape[-1] ** -0.5
        if softcap is not None:
            logits = torch.tanh(logits / softcap) * softcap
        logits /= temperature
        if mask is None:
            mask = torch.arange(k.shape[1], device=q.device)[None] <= index[:, None]
        hidden = ~mask if mask.dtype == torch.bool else None
        logits = logits + mask.float() if hidden is None else logits.masked_fill(hidden, -torch.inf)
        nothing = (logits == -torch.inf).all(-1, keepdim=True)  # of NaN, nothing is made good
        return torch.softmax(logits, -1).masked_fill(nothing, 0.0)
