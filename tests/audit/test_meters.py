"""Gauges of this process: peaks since the reset, sums that go on, and a reason for what is missing."""

from __future__ import annotations

import subprocess
import sys
import time
from dataclasses import fields

import pytest

from foveate.audit import meters
from foveate.audit.meters import ProcessMeter, endpoint_missing, gained
from foveate.audit.records import Gauges
from foveate.core.errors import InputError, UnsupportedError
from foveate.measure import EnergyReading, NullMeter, ReplayMeter

MIB = 1 << 20


def _burn(cpu_s: float) -> None:
    end = time.process_time() + cpu_s
    while time.process_time() < end:
        pass


def test_every_counter_is_there_or_has_a_reason() -> None:
    meter = ProcessMeter("cpu", energy=NullMeter("no RAPL here"))
    try:
        meter.reset()
        gauges, missing = meter.gauges(), meter.missing()
        for field in fields(Gauges):
            assert (getattr(gauges, field.name) is None) == (field.name in missing), field.name
        assert set(missing) == {"device_peak_bytes", "device_s", "kv_peak_bytes", "joules"}
        assert missing["joules"] == "no RAPL here"
        assert all(reason and "\n" not in reason for reason in missing.values())
    finally:
        meter.close()


def test_cpu_seconds_add_up_over_resets() -> None:
    meter = ProcessMeter(energy=NullMeter("none"))
    before = meter.gauges()
    assert before.rss_peak_bytes is None  # no peak before the first reset
    meter.reset()
    _burn(0.05)
    meter.reset()
    _burn(0.05)
    after = meter.gauges()
    meter.close()
    gain = gained(before, after).cpu_s
    assert gain is not None and 0.1 <= gain < 1.0


def test_the_peak_of_memory_counts_from_the_reset() -> None:
    """In a process of its own, where nothing else allocates."""
    code = (
        "import time, numpy as np\n"
        "from foveate.audit.meters import ProcessMeter\n"
        "from foveate.measure import NullMeter, rss_bytes\n"
        "meter = ProcessMeter(energy=NullMeter('none'), rss_interval_s=0.002)\n"
        "meter.reset()\n"
        "start = rss_bytes()\n"
        "x = np.ones(96 << 20, dtype=np.uint8); time.sleep(0.05); del x\n"
        "high = meter.gauges().rss_peak_bytes\n"
        "meter.reset(); time.sleep(0.05)\n"
        "low = meter.gauges().rss_peak_bytes\n"
        "meter.close(); assert meter.gauges().rss_peak_bytes >= low\n"
        "print(high - start, low - start)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    high, low = map(int, done.stdout.split())
    assert 90 * MIB < high < 130 * MIB and low < 40 * MIB


def test_kv_bytes_are_the_largest_that_was_noted_since_the_reset() -> None:
    meter = ProcessMeter(energy=NullMeter("none"))
    meter.reset()
    for held in (10, 70, 30):
        meter.note_kv_bytes(held)
    assert meter.gauges().kv_peak_bytes == 70 and "kv_peak_bytes" not in meter.missing()
    meter.reset()
    assert meter.gauges().kv_peak_bytes is None and "kv_peak_bytes" in meter.missing()
    meter.note_kv_bytes(0)
    assert meter.gauges().kv_peak_bytes == 0  # an empty cache was measured
    with pytest.raises(InputError, match="held_bytes = -1"):
        meter.note_kv_bytes(-1)
    meter.close()


def test_joules_of_two_turns_add_up() -> None:
    readings = [EnergyReading(j, 1.0) for j in (0.5, 3.0, 0.25, 4.0)]
    meter = ProcessMeter(energy=ReplayMeter(readings))
    gains = []
    for _ in range(2):
        meter.reset()
        before = meter.gauges()
        gains.append(gained(before, meter.gauges()).joules)
    meter.close()
    assert gains == [3.0, 4.0]


def test_a_meter_that_fails_in_the_middle_is_missing_from_then_on() -> None:
    meter = ProcessMeter(energy=ReplayMeter([EnergyReading(2.0, 1.0)]))
    meter.reset()
    assert meter.gauges().joules == 2.0 and "joules" not in meter.missing()
    assert meter.gauges().joules is None
    assert "used up" in meter.missing()["joules"]
    assert meter.gauges().joules is None
    meter.close()


def test_a_sum_that_did_not_move_is_not_a_zero() -> None:
    still = Gauges(cpu_s=1.0, device_s=2.0, joules=5.0, rss_peak_bytes=7)
    gain = gained(still, still)
    assert gain.joules is None and gain.device_s is None
    assert gain.cpu_s == 0.0 and gain.rss_peak_bytes == 7
    assert gained(Gauges(), still) == Gauges(rss_peak_bytes=7)


def test_memory_that_cannot_be_read_has_its_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse() -> int:
        raise UnsupportedError("no /proc here")

    monkeypatch.setattr(meters, "rss_bytes", refuse)
    meter = ProcessMeter(energy=NullMeter("none"))
    meter.reset()
    assert meter.gauges().rss_peak_bytes is None
    assert meter.missing()["rss_peak_bytes"] == "no /proc here"
    meter.close()


class _Event:
    """A CUDA event on a clock of its own; `done` says whether the device has come that far."""

    now_ms = 0.0
    done = False

    def __init__(self) -> None:
        self.at_ms = _Event.now_ms

    def query(self) -> bool:
        return _Event.done

    def elapsed_time(self, other: _Event) -> float:
        return other.at_ms - self.at_ms


def test_device_seconds_count_between_the_events_only(monkeypatch: pytest.MonkeyPatch) -> None:
    torch = pytest.importorskip("torch")
    meter = ProcessMeter("cuda:0", energy=NullMeter("none"))
    assert meter._events is not None
    monkeypatch.setattr(meter._events, "_event", _Event)
    waited: list[object] = []

    def synchronize(device: object) -> None:
        waited.append(device)
        _Event.done = True

    monkeypatch.setattr(torch.cuda, "synchronize", synchronize)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: 123)
    _Event.now_ms, _Event.done = 0.0, False
    for work_ms, idle_ms in ((30.0, 1000.0), (12.0, 500.0)):
        with meter.device_work():
            _Event.now_ms += work_ms
        _Event.now_ms += idle_ms
    assert len(meter._events._pairs) == 2  # nothing waited inside the work
    gauges = meter.gauges()
    assert gauges.device_s == pytest.approx(0.042) and waited == ["cuda:0"]
    assert gauges.device_peak_bytes == 123
    assert set(meter.missing()) == {"kv_peak_bytes", "joules"}
    with pytest.raises(KeyError), meter.device_work():
        _Event.now_ms += 8.0
        raise KeyError
    assert meter.gauges().device_s == pytest.approx(0.05)  # work that failed was work
    meter.close()


def test_on_a_cpu_device_work_is_transparent() -> None:
    meter = ProcessMeter("cpu", energy=NullMeter("none"))
    with meter.device_work():
        pass
    assert meter.gauges().device_s is None
    with pytest.raises(InputError, match="rss_interval_s = 0"):
        ProcessMeter(rss_interval_s=0)


def test_an_endpoint_without_a_process_has_no_counter_at_all() -> None:
    everything = {field.name for field in fields(Gauges)}
    assert set(endpoint_missing(False)) == everything
    assert "no process id" in endpoint_missing(False)["cpu_s"]
    assert set(endpoint_missing(True)) == everything - {"cpu_s", "rss_peak_bytes"}
    assert "no process id" not in endpoint_missing(True)["joules"]
