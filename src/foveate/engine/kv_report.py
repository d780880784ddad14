"""Bytes of a KV cache, request by request."""

from __future__ import annotations

from typing import Any

import torch

from foveate.engine.kv_cache import RaggedCache


def kv_bytes(cache: Any, tokens: int, row: int = 0, new_tokens: int = 0) -> int | None:
    """Bytes that one request's own entries take in the attention layers' caches, padding left out."""
    if cache is None:
        return None
    if isinstance(cache, RaggedCache):
        own = cache.rows[row] if row < len(cache.rows) else None
        if own is None:
            return None
        late = max(0, cache.steps - max(0, new_tokens - 1))  # steps after its own end
        return sum(
            (layer.entries - late * layer.heads) * layer.bytes_per_entry for layer in own.layers
        )
    total = 0
    for layer in getattr(cache, "layers", ()):
        keys, values = getattr(layer, "keys", None), getattr(layer, "values", None)
        if not torch.is_tensor(keys) or not torch.is_tensor(values) or keys.ndim != 4:
            continue
        stored = min(int(keys.shape[2]), tokens)
        per_entry = keys[0, :, :1].nbytes + values[0, :, :1].nbytes
        total += stored * per_entry
    return total
