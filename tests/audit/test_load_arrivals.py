"""Loads by their text, and arrivals that follow from seed, load and block alone."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from foveate.audit.arrivals import Closed, Open, Trace, parse_load, schedule
from foveate.core.errors import InputError


@pytest.mark.parametrize(
    ("text", "load"),
    [("closed:8", Closed(8)), (" open:5 ", Open(5.0)), ("open:0.25", Open(0.25))],
)
def test_a_load_is_its_text(text: str, load: Closed | Open) -> None:
    assert parse_load(text) == load
    assert parse_load(str(load)) == load


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("closed:0", "at least 1"),
        ("closed:-2", "at least 1"),
        ("closed:2.5", "not a number"),
        ("closed:", "not a number"),
        ("open:0", "above 0"),
        ("open:nan", "above 0"),
        ("open:inf", "above 0"),
        ("open:fast", "not a number"),
        ("8", "no load"),
        ("trace:", "no load"),
        ("burst:3", "no load"),
        ("trace:/no/such/file", "cannot be read"),
    ],
)
def test_bad_loads_are_refused(text: str, says: str) -> None:
    with pytest.raises(InputError, match=says):
        parse_load(text)


@given(st.floats(0.01, 1e4), st.integers(0, 2**40), st.integers(0, 1000), st.integers(0, 60))
def test_a_schedule_follows_from_seed_load_and_block(
    rate: float, seed: int, block: int, count: int
) -> None:
    load = Open(rate)
    times = schedule(load, count, seed=seed, block=block)
    assert times == schedule(Open(rate), count, seed=seed, block=block)
    assert len(times) == count and all(a < b for a, b in zip(times, times[1:], strict=False))
    if count:
        assert times[0] > 0
        assert times != schedule(load, count, seed=seed, block=block + 1)
        assert times != schedule(load, count, seed=seed + 1, block=block)
        assert times != schedule(Open(rate * 2), count, seed=seed, block=block)


def test_fewer_requests_are_the_beginning_of_more() -> None:
    assert schedule(Open(5), 10, seed=1, block=2) == schedule(Open(5), 99, seed=1, block=2)[:10]


def test_gaps_are_exponential_at_the_rate() -> None:
    stats = pytest.importorskip("scipy.stats")
    blocks = [schedule(Open(20.0), 200, seed=3, block=b) for b in range(20)]
    gaps = np.concatenate([np.diff((0.0, *times)) for times in blocks])
    assert stats.kstest(gaps, stats.expon(scale=1 / 20).cdf).pvalue > 1e-3
    # No memory from one block to the next.
    assert abs(np.corrcoef(gaps[:-1], gaps[1:])[0, 1]) < 0.06


def test_a_trace_is_played_on_from_block_to_block(tmp_path: Path) -> None:
    path = tmp_path / "trace.txt"
    path.write_text('# recorded\n100.0\n100.5\n\n{"time_s": 102, "tokens": 3}\n103\n')
    load = parse_load(f"trace:{path}")
    assert isinstance(load, Trace) and str(load) == f"trace:{path}"
    assert load.times_s == (0.0, 0.5, 2.0, 3.0)
    assert schedule(load, 3, seed=1, block=0) == (0.0, 0.5, 2.0)
    # The fourth time, then the trace anew after its mean gap of one second.
    assert schedule(load, 3, seed=2, block=1) == (0.0, 1.0, 1.5)
    assert schedule(load, 2, seed=1, block=2) == (0.0, 0.5)
    moved = Trace(load.times_s, "elsewhere")
    assert moved.digest == load.digest != Trace((0.0, 0.5), str(path)).digest


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "no times"),
        ("1\ntwo\n", "line 2"),
        ('{"at": 3}', "line 1"),
        ("[1, 2]", "line 1"),
        ("3\n2\n", "back in time"),
        ("1\nNaN\n", "finite"),
        ("1\nInfinity\n", "finite"),
    ],
)
def test_bad_traces_are_refused(tmp_path: Path, text: str, says: str) -> None:
    path = tmp_path / "trace.txt"
    path.write_text(text)
    with pytest.raises(InputError, match=says):
        parse_load(f"trace:{path}")


def test_a_trace_of_one_time_cannot_be_played_on(tmp_path: Path) -> None:
    path = tmp_path / "trace.txt"
    path.write_text("7\n")
    load = parse_load(f"trace:{path}")
    assert isinstance(load, Trace)
    assert schedule(load, 1, seed=0, block=3) == (0.0,)
    with pytest.raises(InputError, match="one time"):
        schedule(load, 2, seed=0, block=0)
