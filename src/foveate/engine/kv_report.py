"""Bytes of a KV cache, request by request and layer by layer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from foveate.core.shapes import Entries
from foveate.engine.kv import LayerStore
from foveate.engine.kv_cache import RaggedCache, SequenceKV
from foveate.engine.kv_coded import CodedStore


@dataclass
class HeldRows:
    """Sequences taken out of a cache, and the steps that they took since their prompts."""

    rows: Sequence[SequenceKV]
    steps: int


def layer_bytes(cache: Any, tokens: int, row: int = 0, steps: int = 0) -> tuple[int, ...] | None:
    """Bytes of one request's own entries by layer, padding and empty places of blocks left out; None
    without a cache. tokens: of prompt and answer that have passed. steps: of its own answer.
    """
    if cache is None:
        return None
    if isinstance(cache, RaggedCache | HeldRows):
        if row >= len(cache.rows):
            return None
        late = max(0, cache.steps - steps)  # steps after its own end
        return tuple(_bytes(store, late) for store in cache.rows[row].layers)
    found = []
    for layer in getattr(cache, "layers", ()):
        keys, values = getattr(layer, "keys", None), getattr(layer, "values", None)
        if not torch.is_tensor(keys) or not torch.is_tensor(values) or keys.ndim != 4:
            found.append(0)
            continue
        stored = min(int(keys.shape[2]), tokens)
        found.append(stored * int(keys[0, :, :1].nbytes + values[0, :, :1].nbytes))
    return tuple(found)


def offloaded_bytes(cache: Any, row: int) -> int | None:
    """Bytes of a request's entries that lie in host memory; None where none do."""
    if not isinstance(cache, RaggedCache | HeldRows) or row >= len(cache.rows):
        return None
    return sum(store.offloaded_bytes for store in cache.rows[row].layers) or None


def entries_at_decode(cache: Any, row: int) -> tuple[Entries, ...] | None:
    """Entries of a request's KV heads by layer when decoding began; None for other caches."""
    if not isinstance(cache, RaggedCache | HeldRows) or row >= len(cache.rows):
        return None
    return tuple(
        tuple(max(0, n - cache.steps) for n in store.lengths) for store in cache.rows[row].layers
    )


def _bytes(store: LayerStore, late: int) -> int:
    entries = store.entries - late * store.heads
    if isinstance(store, CodedStore):  # codes have no size of their own: a share of all
        return round(store.nbytes * entries / store.entries) if store.entries else 0
    return max(0, entries) * store.bytes_per_entry + store.digest_bytes
