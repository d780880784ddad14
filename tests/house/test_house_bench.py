"""What benchmarks lean on: work in a fork under a limit, and cells that remember their code."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("transformers")
if not hasattr(os, "fork"):
    pytest.skip("needs fork", allow_module_level=True)

from bench.encode_store import Store, key, version
from bench.forked import forked


def spin() -> dict[str, Any]:
    while True:
        pass


def sleep() -> dict[str, Any]:
    time.sleep(60)
    return {}


def fall() -> dict[str, Any]:
    raise ValueError("no such tower")


def end() -> dict[str, Any]:
    os.kill(os.getpid(), signal.SIGTERM)
    return {}


def test_a_fork_gives_back_what_it_found() -> None:
    assert forked(lambda: {"pid": os.getpid()}, 5)["pid"] != os.getpid()


@pytest.mark.parametrize(
    ("work", "slack", "said"),
    [
        (spin, 60, "over 1 CPU s"),
        (sleep, 0.2, "over 0.2 s by the clock"),
        (fall, 60, "ValueError: no such tower"),
        (end, 60, "ended by signal 15"),
    ],
)
def test_a_fork_that_fails_or_takes_too_long_says_so(work: Any, slack: float, said: str) -> None:
    assert forked(work, 1, slack) == {"not_run": said}


def test_cells_are_kept_with_their_code(tmp_path: Path) -> None:
    place = key("onevision", 576, "1/4", "divprune")
    store = Store(tmp_path / "encode.json")
    store.append(place, "a", 144, {"p5": 1.01})
    store.append(place, "a", 144, {"p5": 1.03})
    store.put(place, "memory", "a", {"not_run": "over 60 CPU s"})
    store.save(limit_s=60)
    again = Store(tmp_path / "encode.json")
    assert again.get(place, "time") == store.get(place, "time")
    assert again.cells[place]["time"]["p5"] == [1.01, 1.03] and again.data["limit_s"] == 60
    assert again.rounds(place, "time", "a") == 2 == again.rounds(place, "time", None)
    assert again.rounds(place, "time", "b") == 0
    assert again.rounds(place, "memory", "a") is None and again.rounds(place, "memory", "b") == 0
    again.append(place, "b", 144, {"p5": 1.2})  # other code: the old rounds do not count
    assert again.cells[place]["time"]["p5"] == [1.2]


def test_the_version_is_that_of_the_methods_own_code() -> None:
    names = ("divprune", "visionzip", "prumerge", "prumerge-plus")
    found = {name: version(name) for name in names}
    assert found["prumerge"] == found["prumerge-plus"]  # one file
    assert len(set(found.values())) == 3
