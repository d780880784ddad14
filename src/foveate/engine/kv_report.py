"""Bytes of a KV cache, request by request and layer by layer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from foveate.core.language import CachePolicy
from foveate.core.shapes import Entries
from foveate.engine.kv import LayerStore
from foveate.engine.kv_cache import RaggedCache, SequenceKV
from foveate.engine.kv_coded import CodedStore
from foveate.engine.kv_policy import mean_entries

Seen = tuple[tuple[int, ...], ...]
"""Entries of a head that each step of a cache attends to, its own included, by layer."""


@dataclass
class HeldRows:
    """Sequences taken out of a cache, and the steps that they took since their prompts."""

    rows: Sequence[SequenceKV]
    steps: int


def layer_bytes(
    cache: Any, tokens: int, row: int = 0, steps: int = 0, seen: Seen | None = None
) -> tuple[int, ...] | None:
    """Bytes of one request's own entries by layer, padding and empty places of blocks left out; None
    without a cache. tokens: of prompt and answer that have passed. steps: of its own answer. seen:
    where a policy evicts between steps.
    """
    if cache is None:
        return None
    if isinstance(cache, RaggedCache | HeldRows):
        if row >= len(cache.rows):
            return None
        return tuple(
            _bytes(store, _late(cache, store, i, steps, seen))
            for i, store in enumerate(cache.rows[row].layers)
        )
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


def entries_at_decode(
    cache: Any, row: int, steps: int, seen: Seen | None = None
) -> tuple[Entries, ...] | None:
    """Entries of a request's KV heads by layer when its `steps` of decoding began, of those that are
    there at its end; None for other caches.
    """
    if not isinstance(cache, RaggedCache | HeldRows) or row >= len(cache.rows):
        return None
    found, steps = [], min(steps, cache.steps)
    for i, store in enumerate(cache.rows[row].layers):
        late = _late(cache, store, i, steps, seen)
        found.append(tuple(max(0, n - late - steps) for n in store.lengths))
    return tuple(found)


def seen_by_step(cache: Any, row: int, policy: Any) -> Seen | None:
    """What each step so far attended to, where `policy` evicts between steps; None where none does,
    or where heads differ, so that it cannot be told from what is left.
    """
    if not isinstance(cache, RaggedCache | HeldRows) or row >= len(cache.rows):
        return None
    if not isinstance(policy, CachePolicy) or policy.when != "overflow":
        return None
    stores = cache.rows[row].layers
    held = sum(bool(store.groups) for store in stores)
    out = []
    for store in stores:
        if not store.groups:
            return None
        target = mean_entries(policy, store, held)
        n, here = min(store.prompt, target), []
        for _ in range(cache.steps):
            n += 1
            here.append(n)
            if n > target and policy.overflows(n, target):
                n = target
        if set(store.lengths) != {n}:
            return None
        out.append(tuple(here))
    return tuple(out)


def coded(cache: Any, row: int, tokens: Sequence[int], steps: int) -> bool:
    """Whether some of a request's entries are codes; tokens: of its prompt, by layer."""
    if not isinstance(cache, RaggedCache | HeldRows) or row >= len(cache.rows):
        return False
    steps = min(steps, cache.steps)
    late = cache.steps - steps
    return any(
        isinstance(store, CodedStore)
        and _bytes(store, late) != (n + steps) * store.heads * store.bytes_per_entry
        for store, n in zip(cache.rows[row].layers, tokens, strict=False)
    )


def _late(cache: RaggedCache | HeldRows, store: LayerStore, i: int, steps: int, seen: Any) -> int:
    """Entries that layer i has more than when its request ended, `steps` after the prompt."""
    late = max(0, cache.steps - steps)
    if seen is None or not late:
        return late
    return int(max(store.lengths) - (seen[i][steps] - 1))


def _bytes(store: LayerStore, late: int) -> int:
    if isinstance(store, CodedStore):
        return store.entry_bytes(late)
    entries = store.entries - late * store.heads
    return max(0, entries) * store.bytes_per_entry + store.digest_bytes
