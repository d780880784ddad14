"""Energy of a block of code in joules, by a meter that the machine has, or a refusal: never a zero.

`meter()` gives the machine's meter or a NullMeter that says why there is none; `ReplayMeter` plays
stored readings, for tests and for reports made elsewhere.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Protocol

from foveate.core.errors import InputError, MissingExtraError, UnsupportedError


@dataclass(frozen=True)
class EnergyReading:
    """Joules of one window, in sum and by part ("gpu0", "cpu0", "dram0"), over `time_s` seconds."""

    joules: float
    time_s: float
    parts_j: Mapping[str, float] = field(default_factory=lambda: MappingProxyType({}))

    @property
    def watts(self) -> float:
        """Mean power of the window."""
        return self.joules / self.time_s

    def __post_init__(self) -> None:
        if not self.joules > 0 or not self.time_s > 0:
            raise InputError(
                f"an energy reading of {self.joules} J over {self.time_s} s measures nothing: the "
                "window was shorter than the meter's own period; repeat the work inside it"
            )


class Meter(Protocol):
    """One window at a time: `start()`, the work, `stop()`."""

    available: bool

    def start(self) -> None:
        """Open the window. UnsupportedError where there is no meter."""

    def stop(self) -> EnergyReading:
        """Close the window and read it. RuntimeError if none is open."""


class NullMeter:
    """The meter of a machine without one; it refuses with `reason` instead of reading zero."""

    available = False

    def __init__(self, reason: str) -> None:
        self.reason = reason

    def start(self) -> None:
        raise UnsupportedError(f"energy cannot be measured here: {self.reason}")

    def stop(self) -> EnergyReading:
        raise UnsupportedError(f"energy cannot be measured here: {self.reason}")


class ReplayMeter:
    """Plays stored readings in order; UnsupportedError when they are used up."""

    available = True

    def __init__(self, readings: Iterable[EnergyReading]) -> None:
        self._readings = iter(tuple(readings))
        self._open = False

    def start(self) -> None:
        if self._open:
            raise RuntimeError("an energy window is already open: stop it first")
        self._open = True

    def stop(self) -> EnergyReading:
        if not self._open:
            raise RuntimeError("no energy window is open: start one first")
        self._open = False
        reading = next(self._readings, None)
        if reading is None:
            raise UnsupportedError("the stored energy readings are used up")
        return reading


class ZeusMeter:
    """GPU, CPU and DRAM energy by Zeus (NVML, AMD SMI, RAPL), loaded when the meter is made.

    monitor: an object with Zeus' begin_window and end_window, by default a ZeusMonitor over all
    devices. MissingExtraError without the package, UnsupportedError without a device that counts.
    """

    available = True
    _KEY = "foveate"

    def __init__(self, monitor: Any = None) -> None:
        self._monitor = monitor if monitor is not None else _zeus_monitor()
        self._open = False
        if not (list(self._monitor.gpu_indices) or list(self._monitor.cpu_indices)):
            raise UnsupportedError(
                "Zeus found no device with an energy counter: it needs a GPU with NVML or AMD SMI, "
                "or readable RAPL counters of the CPU"
            )

    def start(self) -> None:
        if self._open:
            raise RuntimeError("an energy window is already open: stop it first")
        # Without a GPU there is nothing to wait for, and Zeus would ask for CUDA.
        self._monitor.begin_window(self._KEY, sync_execution=bool(self._monitor.gpu_indices))
        self._open = True

    def stop(self) -> EnergyReading:
        if not self._open:
            raise RuntimeError("no energy window is open: start one first")
        self._open = False
        found = self._monitor.end_window(self._KEY, sync_execution=bool(self._monitor.gpu_indices))
        parts_j = {
            f"{kind}{index}": float(joules)
            for kind in ("gpu", "cpu", "dram")
            for index, joules in (getattr(found, f"{kind}_energy", None) or {}).items()
        }
        return EnergyReading(sum(parts_j.values()), float(found.time), MappingProxyType(parts_j))


def _zeus_monitor() -> Any:
    try:
        module = importlib.import_module("zeus.monitor")
    except ImportError:
        raise MissingExtraError("zeus", "energy", "measuring energy") from None
    return module.ZeusMonitor()


def meter() -> Meter:
    """The machine's meter, or a NullMeter with the reason why there is none."""
    try:
        return ZeusMeter()
    except UnsupportedError as error:
        return NullMeter(str(error))


class RunningEnergy:
    """Joules that add up over a run, from a meter that knows windows only.

    `start()` opens the first window; every `joules()` closes the open window, adds it and opens the
    next. The sum is of use as a difference between two reads. A window in which the counter did not
    tick adds nothing: the ticks of one cumulative counter are in the window that sees them. So two
    reads may be equal, which says "shorter than the meter's period" and not "no energy".

    After a failure of the meter the sum is None for good and `reason` says why.
    """

    def __init__(self, source: Meter | None = None) -> None:
        self._meter = source if source is not None else meter()
        self._sum_j = 0.0
        self._open = False
        self.reason: str | None = None
        if not self._meter.available:
            self.reason = getattr(self._meter, "reason", "this machine has no energy meter")

    def start(self) -> None:
        """Open the first window, so that the next read sees what was spent since. May be called
        again; nothing is raised where there is no meter.
        """
        if self.reason is None and not self._open:
            self._guard(self._meter.start)
            self._open = self.reason is None

    def joules(self) -> float | None:
        """The sum until now; None where there is no meter or it failed."""
        if self._open:
            self._close()
        self.start()
        return self._sum_j if self.reason is None else None

    def close(self) -> None:
        """Close the open window, if any; the sum keeps what it held."""
        if self._open:
            self._close()

    def _close(self) -> None:
        self._open = False
        reading = self._guard(self._meter.stop)
        if reading is not None:
            self._sum_j += reading.joules

    def _guard(self, call: Callable[[], EnergyReading | None]) -> EnergyReading | None:
        """Zeus passes on whatever its drivers raise; a counter that fails is missing, no more."""
        try:
            return call()
        except InputError:  # an empty window: no tick yet
            return None
        except Exception as error:  # drivers raise classes of their own
            self.reason = f"the energy meter failed: {type(error).__name__}: {error}"
            return None
