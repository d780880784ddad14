"""Time by phase: wall-clock and process CPU milliseconds; a GPU is synchronised at the borders so that its work counts."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from typing import Any


class StageClock:
    """Adds up milliseconds by phase. Phases do not overlap; `device` is a torch device or None.

    Synchronising at a border makes queued GPU work count for the phase that queued it.
    """

    def __init__(self, device: Any = None) -> None:
        self.wall_ms: dict[str, float] = {}
        self.cpu_ms: dict[str, float] = {}
        self._cuda = device is not None and getattr(device, "type", str(device)) == "cuda"
        self._device = device
        self._open: tuple[str, float, float] | None = None

    def _sync(self) -> None:
        if self._cuda:
            import torch

            torch.cuda.synchronize(self._device)

    def start(self, name: str) -> None:
        """Open a phase; RuntimeError if one is open."""
        if self._open is not None:
            raise RuntimeError(f"phase {name!r} starts inside {self._open[0]!r}")
        self._sync()
        self._open = (name, time.perf_counter(), time.process_time())

    def stop(self) -> None:
        """Close the open phase, if any."""
        if self._open is None:
            return
        self._sync()
        name, wall, cpu = self._open
        self._open = None
        self.wall_ms[name] = self.wall_ms.get(name, 0.0) + (time.perf_counter() - wall) * 1e3
        self.cpu_ms[name] = self.cpu_ms.get(name, 0.0) + (time.process_time() - cpu) * 1e3

    @contextlib.contextmanager
    def phase(self, name: str) -> Iterator[None]:
        self.start(name)
        try:
            yield
        finally:
            self.stop()
