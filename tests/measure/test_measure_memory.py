"""Memory: peaks inside a block are seen, and a counter that is missing refuses instead of zero."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from foveate.core.errors import InputError, MissingExtraError, UnsupportedError
from foveate.measure import memory
from foveate.measure.memory import (
    PeakRss,
    device_peak_bytes,
    peak_rss_bytes,
    reset_device_peak,
    rss_bytes,
)

MIB = 1 << 20


def test_rss_is_between_a_megabyte_and_its_peak() -> None:
    now = rss_bytes()
    assert MIB < now <= peak_rss_bytes()


def test_rss_agrees_with_psutil() -> None:
    psutil = pytest.importorskip("psutil")
    assert abs(rss_bytes() - psutil.Process().memory_info().rss) < 4 * MIB


def test_a_freed_array_is_in_the_peak() -> None:
    """In a process of its own: a test worker may still hold freed memory that the array would reuse."""
    code = (
        "import time, numpy as np\n"
        "from foveate.measure.memory import PeakRss\n"
        "with PeakRss(interval_s=0.002) as peak:\n"
        "    assert peak.extra_bytes is None\n"
        "    x = np.ones(64 << 20, dtype=np.uint8)\n"
        "    time.sleep(0.05)\n"
        "    del x\n"
        "print(peak.extra_bytes)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert 60 * MIB < int(done.stdout) < 96 * MIB


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux's high-water mark")
def test_a_spike_between_two_samples_is_in_the_peak() -> None:
    code = (
        "import numpy as np\n"
        "from foveate.measure.memory import PeakRss\n"
        "with PeakRss(interval_s=60) as peak:\n"
        "    x = np.ones(256 << 20, dtype=np.uint8)\n"
        "    del x\n"
        "print(peak.exact, peak.extra_bytes)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    exact, extra = done.stdout.split()
    assert exact == "True" and 250 * MIB < int(extra) < 290 * MIB


def test_an_exception_ends_the_sampling_and_the_object_can_be_used_again() -> None:
    peak = PeakRss()
    with pytest.raises(KeyError), peak:
        raise KeyError
    assert peak.peak_bytes is not None and peak._thread is None
    with peak, pytest.raises(RuntimeError, match="already measuring"):
        peak.__enter__()
    with pytest.raises(InputError, match="interval_s = 0"):
        PeakRss(interval_s=0)


def test_the_peak_can_be_read_while_the_block_is_open() -> None:
    peak = PeakRss(interval_s=60)
    assert peak.so_far_bytes() is None and not peak.running
    with peak:
        inside = peak.so_far_bytes()
        assert inside is not None and peak.before_bytes is not None and peak.running
        assert inside >= peak.before_bytes > 0
    after = peak.so_far_bytes()
    assert after is not None and after == peak.peak_bytes and not peak.running


def test_a_missing_counter_refuses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "_STATUS", Path("/nonexistent/status"))
    monkeypatch.setitem(sys.modules, "psutil", None)
    with pytest.raises(MissingExtraError, match=r"foveate\[hf\]"):
        rss_bytes()
    assert peak_rss_bytes() > MIB  # getrusage is left
    monkeypatch.setitem(sys.modules, "resource", None)
    with pytest.raises(MissingExtraError, match="psutil"):
        peak_rss_bytes()


def test_a_cpu_has_no_device_peak() -> None:
    assert device_peak_bytes("cpu") is None and device_peak_bytes(None) is None
    with pytest.raises(UnsupportedError, match="PeakRss"):
        reset_device_peak("cpu")
