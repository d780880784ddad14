"""The process's gauges on a CUDA device: seconds by events, peak bytes since the reset.

Run on a machine with a CUDA device: `python -m pytest tests/gpu`.
"""

from __future__ import annotations

import time

import pytest
import torch

from foveate.audit.meters import ProcessMeter, gained
from foveate.measure import NullMeter

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
MIB = 1 << 20


def test_device_seconds_are_the_work_and_not_the_wait() -> None:
    meter = ProcessMeter("cuda", energy=NullMeter("not looked at"))
    a = torch.randn(4096, 4096, device="cuda")
    (a @ a).sum().item()  # the first product loads libraries
    meter.reset()
    before, start_s = meter.gauges(), time.perf_counter()
    with meter.device_work():
        for _ in range(20):
            b = a @ a
    time.sleep(0.5)
    gain = gained(before, meter.gauges())
    wall_s = time.perf_counter() - start_s
    meter.close()
    assert b.shape == a.shape
    assert gain.device_s is not None and 0 < gain.device_s < wall_s - 0.45


def test_the_device_peak_counts_from_the_reset() -> None:
    meter = ProcessMeter("cuda", energy=NullMeter("not looked at"))
    meter.reset()
    x = torch.ones(64 * MIB, dtype=torch.uint8, device="cuda")
    del x
    high = meter.gauges().device_peak_bytes
    meter.reset()
    low = meter.gauges().device_peak_bytes
    meter.close()
    assert high is not None and low is not None and high - low >= 64 * MIB
