"""StageClock: phases add up, never overlap, survive exceptions, and wait for a GPU's queue."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from typing import Any

import pytest

from foveate.measure import StageClock


def test_phases_add_up_and_only_measured_ones_appear() -> None:
    clock = StageClock()
    for _ in range(2):
        with clock.phase("encode"):
            time.sleep(0.02)
    with clock.phase("select"):
        pass
    assert clock.wall_ms["encode"] >= 40.0 > clock.wall_ms["select"]
    assert set(clock.wall_ms) == set(clock.cpu_ms) == {"encode", "select"}
    assert clock.device_ms == {}


def test_cpu_time_is_work_and_not_waiting() -> None:
    clock = StageClock("cpu")
    with clock.phase("wait"):
        time.sleep(0.05)
    with clock.phase("work"):
        until = time.process_time() + 0.05
        while time.process_time() < until:
            pass
    assert clock.cpu_ms["wait"] < 25.0 < 50.0 <= clock.cpu_ms["work"]


def test_an_exception_closes_the_phase_and_an_overlap_is_refused() -> None:
    clock = StageClock()
    with pytest.raises(KeyError), clock.phase("encode"):
        raise KeyError
    assert clock.running is None and "encode" in clock.wall_ms
    clock.start("prefill")
    with pytest.raises(RuntimeError, match=r"'decode' starts inside 'prefill'"):
        clock.start("decode")
    clock.stop()
    clock.stop()
    assert set(clock.wall_ms) == {"encode", "prefill"}


class FakeCuda:
    """Records the order of calls; every event is 2 ms after the one before."""

    def __init__(self) -> None:
        self.calls: list[str] = []
        cuda = self

        class Event:
            def __init__(self, enable_timing: bool) -> None:
                assert enable_timing

            def record(self) -> None:
                cuda.calls.append("record")
                self.at_ms = 2.0 * cuda.calls.count("record")

            def elapsed_time(self, end: Any) -> float:
                assert cuda.calls[-1] == "synchronize", "an event was read before it was reached"
                return float(end.at_ms - self.at_ms)

        self.Event = Event

    def synchronize(self, device: Any) -> None:
        self.calls.append("synchronize")

    @contextlib.contextmanager
    def device(self, device: Any) -> Iterator[None]:
        yield


@pytest.mark.parametrize("device", ["cuda", "cuda:1"])
def test_a_gpu_is_synchronised_at_both_borders(
    device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch = pytest.importorskip("torch")
    fake = FakeCuda()
    for name in ("synchronize", "Event", "device"):
        monkeypatch.setattr(torch.cuda, name, getattr(fake, name))
    clock = StageClock(torch.device(device))
    with clock.phase("prefill"):
        fake.calls.append("work")
    assert fake.calls == ["synchronize", "record", "work", "record", "synchronize"]
    assert clock.device_ms == {"prefill": 2.0}
