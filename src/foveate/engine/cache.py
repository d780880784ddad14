"""The feature cache: what the vision side gave for a picture, kept within a byte budget in memory
and, if a folder is given, on disk. A second question about a picture runs no tower.

It stands between the pixels and the choice of tokens. Methods that read the question choose anew
each time, from the same features.
"""

from __future__ import annotations

import contextlib
import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from foveate.core.errors import SettingError
from foveate.core.views import Need
from foveate.engine.cache_disk import DiskStore
from foveate.engine.cache_entry import Entry, cut, join, pack
from foveate.engine.cache_key import (
    Identities,
    Units,
    combined,
    facts_of,
    hashable,
    unit_key,
    units,
    vision_weights,
)
from foveate.models.adapter import AutoAdapter
from foveate.models.encoded import Encoded
from foveate.models.packed import KeptPatches

MEMORY_BYTES = 512 * 2**20
DISK_BYTES = 4 * 2**30


@dataclass(frozen=True)
class CacheStats:
    """Counts of pictures (or whole calls, where a family's pictures cannot be told apart).

    bypassed: calls that were encoded without looking. disk_hits are hits, too.
    """

    hits: int
    misses: int
    evictions: int
    bypassed: int
    bytes: int
    entries: int
    disk_hits: int
    disk_bytes: int
    disk_evictions: int
    damaged_files: int


@dataclass(frozen=True)
class Fetched:
    """The batch's features; `hits`: id() of the pieces that were not encoded now."""

    encoded: Encoded
    hits: frozenset[int]


class FeatureCache:
    """Encoder output by picture, tower and revision; one cache may serve several models and threads.

    max_bytes bounds memory; folder adds files that outlive the process, max_disk_bytes bounds them
    (default 4 GiB). Entries in memory lie where the model is. Raises SettingError for a budget below
    1 or a folder that cannot be written.
    """

    def __init__(
        self,
        max_bytes: int = MEMORY_BYTES,
        *,
        folder: str | Path | None = None,
        max_disk_bytes: int | None = None,
    ) -> None:
        _check("max_bytes", max_bytes)
        if max_disk_bytes is not None:
            _check("max_disk_bytes", max_disk_bytes)
            if folder is None:
                raise SettingError("max_disk_bytes bounds a folder: give folder=, too")
        self.max_bytes = max_bytes
        self.disk = None
        if folder is not None:
            self.disk = DiskStore(folder, max_disk_bytes or DISK_BYTES)
        self._entries: OrderedDict[str, Entry] = OrderedDict()
        self._identities = Identities()
        self._lock = threading.RLock()
        self._bytes = self._hits = self._misses = self._evictions = 0
        self._bypassed = self._disk_hits = 0

    @property
    def stats(self) -> CacheStats:
        with self._lock:
            disk = self.disk
            return CacheStats(
                self._hits,
                self._misses,
                self._evictions,
                self._bypassed,
                self._bytes,
                len(self._entries),
                self._disk_hits,
                disk.nbytes if disk else 0,
                disk.evictions if disk else 0,
                disk.damaged if disk else 0,
            )

    def clear(self) -> None:
        """Forget all entries, in memory and in the folder; counts stay."""
        with self._lock:
            self._entries.clear()
            self._bytes = 0
        if self.disk is not None:
            self.disk.clear()

    def encode(
        self,
        adapter: AutoAdapter,
        mm: Mapping[str, Any],
        modality: str = "image",
        needs: frozenset[Need] = frozenset(),
        around: Callable[[], contextlib.AbstractContextManager[Any]] | None = None,
        kept: KeptPatches | None = None,
    ) -> Fetched:
        """What `adapter.encode` gives, encoding only the pictures that are not known.

        Always encoded, and never stored: plans that act inside the tower (`around`) or leave out
        patches (`kept`), a vision side in training mode or recording gradients, and inputs that
        cannot be hashed.
        """
        if around is not None or kept is not None or not hashable(mm) or _trains(adapter, mm):
            with self._lock:
                self._bypassed += 1
            return Fetched(adapter.encode(mm, modality, needs, around, kept), frozenset())
        with self._lock:
            identity = self._identities.of(adapter)
        facts = facts_of(adapter, needs)
        split = units(adapter, mm, modality)
        device = next(v.device for v in mm.values() if torch.is_tensor(v))
        keys = [unit_key(identity, modality, facts, u) for u in split.each]
        parts = dict(zip(keys, split.each, strict=True))
        found = {k: self._get(k, device) for k in parts}
        missing = [k for k, entry in found.items() if entry is None]
        whole = unit_key(identity, modality, facts, mm)
        if missing and whole not in found:
            entry = self._get(whole, device)
            if entry is not None:
                return self._told([True], [entry], join([entry]))
        if len(missing) == len(keys) and (split.together or len(keys) == 1):
            encoded = adapter.encode(mm, modality, needs)
            self._keep(keys, whole, encoded)
            return self._told([False] * len(keys), [], encoded)
        for key, entry in zip(
            missing,
            self._encode_apart(adapter, [parts[k] for k in missing], split, modality, needs),
            strict=True,
        ):
            found[key] = entry
            if entry is not None:
                self._put(key, entry)
        entries = [e for k in keys if (e := found[k]) is not None]
        joined = join(entries) if len(entries) == len(keys) else None
        if joined is None:  # the pictures' facts do not fit together: one call, as without a cache
            encoded = adapter.encode(mm, modality, needs)
            self._keep([], whole, encoded)
            return self._told([False] * len(keys), [], encoded)
        return self._told([k not in missing for k in keys], entries, joined)

    # --- encoding what is missing ---------------------------------------------------------------
    def _encode_apart(
        self,
        adapter: AutoAdapter,
        parts: Sequence[dict[str, Any]],
        split: Units,
        modality: str,
        needs: frozenset[Need],
    ) -> list[Entry | None]:
        if split.together and len(parts) > 1:
            pieces = cut(adapter.encode(combined(parts), modality, needs), len(parts))
            if pieces is not None:
                return [pack(p) for p in pieces]
        return [pack(adapter.encode(p, modality, needs)) for p in parts]

    def _keep(self, keys: Sequence[str], whole: str, encoded: Encoded) -> None:
        """Store a call by its pictures where it can be cut into them, else under its own name."""
        if len(keys) == 1:
            pieces, names = [encoded], list(keys)
        else:
            pieces, names = (cut(encoded, len(keys)) if keys else None) or [], list(keys)
        if not pieces:
            pieces, names = [encoded], [whole]
        for key, piece in zip(names, pieces, strict=True):
            entry = pack(piece)
            if entry is not None:
                self._put(key, entry)

    def _told(
        self, known: Sequence[bool], entries: Sequence[Entry], encoded: Encoded | None
    ) -> Fetched:
        if encoded is None:
            raise RuntimeError("an entry of the feature cache cannot be read back")
        with self._lock:
            self._hits += sum(known)
            self._misses += len(known) - sum(known)
        hits, start = set(), 0
        for was_known, entry in zip(known, entries, strict=False):
            count = len(entry.meta["pieces"])
            if was_known:
                hits |= {id(p) for p in encoded.pieces[start : start + count]}
            start += count
        return Fetched(encoded, frozenset(hits))

    # --- memory ---------------------------------------------------------------------------------
    def _get(self, key: str, device: torch.device) -> Entry | None:
        with self._lock:
            entry = self._entries.get(key)
            if entry is not None:
                self._entries.move_to_end(key)
        if entry is not None:
            return entry.to(device)
        if self.disk is None:
            return None
        entry = self.disk.get(key, device)
        if entry is not None:
            with self._lock:
                self._disk_hits += 1
            self._remember(key, entry)
        return entry

    def _put(self, key: str, entry: Entry) -> None:
        self._remember(key, entry)
        if self.disk is not None:
            self.disk.put(key, entry)

    def _remember(self, key: str, entry: Entry) -> None:
        """The last used stay; an entry above the whole budget is not kept and pushes nothing out."""
        with self._lock:
            old = self._entries.pop(key, None)
            if old is not None:
                self._bytes -= old.nbytes
            if entry.nbytes > self.max_bytes:
                return
            self._entries[key] = entry
            self._bytes += entry.nbytes
            while self._bytes > self.max_bytes:
                _, gone = self._entries.popitem(last=False)
                self._bytes -= gone.nbytes
                self._evictions += 1


def _check(name: str, value: Any) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise SettingError(
            f"{name} = {value!r} is out of range: a whole number of bytes, at least 1"
        )


def _trains(adapter: AutoAdapter, mm: Mapping[str, Any]) -> bool:
    """Whether features are random (dropout) or a gradient must pass through them."""
    if adapter.base.training or adapter.vision.training:
        return True
    if not torch.is_grad_enabled():
        return False
    inputs = [v for v in mm.values() if torch.is_tensor(v)]
    weights = [w for _, w in vision_weights(adapter)]
    return any(t.requires_grad for t in inputs + weights)
