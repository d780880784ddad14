"""Energy: readings in joules, refusals where there is no meter, never a zero."""

from __future__ import annotations

import sys
from types import SimpleNamespace
from typing import Any

import pytest

from foveate.core.errors import InputError, MissingExtraError, UnsupportedError
from foveate.measure import (
    EnergyReading,
    NullMeter,
    ReplayMeter,
    RunningEnergy,
    ZeusMeter,
    meter,
)


class Monitor:
    """Zeus' monitor as far as the meter knows it."""

    def __init__(self, gpu: dict[int, float], cpu: dict[int, float] | None = None) -> None:
        self.gpu, self.cpu = gpu, cpu
        self.gpu_indices, self.cpu_indices = list(gpu), list(cpu or {})
        self.calls: list[tuple[str, bool]] = []

    def begin_window(self, key: str, sync_execution: bool = True) -> None:
        self.calls.append(("begin", sync_execution))

    def end_window(self, key: str, sync_execution: bool = True) -> Any:
        self.calls.append(("end", sync_execution))
        return SimpleNamespace(time=2.0, gpu_energy=self.gpu, cpu_energy=self.cpu, dram_energy=None)


def test_parts_add_up_and_a_gpu_is_waited_for() -> None:
    monitor = Monitor({0: 10.0, 1: 5.0}, {0: 1.0})
    source = ZeusMeter(monitor)
    source.start()
    reading = source.stop()
    assert reading.joules == 16.0 and reading.watts == 8.0
    assert dict(reading.parts_j) == {"gpu0": 10.0, "gpu1": 5.0, "cpu0": 1.0}
    assert monitor.calls == [("begin", True), ("end", True)]


def test_without_a_gpu_nothing_is_synchronised() -> None:
    monitor = Monitor({}, {0: 3.0})
    source = ZeusMeter(monitor)
    source.start()
    assert source.stop().joules == 3.0
    assert monitor.calls == [("begin", False), ("end", False)]


def test_windows_do_not_nest_and_do_not_close_twice() -> None:
    reading = EnergyReading(1.0, 1.0)
    for source in (ZeusMeter(Monitor({0: 1.0})), ReplayMeter([reading])):
        with pytest.raises(RuntimeError, match="start one first"):
            source.stop()
        source.start()
        with pytest.raises(RuntimeError, match="already open"):
            source.start()
        source.stop()


def test_replayed_readings_run_out() -> None:
    source = ReplayMeter([EnergyReading(1.0, 2.0)])
    source.start()
    assert source.stop() == EnergyReading(1.0, 2.0)
    source.start()
    with pytest.raises(UnsupportedError, match="used up"):
        source.stop()


@pytest.mark.parametrize(("joules", "time_s"), [(0.0, 1.0), (1.0, 0.0), (float("nan"), 1.0)])
def test_nothing_measured_is_no_reading(joules: float, time_s: float) -> None:
    with pytest.raises(InputError, match="measures nothing"):
        EnergyReading(joules, time_s)


def test_a_machine_without_a_meter_refuses(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UnsupportedError, match="no device with an energy counter"):
        ZeusMeter(Monitor({}))
    monkeypatch.setitem(sys.modules, "zeus.monitor", None)
    with pytest.raises(MissingExtraError, match=r"foveate\[energy\]"):
        ZeusMeter()
    none = meter()
    assert isinstance(none, NullMeter) and not none.available
    for act in (none.start, none.stop):
        with pytest.raises(UnsupportedError, match=r"foveate\[energy\]"):
            act()


def test_a_running_sum_is_the_sum_of_its_windows() -> None:
    running = RunningEnergy(ReplayMeter([EnergyReading(2.0, 1.0), EnergyReading(0.5, 1.0)]))
    running.start()
    assert running.joules() == 2.0
    running.close()  # reads the last window
    assert running.reason is None and running._sum_j == 2.5


def test_a_window_without_a_tick_adds_nothing_and_loses_nothing() -> None:
    monitor = Monitor({0: 0.0})
    running = RunningEnergy(ZeusMeter(monitor))
    running.start()
    assert running.joules() == 0.0 and running.reason is None
    monitor.gpu = {0: 7.0}  # the counter ticked
    assert running.joules() == 7.0
    assert [call for call, _ in monitor.calls] == ["begin", "end", "begin", "end", "begin"]


def test_a_machine_without_a_meter_has_a_reason_and_no_sum() -> None:
    running = RunningEnergy(NullMeter("no counter"))
    running.start()
    assert running.joules() is None and running.reason == "no counter"
    running.close()


def test_a_driver_that_fails_ends_the_sum_with_its_words() -> None:
    class Failing(Monitor):
        def end_window(self, key: str, sync_execution: bool = True) -> Any:
            raise OSError("NVML is gone")

    running = RunningEnergy(ZeusMeter(Failing({0: 1.0})))
    running.start()
    assert running.joules() is None
    assert running.reason is not None and "OSError: NVML is gone" in running.reason
    assert running.joules() is None
