"""Counters of a server's process and everything it started: CPU seconds and resident memory.

For a server on this machine whose process id is known. Resident bytes of the processes are added
up, so that a page which two of them share counts twice; the peak is that of samples, and a spike
between two samples is missed.
"""

from __future__ import annotations

import contextlib
import importlib
import threading
from typing import Any

from foveate.audit.records import Gauges
from foveate.core.errors import InputError, MissingExtraError

RSS_INTERVAL_S = 0.05
"""Between two samples. One costs about 50 microseconds a process; the tree is looked up each time,
because servers start workers when they please.
"""


class ProcessGauges:
    """Gauges of the process `pid` and its descendants, sampled between `open` and `close`.

    InputError if there is no such process or it belongs to somebody else.
    """

    def __init__(self, pid: int, interval_s: float = RSS_INTERVAL_S) -> None:
        if not interval_s > 0:
            raise InputError(f"interval_s = {interval_s} is out of range: above 0")
        self.pid = pid
        self._interval_s = interval_s
        self._psutil = _psutil()
        try:
            self._root = self._psutil.Process(pid)
            self._root.cpu_times()
            self._root.memory_info()
        except (self._psutil.Error, ValueError) as error:
            raise InputError(f"the server's process {pid} cannot be measured: {error}") from None
        self._lock = threading.Lock()
        self._peak: int | None = None
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def open(self) -> None:
        """Start sampling; again does nothing."""
        if self._thread is None:
            self._stop.clear()
            self._thread = threading.Thread(target=self._sample, name="rss", daemon=True)
            self._thread.start()

    def close(self) -> None:
        """End sampling; the last peak stays readable."""
        if self._thread is not None:
            self._stop.set()
            self._thread.join()
            self._thread = None

    def reset(self) -> None:
        """Start a new peak."""
        now = self._rss_bytes()
        with self._lock:
            self._peak = now

    def gauges(self) -> Gauges:
        """CPU seconds of the tree, also of its ended children, and the peak since `reset`; all None
        once the process is gone.
        """
        cpu_s = self._cpu_s()
        self._note(self._rss_bytes())
        with self._lock:
            return Gauges(cpu_s=cpu_s, rss_peak_bytes=self._peak if cpu_s is not None else None)

    def _tree(self) -> list[Any]:
        # is_running compares the start time too: another process may have got the number.
        if not self._root.is_running():
            return []
        with contextlib.suppress(self._psutil.Error):
            return [self._root, *self._root.children(recursive=True)]
        return []

    def _cpu_s(self) -> float | None:
        total, found = 0.0, False
        for process in self._tree():
            with contextlib.suppress(self._psutil.Error):
                t = process.cpu_times()
                # Where the system has them: children that ended and were waited for.
                ended = getattr(t, "children_user", 0.0) + getattr(t, "children_system", 0.0)
                total += t.user + t.system + ended
                found = found or process.pid == self.pid
        return total if found else None

    def _rss_bytes(self) -> int | None:
        total, found = 0, False
        for process in self._tree():
            with contextlib.suppress(self._psutil.Error):
                total += int(process.memory_info().rss)
                found = found or process.pid == self.pid
        return total if found else None

    def _note(self, rss_bytes: int | None) -> None:
        if rss_bytes is not None:
            with self._lock:
                self._peak = max(rss_bytes, self._peak or 0)

    def _sample(self) -> None:
        while not self._stop.wait(self._interval_s):
            self._note(self._rss_bytes())


def _psutil() -> Any:
    try:
        return importlib.import_module("psutil")
    except ImportError:
        raise MissingExtraError("psutil", "audit", "reading a server's CPU and memory") from None
