"""The feature cache's folder: one safetensors file an entry, named by its key, written whole or not
at all, removed when damaged, the longest unused first when the folder is over its budget.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import re
import tempfile
import threading
import time
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from foveate.core.errors import SettingError
from foveate.engine.cache_entry import Entry, unpack

_log = logging.getLogger("foveate")
_NAME = re.compile(r"[0-9a-f]{64}\.safetensors")
_TEMPORARY = ".foveate-"
_STALE_S = 3600.0  # a temporary file this old belongs to a process that died while writing


class DiskStore:
    """Entries in `folder`, at most `max_bytes` of files. Other files in it are never touched.

    Several processes may share a folder. A file that cannot be written costs a warning, not the
    answer.
    """

    def __init__(self, folder: str | Path, max_bytes: int) -> None:
        self.folder, self.max_bytes = Path(folder), max_bytes
        self.damaged = self.evictions = self.failed_writes = 0
        self._lock = threading.Lock()
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise SettingError(
                f"folder = {self.folder} cannot be made ({error.strerror}): give a folder to write to"
            ) from None
        if not os.access(self.folder, os.W_OK | os.X_OK):
            raise SettingError(f"folder = {self.folder} cannot be written to")
        self._sweep()
        self._total = sum(size for _, size, _ in self._files())

    @property
    def nbytes(self) -> int:
        return self._total

    def get(self, key: str, device: torch.device) -> Entry | None:
        """The entry on `device`; None if there is none, or if its file was damaged and is now gone."""
        path = self._path(key)
        try:
            entry = _read(path, key)
        except FileNotFoundError:
            return None
        except (SafetensorError, OSError, ValueError, KeyError, TypeError, IndexError) as error:
            _log.warning("feature cache: %s is damaged (%s) and was removed", path, error)
            with self._lock:
                self.damaged += 1
                self._remove(path)
            return None
        with contextlib.suppress(OSError):
            os.utime(path)  # used now: the last to go
        return entry.to(device)

    def put(self, key: str, entry: Entry) -> None:
        """Write by way of a temporary file; entries above the whole budget are passed over."""
        if entry.nbytes > self.max_bytes:
            return
        tensors = {k: t.cpu() for k, t in entry.tensors.items()}
        facts = {"key": key, "sum": _checksum(tensors), "entry": json.dumps(entry.meta)}
        path = self._path(key)
        temporary = None
        try:
            handle, temporary = tempfile.mkstemp(prefix=_TEMPORARY, dir=self.folder)
            os.close(handle)
            save_file(tensors, temporary, metadata=facts)
            with self._lock:
                before = path.stat().st_size if path.exists() else 0
                os.replace(temporary, path)
                self._total += path.stat().st_size - before
                if self._total > self.max_bytes:
                    self._evict()
        except (OSError, SafetensorError) as error:
            self.failed_writes += 1
            _log.warning("feature cache: %s cannot be written: %s", path, error)
            if temporary is not None:
                with contextlib.suppress(OSError):
                    os.unlink(temporary)

    def clear(self) -> None:
        with self._lock:
            for path, _, _ in self._files():
                self._remove(path)
            self._total = 0

    def _path(self, key: str) -> Path:
        return self.folder / f"{key}.safetensors"

    def _files(self) -> list[tuple[Path, int, float]]:
        found = []
        with os.scandir(self.folder) as names:
            for name in names:
                if not _NAME.fullmatch(name.name):
                    continue
                with contextlib.suppress(OSError):  # another process may have just removed it
                    facts = name.stat()
                    found.append((Path(name.path), facts.st_size, facts.st_mtime))
        return found

    def _evict(self) -> None:
        files = sorted(self._files(), key=lambda f: f[2])
        self._total = sum(size for _, size, _ in files)
        for path, _, _ in files:
            if self._total <= self.max_bytes:
                return
            self._remove(path)
            self.evictions += 1

    def _remove(self, path: Path) -> None:
        with contextlib.suppress(OSError):
            size = path.stat().st_size
            path.unlink()
            self._total -= size

    def _sweep(self) -> None:
        for path in self.folder.glob(f"{_TEMPORARY}*"):
            with contextlib.suppress(OSError):
                if time.time() - path.stat().st_mtime > _STALE_S:
                    path.unlink()


def _read(path: Path, key: str) -> Entry:
    """ValueError and its like say that the file is not what put() wrote under this key."""
    if not path.exists():
        raise FileNotFoundError(path)
    with safe_open(str(path), framework="pt", device="cpu") as file:
        facts = file.metadata() or {}
        tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118
    if facts.get("key") != key:
        raise ValueError("it belongs to another key")
    if facts.get("sum") != _checksum(tensors):
        raise ValueError("its checksum does not match")
    entry = Entry(tensors, json.loads(facts["entry"]))
    unpack(entry)
    return entry


def _checksum(tensors: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for name in sorted(tensors):
        digest.update(name.encode())
        digest.update(tensors[name].contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
