"""What a guide looks at: the attention that visual tokens receive while its model answers a batch."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from foveate.engine.compress import Compressed
from foveate.engine.language_view import BLOCK_ELEMENTS, attention_rows
from foveate.models import compat, compat_language


class Watch:
    """Sums up the attention that visual tokens receive while a model answers a batch.

    received[b] (N,) float64: over all layers and heads, from the prompt's queries behind the last
    visual token and from generated tokens up to the end of the row's answer; N are all tokens of the
    row's segments. Takes O(H r S) memory for r queries, in blocks.
    """

    def __init__(self, short: Compressed, stop: set[int]) -> None:
        mask = short.kwargs["attention_mask"]
        device = mask.device
        self.width, self.stop = int(mask.shape[1]), torch.tensor(sorted(stop), device=device)
        self.received: list[Tensor] = []
        self.columns: list[Tensor] = []
        self.queries: list[Tensor] = []
        self.places: list[Tensor] = []
        for b, row in enumerate(short.rows):
            real = (mask[b] != 0).nonzero()[:, 0].cpu().numpy()
            at = np.concatenate([p.at for p in row.placed]) if row.placed else np.zeros(0, np.int64)
            there = np.flatnonzero(np.isin(at, row.index))
            columns = real[np.searchsorted(row.index, at[there])]
            behind = real[real > columns.max(initial=-1)]
            self.places.append(torch.as_tensor(there, device=device))
            self.columns.append(torch.as_tensor(columns, device=device))
            self.queries.append(torch.as_tensor(behind, device=device))
            self.received.append(torch.zeros(at.size, dtype=torch.float64, device=device))
        self.steps = -1
        self.ended = torch.zeros(len(short.rows), dtype=torch.bool, device=device)

    @contextlib.contextmanager
    def on(self, model: Any) -> Iterator[None]:
        """Watch the decoder's attention until the block ends."""
        layers = list(compat.decoder_of(model).layers)
        handle = model.register_forward_pre_hook(self._step, with_kwargs=True)
        try:
            with compat_language.routed(model, layers, self):
                yield
        finally:
            handle.remove()

    def _step(self, _: nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
        self.steps += 1
        ids = args[0] if args else kwargs.get("input_ids")
        if self.steps and torch.is_tensor(ids):
            self.ended |= torch.isin(ids[:, -1].to(self.stop.device), self.stop)

    def attend(
        self,
        module: nn.Module,
        inner: Any,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        mask: Tensor | None,
        kwargs: dict[str, Any],
    ) -> Any:
        """The decoder's attention (`compat_language.Attending`)."""
        for b, columns in enumerate(self.columns):
            if columns.numel() and not bool(self.ended[b]):
                self._add(b, q, k, mask, kwargs)
        return inner(module, q, k, v, mask, **kwargs)

    def _add(
        self, b: int, q: Tensor, k: Tensor, mask: Tensor | None, kwargs: Mapping[str, Any]
    ) -> None:
        # A layer with a sliding window holds the last entries only.
        gone = self.width + self.steps - int(k.shape[2])
        columns = self.columns[b] - gone
        seen = columns >= 0
        index = self.queries[b] if self.steps == 0 else torch.zeros_like(columns[:1])
        block = max(1, BLOCK_ELEMENTS // (int(q.shape[1]) * int(k.shape[2])))
        for part in index.split(block):
            if mask is not None:
                rows = mask[min(b, mask.shape[0] - 1), 0][part] if mask.ndim == 4 else None
            elif self.steps:
                rows = torch.ones(1, int(k.shape[2]), dtype=torch.bool, device=q.device)
            else:
                rows = None
            found = attention_rows(
                q[b][:, part], k[b], rows, part, kwargs.get("scaling"), kwargs.get("softcap")
            )
            mass = found.double().sum((0, 1))[columns[seen]]
            self.received[b][self.places[b][seen]] += mass
