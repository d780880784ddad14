"""CPU and memory of a server's process tree."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

pytest.importorskip("psutil")

from foveate.audit.process_gauges import ProcessGauges
from foveate.core.errors import InputError

# Reads a command a line and answers when it is done: hold N MiB, drop them, burn S CPU seconds, and
# the same in a child that lives on ("start", then "child …") or ends at once ("once …").
SERVER = """
import subprocess, sys, time
held, child = None, None
def work(words):
    global held, child
    if words[0] == "hold": held = bytearray(b"x") * (int(words[1]) << 20)
    if words[0] == "drop": held = None
    if words[0] == "burn":
        end = time.process_time() + float(words[1])
        while time.process_time() < end: pass
    if words[0] == "start":
        child = subprocess.Popen([sys.executable, "-c", sys.argv[1], sys.argv[1]],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    if words[0] == "child":
        print(*words[1:], file=child.stdin, flush=True); child.stdout.readline()
    if words[0] == "end": child.stdin.close(); child.wait()
for line in sys.stdin:
    work(line.split()); print("done", flush=True)
"""
MIB = 1 << 20


@contextmanager
def server() -> Iterator[tuple[int, Callable[[str], None]]]:
    with subprocess.Popen(
        [sys.executable, "-c", SERVER, SERVER],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdin is not None and process.stdout is not None

        def do(words: str) -> None:
            assert process.stdin is not None and process.stdout is not None
            print(words, file=process.stdin, flush=True)
            assert process.stdout.readline() == "done\n"

        do("drop")
        yield process.pid, do
        process.stdin.close()


def cpu_s(gauges: ProcessGauges) -> float:
    found = gauges.gauges().cpu_s
    assert found is not None
    return found


def peak(gauges: ProcessGauges) -> int:
    found = gauges.gauges().rss_peak_bytes
    assert found is not None
    return found


def test_cpu_of_the_server_its_children_and_those_that_ended() -> None:
    with server() as (pid, do):
        gauges = ProcessGauges(pid)
        start = cpu_s(gauges)
        do("burn 0.3")
        own = cpu_s(gauges)
        assert own - start >= 0.25
        do("start")
        do("child burn 0.3")
        with_child = cpu_s(gauges)
        assert with_child - own >= 0.25
        do("end")
        # An ended child's seconds stay, and are not counted twice.
        assert 0 <= cpu_s(gauges) - with_child < 0.25
        # This process burned nothing of it.
        end = time.process_time() + 0.2
        before = cpu_s(gauges)
        while time.process_time() < end:
            pass
        assert cpu_s(gauges) - before < 0.1


def test_peak_memory_is_that_since_the_reset_and_of_the_whole_tree() -> None:
    with server() as (pid, do):
        gauges = ProcessGauges(pid, interval_s=0.01)
        gauges.open()
        gauges.open()
        try:
            gauges.reset()
            before = peak(gauges)
            do("hold 64")
            time.sleep(0.2)
            do("drop")
            assert peak(gauges) - before >= 60 * MIB
            gauges.reset()
            after = peak(gauges)
            assert after - before < 30 * MIB
            do("start")
            do("child hold 64")
            assert peak(gauges) - after >= 60 * MIB
        finally:
            gauges.close()
            gauges.close()


def test_a_server_that_ended_has_no_counters() -> None:
    with server() as (pid, _do):
        gauges = ProcessGauges(pid)
        gauges.reset()
        assert cpu_s(gauges) >= 0
    found = gauges.gauges()
    assert found.cpu_s is None and found.rss_peak_bytes is None
    assert found.joules is None and found.device_peak_bytes is None


def test_no_peak_before_the_first_reset_is_a_level() -> None:
    found = ProcessGauges(os.getpid()).gauges()
    assert found.rss_peak_bytes is not None and found.rss_peak_bytes > MIB


def test_no_such_process() -> None:
    with server() as (pid, _do):
        pass
    for number in (pid, -1):
        with pytest.raises(InputError, match=f"process {number} cannot be measured"):
            ProcessGauges(number)
    with pytest.raises(InputError, match="interval_s"):
        ProcessGauges(os.getpid(), interval_s=0)
