"""Memory of this process and of its device, in bytes.

A counter that a machine does not have raises UnsupportedError or is None; it is never zero.
"""

from __future__ import annotations

import ctypes
import importlib
import sys
import threading
from pathlib import Path
from types import TracebackType
from typing import Any

from foveate.core.errors import InputError, MissingExtraError, UnsupportedError

_STATUS = Path("/proc/self/status")


def _status_bytes(field: str) -> int | None:
    """A `VmRSS`-like line of /proc/self/status; None where the system has no such file or line."""
    try:
        text = _STATUS.read_text(encoding="ascii", errors="replace")
    except OSError:
        return None
    for line in text.splitlines():
        name, _, value = line.partition(":")
        if name == field:
            return int(value.split()[0]) * 1024
    return None


def _psutil(purpose: str) -> Any:
    try:
        return importlib.import_module("psutil")
    except ImportError:
        raise MissingExtraError("psutil", "hf", purpose) from None


def rss_bytes() -> int:
    """Resident bytes of this process now. MissingExtraError without /proc and without psutil."""
    found = _status_bytes("VmRSS")
    if found is not None:
        return found
    return int(_psutil("reading resident memory").Process().memory_info().rss)


def peak_rss_bytes() -> int:
    """Largest resident bytes of this process so far.

    Linux's own high-water mark comes first: getrusage there also counts what the process was
    before exec. macOS gives bytes by getrusage, Windows the peak working set by psutil.
    UnsupportedError where none of these counters exists.
    """
    found = _status_bytes("VmHWM")
    if found is not None:
        return found
    try:
        resource: Any = importlib.import_module("resource")
    except ImportError:
        info = _psutil("reading peak memory").Process().memory_info()
        peak = getattr(info, "peak_wset", None)
        if peak is None:
            raise UnsupportedError(
                "this system has no counter of peak memory: sample it with PeakRss instead"
            ) from None
        return int(peak)
    unit = 1 if sys.platform == "darwin" else 1024
    return int(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss) * unit


def device_peak_bytes(device: Any) -> int | None:
    """Largest bytes torch held on a CUDA device since `reset_device_peak`; None on other devices.

    Other back ends count what they hold now, not their peak, and a CPU's memory is the process's:
    use PeakRss there.
    """
    if _cuda(device) is None:
        return None
    import torch

    return int(torch.cuda.max_memory_allocated(device))


def reset_device_peak(device: Any) -> None:
    """Start a new peak on a CUDA device; UnsupportedError on devices that count none."""
    if _cuda(device) is None:
        raise UnsupportedError(f"{device} counts no peak of its memory: use PeakRss for a CPU")
    import torch

    torch.cuda.reset_peak_memory_stats(device)


def _cuda(device: Any) -> Any | None:
    kind = getattr(device, "type", None) or str(device).partition(":")[0]
    return device if kind == "cuda" else None


def trim() -> bool:
    """Give freed heap memory back to the system; whether this C library can (glibc alone).

    glibc keeps freed blocks of up to 32 MB for later use, so that a process that drops most of a
    cache stays as large as before.
    """
    if not sys.platform.startswith("linux"):
        return False
    try:
        return bool(ctypes.CDLL("libc.so.6").malloc_trim(0))
    except (OSError, AttributeError):  # another C library
        return False


class PeakRss:
    """Peak resident bytes inside a block: `with PeakRss() as peak: …; peak.extra_bytes`.

    A thread samples every `interval_s`. Where the kernel's own high-water mark rose inside the
    block, that exact figure counts too, so a spike between two samples is missed only while it
    stays below an earlier peak of the process (`exact` says which it was). Memory that was free
    but still resident when the block began is not extra: measure in a fresh process for bounds.
    """

    def __init__(self, interval_s: float = 0.005) -> None:
        if not interval_s > 0:
            raise InputError(f"interval_s = {interval_s} is out of range: above 0")
        self.interval_s = interval_s
        self.before_bytes: int | None = None
        self.peak_bytes: int | None = None
        self.exact = False
        self._mark: int | None = None
        self._sampled = 0
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    @property
    def extra_bytes(self) -> int | None:
        """Peak less what was resident at the start; None before the block has ended."""
        if self.peak_bytes is None or self.before_bytes is None:
            return None
        return self.peak_bytes - self.before_bytes

    @property
    def running(self) -> bool:
        """Whether the block is open."""
        return self._thread is not None

    def so_far_bytes(self) -> int | None:
        """The peak of the block until now, inside it or after; None before it began.

        Inside a block `exact` is not set yet, but a risen high-water mark counts already.
        """
        if self._thread is None:
            return self.peak_bytes
        mark = _status_bytes("VmHWM")
        risen = mark if mark is not None and self._mark is not None and mark > self._mark else 0
        return max(self._sampled, rss_bytes(), risen)

    def __enter__(self) -> PeakRss:
        if self._thread is not None:
            raise RuntimeError("this PeakRss is already measuring: use one object a block")
        self.peak_bytes, self.exact = None, False
        self._mark = _status_bytes("VmHWM")
        self.before_bytes = self._sampled = rss_bytes()
        self._stop.clear()
        self._thread = threading.Thread(target=self._sample, name="foveate-rss", daemon=True)
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        thread, self._thread = self._thread, None
        self._stop.set()
        if thread is not None:
            thread.join()
        peak = max(self._sampled, rss_bytes())
        mark = _status_bytes("VmHWM")
        if mark is not None and self._mark is not None and mark > self._mark:
            peak, self.exact = max(peak, mark), True
        self.peak_bytes = peak

    def _sample(self) -> None:
        while not self._stop.wait(self.interval_s):
            self._sampled = max(self._sampled, rss_bytes())
