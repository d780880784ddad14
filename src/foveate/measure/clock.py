"""Time by phase: wall-clock, process CPU and device milliseconds.

A GPU is synchronised at both borders of a phase, so that queued work counts for the phase that
queued it, and a pair of CUDA events gives the milliseconds the device itself was at it.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any


@dataclass
class _Open:
    name: str
    wall_s: float
    cpu_s: float
    event: Any


class StageClock:
    """Adds up milliseconds by phase. Phases do not overlap.

    device: a torch device, its name, or None. wall_ms and cpu_ms hold every closed phase; cpu_ms is
    that of the whole process, all threads together. device_ms holds phases only on a CUDA device:
    an absent phase was not measured, it did not take zero.
    """

    def __init__(self, device: Any = None) -> None:
        self.wall_ms: dict[str, float] = {}
        self.cpu_ms: dict[str, float] = {}
        self.device_ms: dict[str, float] = {}
        kind = getattr(device, "type", None) or str(device).partition(":")[0]
        self._cuda = device is not None and kind == "cuda"
        self._device = device
        self._open: _Open | None = None

    @property
    def running(self) -> str | None:
        """The phase that is open, or None."""
        return self._open.name if self._open else None

    def start(self, name: str) -> None:
        """Open a phase; RuntimeError if one is open."""
        if self._open is not None:
            raise RuntimeError(f"phase {name!r} starts inside {self._open.name!r}: stop that first")
        self._sync()
        event = self._event()
        self._open = _Open(name, time.perf_counter(), time.process_time(), event)

    def stop(self) -> None:
        """Close the open phase, if any."""
        if self._open is None:
            return
        opened, self._open = self._open, None
        event = self._event()
        self._sync()
        wall_s, cpu_s = time.perf_counter(), time.process_time()
        _add(self.wall_ms, opened.name, (wall_s - opened.wall_s) * 1e3)
        _add(self.cpu_ms, opened.name, (cpu_s - opened.cpu_s) * 1e3)
        if event is not None:
            _add(self.device_ms, opened.name, float(opened.event.elapsed_time(event)))

    @contextlib.contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """`with clock.phase("encode"): …`; an exception inside still closes the phase."""
        self.start(name)
        try:
            yield
        finally:
            self.stop()

    def _sync(self) -> None:
        if self._cuda:
            import torch

            torch.cuda.synchronize(self._device)

    def _event(self) -> Any:
        """A CUDA event recorded now on the current stream, or None on other devices."""
        if not self._cuda:
            return None
        import torch

        with torch.cuda.device(self._device):
            event = torch.cuda.Event(enable_timing=True)
            event.record()
        return event


def _add(table: dict[str, float], name: str, ms: float) -> None:
    table[name] = table.get(name, 0.0) + ms
