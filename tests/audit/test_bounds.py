"""Bounds from files: what is read, and everything that contradicts itself."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from foveate.audit.bounds import (
    Bounds,
    Confidence,
    Speedup,
    canonical_load,
    canonical_metric,
    load_bounds,
)
from foveate.core.errors import InputError

FULL = """
max_quality_drop = 0.01
max_error_rate = 0.02
[max_quality_drop_by_category]
charts = 0.03
[[min_speedup]]
metric = "e2e_p50"
at = "open:5.0"
min = 1.2
[[min_speedup]]
metric = "goodput"
min = 1
[slo]
ttft_ms = 500
e2e_ms = 2000
[confidence]
speed = 0.9
"""


def written(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "bounds.toml"
    path.write_text(text, encoding="utf-8")
    return path


def test_a_whole_file(tmp_path: Path) -> None:
    bounds = load_bounds(written(tmp_path, FULL))
    assert bounds.min_speedup == (Speedup("e2e", "open:5", 1.2), Speedup("goodput", None, 1))
    assert bounds.confidence == Confidence(quality=0.95, speed=0.9, errors=0.99)
    assert bounds.drop_bound("all") == 0.01 and bounds.drop_bound("photos") == 0.01
    assert bounds.drop_bound("charts") == 0.03
    assert bounds.slo == {"ttft_ms": 500, "e2e_ms": 2000}
    again = Bounds.from_dict(json.loads(json.dumps(bounds.as_dict())))
    assert again == bounds


def test_without_a_file_one_point_of_quality() -> None:
    assert load_bounds(None) == Bounds(max_quality_drop=0.01) == Bounds.from_dict({})
    assert Bounds.from_dict(load_bounds(None).as_dict()) == load_bounds(None)


def test_a_bound_for_every_load_becomes_one_for_each() -> None:
    bounds = Bounds(min_speedup=(Speedup("e2e", None, 1.1), Speedup("ttft", "closed:8", 1.0)))
    assert [(s.metric, load, s.min) for s, load in bounds.speedups(["closed:1", "closed:8"])] == [
        ("e2e", "closed:1", 1.1), ("e2e", "closed:8", 1.1), ("ttft", "closed:8", 1.0),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "are empty"),
        ("max_quality_drop = 0.01\nmax_quality_drop = 0.02", "no valid TOML"),
        ("max_quality_drop = -0.01", "max_quality_drop = -0.01 is out of range"),
        ("max_quality_drop = 2", "2 points are 0.02"),
        ("max_quality_drop = 1.0", "bounds nothing"),
        ("max_quality_drop = nan", "not a finite number"),
        ("max_quality_drop = true", "not a finite number"),
        ('max_quality_drop = "1 %"', "not a finite number"),
        ("max_qualty_drop = 0.01", "did you mean max_quality_drop"),
        ("max_error_rate = 1.5", "0 to 1"),
        ("max_error_rate = 1", "bounds nothing"),
        ("[slo]\nttft_ms = 100", "ask for nothing"),
        ("[max_quality_drop_by_category]\ncharts = -1", "by_category.charts"),
        ("[max_quality_drop_by_category]\nall = 0.1", "max_quality_drop$"),
        ("max_quality_drop = 0.1\n[confidence]\nquality = 95", "above 0.5 and below 1"),
        ("max_quality_drop = 0.1\n[confidence]\nspeed = 0.5", "confidence.speed"),
        ("max_quality_drop = 0.1\n[confidence]\nsped = 0.9", "did you mean speed"),
        ("max_quality_drop = 0.1\nconfidence = 0.9", "is a table"),
        ("max_quality_drop = 0.1\n[slo]\nttft = 5", "did you mean ttft_ms"),
        ("max_quality_drop = 0.1\n[slo]\nttft_ms = 0", "above 0 milliseconds"),
        ("max_quality_drop = 0.1\n[slo]\nttft_ms = 5\ne2e_ms = 4", "before its first token"),
        ("min_speedup = 1.2", r"write \[\[min_speedup\]\]"),
        ("[[min_speedup]]\nmin = 1.2", "needs metric"),
        ("[[min_speedup]]\nmetric = 'ttft'", "and min"),
        ("[[min_speedup]]\nmetric = 'tfft'\nmin = 1", "did you mean ttft"),
        ("[[min_speedup]]\nmetric = 'ttft'\nmin = 0", "above 0"),
        ("[[min_speedup]]\nmetric = 'ttft'\nmin = inf", "not a finite number"),
        ("[[min_speedup]]\nmetric = 'ttft'\nat = 8\nmin = 1", "no load such as closed:8"),
        ("[[min_speedup]]\nmetric = 'ttft'\nfor = 'closed:8'\nmin = 1", "unknown key 'for'"),
        ("[[min_speedup]]\nmetric = 'goodput'\nmin = 1", r"needs an \[slo\] table"),
        (
            "[[min_speedup]]\nmetric = 'ttft'\nat = 'open:5'\nmin = 1\n"
            "[[min_speedup]]\nmetric = 'ttft_ms'\nat = 'open:5.0'\nmin = 2",
            "ttft at open:5 is given as 1 and as 2",
        ),
    ],
)
def test_what_contradicts_itself_is_refused(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(InputError, match=said):
        load_bounds(written(tmp_path, text))


def test_a_file_that_is_none(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot be read"):
        load_bounds(tmp_path / "missing.toml")
    (tmp_path / "latin").write_bytes(b"max_quality_drop = 0.01 # \xe9")
    with pytest.raises(InputError, match="cannot be read"):
        load_bounds(tmp_path / "latin")


def test_the_same_bound_twice_with_one_value_is_no_contradiction() -> None:
    twice = (Speedup("e2e", "closed:1", 1.1), Speedup("e2e", "closed:1", 1.1))
    bounds = Bounds(min_speedup=twice)
    assert len(bounds.speedups(["closed:1"])) == 1


def test_loads_and_categories_are_checked_before_the_run() -> None:
    bounds = Bounds(
        max_quality_drop_by_category={"charts": 0.1}, min_speedup=(Speedup("e2e", "closed:8", 1.0),)
    )
    bounds.check(["closed:8", "open:5"])
    bounds.check(["closed:8"], ["charts", "photos"])
    with pytest.raises(InputError, match=r"closed:8: that load is not run; did you mean closed:4"):
        bounds.check(["closed:4"])
    with pytest.raises(
        InputError, match=r"charts: no item has this category; did you mean chart\?"
    ):
        bounds.check(["closed:8"], ["chart", "photo"])


@pytest.mark.parametrize(
    ("text", "canonical"),
    [
        ("closed:08", "closed:8"),
        ("open:5.0", "open:5"),
        ("open:x", "open:x"),
        ("trace:a", "trace:a"),
    ],
)
def test_canonical_names(text: str, canonical: str) -> None:
    assert canonical_load(text) == canonical


@pytest.mark.parametrize("text", ["TTFT", "ttft_ms", "ttft_p50", "ttft_ms_p50"])
def test_canonical_metrics(text: str) -> None:
    assert canonical_metric(text) == "ttft"
    assert canonical_metric("ttft_p95") == "ttft_p95"
    assert canonical_metric("throughput_rps") == "throughput"


def test_bounds_made_in_code_are_checked_too() -> None:
    given: dict[str, Any]
    for given in ({"max_quality_drop": -1}, {}, {"min_speedup": (Speedup("x", None, 1.0),)}):
        with pytest.raises(InputError):
            Bounds(**given)
