"""Counters of this process, for targets that run inside it: CPU, memory, device, KV cache, energy.

They are the process's and the machine's: the auditor's own work, the sampling of memory and, for
joules, whatever else the machine does are in them. One arm works at a time, so what a counter
gained in its turn is that arm's. A counter that is not there is None, and `missing` says why.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator
from dataclasses import fields
from typing import Any

from foveate.audit.records import Gauges
from foveate.core.errors import InputError, UnsupportedError
from foveate.measure.energy import Meter, RunningEnergy
from foveate.measure.memory import PeakRss, device_peak_bytes, reset_device_peak, rss_bytes

RSS_INTERVAL_S = 0.02
"""Between two samples of resident memory, which cost about 30 microseconds each. A spike that is
shorter is seen by the kernel's high-water mark, where it is the highest of the process so far.
"""


class ProcessMeter:
    """Gauges of this process. One serves all arms of a run; `close` ends its sampling thread.

    device: where the model is, a torch device or its name; CUDA devices count peak bytes and, by
    events around each `with meter.device_work()`, seconds. `note_kv_bytes` is told what the KV
    caches hold after each step. energy: a meter, by default the machine's.

    Peaks count from the last `reset`, and are None before the first one.
    """

    def __init__(
        self,
        device: Any = None,
        *,
        energy: Meter | None = None,
        rss_interval_s: float = RSS_INTERVAL_S,
    ) -> None:
        if not rss_interval_s > 0:
            raise InputError(f"rss_interval_s = {rss_interval_s} is out of range: above 0")
        self._device = device
        self._cuda = _is_cuda(device)
        self._interval_s = rss_interval_s
        self._energy = RunningEnergy(energy)
        self._events = _DeviceSeconds(device) if self._cuda else None
        self._lock = threading.Lock()
        self._kv_peak: int | None = None
        self._rss: PeakRss | None = None
        self._rss_reason = _no_rss()

    def reset(self) -> None:
        """Start the peaks anew: resident, device and KV bytes. The sums go on."""
        self._end_rss()
        if self._rss_reason is None:
            self._rss = PeakRss(self._interval_s)
            self._rss.__enter__()
        if self._cuda:
            reset_device_peak(self._device)
        with self._lock:
            self._kv_peak = None
        self._energy.start()

    def gauges(self) -> Gauges:
        """The counters now. Waits for a CUDA device to finish what it was given."""
        device_s = self._events.seconds() if self._events else None
        with self._lock:
            kv_peak = self._kv_peak
        return Gauges(
            cpu_s=time.process_time(),
            rss_peak_bytes=self._rss.so_far_bytes() if self._rss else None,
            device_peak_bytes=device_peak_bytes(self._device) if self._cuda else None,
            kv_peak_bytes=kv_peak,
            device_s=device_s,
            joules=self._energy.joules(),
        )

    def note_kv_bytes(self, held_bytes: int) -> None:
        """What the KV caches hold now; the largest since `reset` is the gauge. From any thread."""
        if held_bytes < 0:
            raise InputError(f"held_bytes = {held_bytes} is out of range: 0 or more")
        with self._lock:
            self._kv_peak = max(held_bytes, self._kv_peak or 0)

    @contextlib.contextmanager
    def device_work(self) -> Iterator[None]:
        """`with meter.device_work(): engine.step()`: its CUDA time, by a pair of events; no waiting.

        Nothing elsewhere: the seconds of a CPU are `cpu_s`.
        """
        if self._events is None:
            yield
            return
        with self._events.work():
            yield

    def missing(self) -> dict[str, str]:
        """Counter to the reason why it is None, for those that this machine or run does not have."""
        found: dict[str, str] = {}
        if self._rss_reason is not None:
            found["rss_peak_bytes"] = self._rss_reason
        if not self._cuda:
            why = (
                "the model is not on a CUDA device: the memory and seconds of a CPU are the "
                "process's, rss_peak_bytes and cpu_s; other devices count neither"
            )
            found["device_peak_bytes"] = found["device_s"] = why
        with self._lock:
            if self._kv_peak is None:
                found["kv_peak_bytes"] = "nobody said what the KV caches hold since the last reset"
        if self._energy.reason is not None:
            found["joules"] = self._energy.reason
        return found

    def close(self) -> None:
        """End the sampling of memory and the energy window; the last peaks stay readable."""
        if self._rss is not None:
            self._stop_rss(self._rss)
        self._energy.close()

    def _end_rss(self) -> None:
        if self._rss is not None:
            self._stop_rss(self._rss)
        self._rss = None

    @staticmethod
    def _stop_rss(rss: PeakRss) -> None:
        if rss.running:
            rss.__exit__(None, None, None)


def gained(before: Gauges, after: Gauges) -> Gauges:
    """What one turn gained: differences of the sums, the peaks as they are at its end.

    A sum of energy or device time that did not move was not measured: the turn was shorter than the
    counter's period, or no such work was announced. It is None then, never zero.
    """
    return Gauges(
        cpu_s=_difference(before.cpu_s, after.cpu_s),
        rss_peak_bytes=after.rss_peak_bytes,
        device_peak_bytes=after.device_peak_bytes,
        kv_peak_bytes=after.kv_peak_bytes,
        device_s=_difference(before.device_s, after.device_s) or None,
        joules=_difference(before.joules, after.joules) or None,
    )


def endpoint_missing(measured_process: bool) -> dict[str, str]:
    """`missing` of an endpoint: it says nothing of itself, and its process may be known."""
    there = ("cpu_s", "rss_peak_bytes") if measured_process else ()
    why = "an endpoint does not say what it holds or draws" + (
        "" if measured_process else ", and no process id of the server was given"
    )
    return {field.name: why for field in fields(Gauges) if field.name not in there}


class _DeviceSeconds:
    """Adds up the CUDA time between pairs of events; finished pairs are taken in as they come."""

    def __init__(self, device: Any) -> None:
        self._device = device
        self._pairs: list[tuple[Any, Any]] = []
        self._sum_s = 0.0
        self._lock = threading.Lock()

    @contextlib.contextmanager
    def work(self) -> Iterator[None]:
        start = self._event()
        try:
            yield
        finally:
            end = self._event()
            with self._lock:
                self._pairs.append((start, end))
                self._take()

    def seconds(self) -> float:
        import torch

        torch.cuda.synchronize(self._device)
        with self._lock:
            self._take()
            return self._sum_s

    def _take(self) -> None:
        while self._pairs and self._pairs[0][1].query():
            start, end = self._pairs.pop(0)
            self._sum_s += float(start.elapsed_time(end)) * 1e-3

    def _event(self) -> Any:
        import torch

        with torch.cuda.device(self._device):
            event = torch.cuda.Event(enable_timing=True)
            event.record()
        return event


def _is_cuda(device: Any) -> bool:
    kind = getattr(device, "type", None) or str(device).partition(":")[0]
    return device is not None and kind == "cuda"


def _no_rss() -> str | None:
    try:
        rss_bytes()
    except UnsupportedError as error:
        return str(error)
    return None


def _difference(before: float | None, after: float | None) -> float | None:
    return None if before is None or after is None else after - before
