"""Tokens that come after a prompt: filed with their sequences, attending over ragged stores."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from foveate.engine import kv_attention
from foveate.engine.kv_cache import RaggedCache
from foveate.engine.language_pass import Prefill
from foveate.models import compat_language


def write_prompt(prefill: Prefill, cache: RaggedCache, layer: int, k: Tensor, v: Tensor) -> None:
    """File the keys and values (B, Hkv, S, a) of a prefill, padding left out."""
    for row, sequence in enumerate(cache.rows):
        columns = prefill.columns(row)
        there = torch.as_tensor(prefill.now.present[row], device=k.device)
        sequence.layers[layer].append(k[row][:, columns], v[row][:, columns], there)


class Steps:
    """Decode steps and chunks of a prompt, s tokens for every row of a cache."""

    def __init__(self, text_config: Any, kinds: Sequence[str], sources: Sequence[int]) -> None:
        self.sources = sources
        self.visible = [_visible(text_config, kind) for kind in kinds]
        self._at: dict[tuple[int, int], Tensor] = {}

    def _origin(self, end: int, new: int, device: Any) -> Tensor:
        """Sequence indices (new,) of the last tokens before `end`; made once for all layers."""
        found = self._at.get((end, new))
        if found is None or found.device != device:
            found = torch.arange(end - new, end, dtype=torch.int32, device=device)
            self._at[end, new] = found
        return found

    def write(self, cache: RaggedCache, layer: int, k: Tensor, v: Tensor) -> None:
        """File new keys and values (B, Hkv, s, a); the first layer that holds entries counts them."""
        new, first = int(k.shape[-2]), layer == cache.held.index(True)
        cache.steps += new if first else 0
        if first:
            self._at.clear()
        for row, sequence in enumerate(cache.rows):
            sequence.length += new if first else 0
            at = self._origin(sequence.length, new, k.device)
            sequence.layers[layer].append(k[row], v[row], at)

    def attend(
        self,
        cache: RaggedCache,
        layer: int,
        module: nn.Module,
        inner: Any,
        q: Tensor,
        kwargs: dict[str, Any],
    ) -> Tensor:
        """Output (B, s, H, b) of queries (B, H, s, a), each row over its own entries."""
        parts = []
        for row, sequence in enumerate(cache.rows):
            origin = self._origin(sequence.length, int(q.shape[2]), q.device)
            store = sequence.layers[self.sources[layer]]
            mine = q[row : row + 1]
            parts.append(
                kv_attention.attend(inner, module, mine, store, origin, self.visible[layer], kwargs)
            )
        return parts[0] if len(parts) == 1 else torch.cat(parts)


def _visible(text_config: Any, kind: str) -> kv_attention.Visible | None:
    window = compat_language.window_of(text_config, kind)
    if window is None:
        return None
    how, size = window
    if how == "sliding":
        return lambda q, k: q - k < size
    return lambda q, k: q // size == k // size
