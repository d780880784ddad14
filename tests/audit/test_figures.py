"""Figures of latency, rates and counters from rows by hand; order, JSON and what is missing."""

from __future__ import annotations

import json
import math
import random
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from foveate.audit.figures import figures
from foveate.audit.figures_load import latencies_ms
from foveate.audit.figures_speed import SPEED_METRICS
from foveate.core.errors import InputError
from tests.audit.planted_rows import block, row

pytest.importorskip("scipy")


def at(rows: list[Any], blocks: list[Any] | None = None, **more: Any) -> dict[str, Any]:
    """The figures of the only load of the baseline."""
    found = figures(rows, blocks or [], seed=0, **more)
    (load,) = found["arms"]["baseline"]["loads"].values()
    return load


def test_latencies_of_a_closed_loop_count_from_departure() -> None:
    found = at([row(sent_s=10.0, intended_s=9.0, first_s=0.1, e2e_s=0.5)])
    assert found["ttft_ms"]["p50"]["estimate"] == pytest.approx(100)
    assert found["e2e_ms"]["p50"]["estimate"] == pytest.approx(500)


@pytest.mark.parametrize("load", ["open:5", "trace:day.jsonl"])
def test_latencies_of_an_open_loop_count_from_the_intended_arrival(load: str) -> None:
    found = at([row(load=load, sent_s=10.0, intended_s=8.0, first_s=0.1, e2e_s=0.5)])
    assert found["ttft_ms"]["p50"]["estimate"] == pytest.approx(2100)
    assert found["e2e_ms"]["p50"]["estimate"] == pytest.approx(2500)


def test_time_per_token_is_after_the_first_and_up_to_the_end() -> None:
    found = at([row(first_s=0.1, chunks=(0.1, 0.3, 0.5), e2e_s=0.9, tokens=5)])
    assert found["tpot_ms"]["p50"]["estimate"] == pytest.approx(200)
    assert found["itl_ms"]["n"] == 2
    assert found["itl_ms"]["p50"]["estimate"] == pytest.approx(200)


def test_the_stop_token_comes_with_the_end_and_one_piece_says_nothing_of_many_tokens() -> None:
    found = at([row(first_s=0.1, chunks=(0.1,), e2e_s=0.15, tokens=2)])
    assert found["tpot_ms"]["p50"]["estimate"] == pytest.approx(50)
    assert at([row(first_s=0.1, chunks=(0.1,), e2e_s=0.15, tokens=9)])["tpot_ms"] is None


def test_one_token_has_no_time_per_token_and_no_count_gives_none() -> None:
    assert at([row(tokens=1)])["tpot_ms"] is None
    assert at([row(tokens=None)])["tpot_ms"] is None
    assert at([row(first_s=None, chunks=())])["ttft_ms"] is None


def test_failures_are_counted_by_kind_and_have_no_latency() -> None:
    rows = [row(sequence=i) for i in range(6)]
    rows += [row(sequence=6, error="timeout", e2e_s=60.0), row(sequence=7, error="http")]
    rows += [row(sequence=8, error="http")]
    found = at(rows)
    assert found["errors"] == {"http": 2, "timeout": 1}
    assert found["requests"] == 9 and found["e2e_ms"]["n"] == 6
    assert found["error_rate"]["estimate"] == pytest.approx(1 / 3)
    assert found["e2e_ms"]["p99"]["estimate"] == pytest.approx(300)


def test_warm_up_counts_nowhere() -> None:
    rows = [row(), row(sequence=-1, warmup=True, error="http", item="other")]
    found = figures(rows, [], seed=0)["arms"]["baseline"]
    assert found["loads"]["closed:2"]["requests"] == 1 and found["quality"]["all"]["n"] == 1


def test_rates_and_counters_of_the_window() -> None:
    rows = [row(sequence=i, visual_tokens=64 + i, tokens=3) for i in range(3)]
    rows.append(row(sequence=3, error="http"))
    turn = block(length_s=2.0, requests=4, cpu_s=1.0, joules=8.0, rss_peak_bytes=10)
    found = at(rows, [turn])
    assert found["throughput_rps"] == pytest.approx(1.5)  # failures are no throughput
    assert found["tokens_per_s"] == pytest.approx(4.5)
    assert found["cpu_s_per_request"] == pytest.approx(0.25)
    assert found["joules_per_request"] == pytest.approx(2.0)
    assert found["rss_peak_bytes"] == 10 and found["visual_tokens"] == pytest.approx(65)


def test_what_was_not_measured_is_none_and_never_zero() -> None:
    missing = ("throughput_rps", "tokens_per_s", "cpu_s_per_request", "joules_per_request",
               "device_s_per_request", "rss_peak_bytes", "device_peak_bytes", "kv_peak_bytes",
               "visual_tokens", "prompt_tokens", "kv_bytes")  # fmt: skip
    found = at([row(tokens=None)])
    assert {name: found[name] for name in missing} == dict.fromkeys(missing)
    # One of two turns without the counter: the total is not known.
    rows = [row(), row(block=1)]
    turns = [block(cpu_s=1.0, rss_peak_bytes=5), block(number=1, start_s=20.0)]
    assert (
        at(rows, turns)["cpu_s_per_request"] is None and at(rows, turns)["rss_peak_bytes"] is None
    )
    # A counter that read zero was measured.
    assert at([row()], [block(cpu_s=0.0)])["cpu_s_per_request"] == 0.0


def test_tokens_that_one_answer_lacks_make_the_rate_unknown() -> None:
    found = at([row(tokens=5), row(sequence=1, tokens=None)], [block()])
    assert found["tokens_per_s"] is None and found["throughput_rps"] == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("slo", "good"),
    [
        ({"e2e_ms": 350.0}, 2),
        ({"e2e_ms": 250.0}, 0),
        ({"ttft_ms": 150.0}, 2),
        ({"ttft_ms": 150.0, "e2e_ms": 350.0, "tpot_ms": 100.0}, 1),  # one answer is one token long
        ({"tpot_ms": 99.0}, 1),
    ],
)
def test_goodput_counts_what_meets_the_slo(slo: dict[str, float], good: int) -> None:
    rows = [
        row(tokens=1),
        row(sequence=1, tokens=2),  # 200 ms a token
        row(sequence=2, error="http", e2e_s=0.01),
    ]
    assert at(rows, [block(length_s=2.0)], slo=slo)["goodput_rps"] == pytest.approx(good / 2)


def test_goodput_is_unknown_where_the_slo_asks_for_what_was_not_measured() -> None:
    rows = [row(), row(sequence=1, first_s=None, chunks=())]
    assert at(rows, [block()], slo={"ttft_ms": 500.0})["goodput_rps"] is None
    # But a request that misses another bound is not good, whatever its first token did.
    assert at(rows, [block()], slo={"ttft_ms": 500.0, "e2e_ms": 1.0})["goodput_rps"] == 0.0
    assert "goodput_rps" not in at(rows, [block()])


def two_arms(
    blocks: int = 4, requests: int = 3, factor: float = 2.0
) -> tuple[list[Any], list[Any]]:
    rows, turns = [], []
    for b in range(blocks):
        drift = 1.0 + b
        for arm, speed in (("baseline", factor), ("fast", 1.0)):
            turns.append(
                block(arm, number=b, start_s=100.0 * b, length_s=speed * drift, cpu_s=speed)
            )
            rows += [
                row(arm, f"q{b}-{i}", block=b, sequence=i, first_s=0.01 * speed * drift,
                    e2e_s=0.1 * speed * drift * (1 + i))
                for i in range(requests)
            ]  # fmt: skip
    return rows, turns


def test_ratios_pair_blocks_so_that_drift_cancels() -> None:
    rows, turns = two_arms()
    speed = figures(rows, turns, seed=0)["pairs"]["fast"]["speed"]["closed:2"]
    for metric in ("ttft", "e2e", "tpot", "throughput", "cpu", "tokens_per_s"):
        assert speed[metric]["ratio"]["estimate"] == pytest.approx(2.0), metric
        assert speed[metric]["n_blocks"] == 4 and speed[metric]["p"] < 1e-6
        assert speed[metric]["log_sd"] == pytest.approx(0.0, abs=1e-12)
    assert set(speed) <= set(SPEED_METRICS)
    assert "energy" not in speed and "goodput" not in speed
    assert "e2e_p95" not in speed  # 3 requests a block have no p95


def test_blocks_are_paired_by_number_not_by_order() -> None:
    rows, turns = two_arms()
    gone = [r for r in rows if not (r.arm == "fast" and r.block == 0)]
    speed = figures(gone, turns, seed=0)["pairs"]["fast"]["speed"]["closed:2"]
    assert speed["e2e"]["n_blocks"] == 3
    assert speed["e2e"]["ratio"]["estimate"] == pytest.approx(2.0)


def test_a_block_without_throughput_counts_as_a_collapse() -> None:
    rows, turns = two_arms()
    dead = [row("fast", r.item, block=r.block, sequence=r.sequence, error="http")
            if r.arm == "fast" and r.block == 0 else r for r in rows]  # fmt: skip
    speed = figures(dead, turns, seed=0)["pairs"]["fast"]["speed"]["closed:2"]
    assert speed["throughput"]["n_blocks"] == 4
    # 3.5 of 2 s against 0.5 of 1 s in that block, equal counts in the others.
    expected = math.exp((math.log(0.5 / 3.5 * 2) + 3 * math.log(2)) / 4)
    assert speed["throughput"]["ratio"]["estimate"] == pytest.approx(expected)
    assert speed["e2e"]["n_blocks"] == 3  # no answer, no latency


def test_p95_needs_twenty_requests_asked_however_many_failed() -> None:
    rows, turns = two_arms(blocks=2, requests=20)
    rows = [r if r.sequence else row(r.arm, r.item, block=r.block, error="http") for r in rows]
    speed = figures(rows, turns, seed=0)["pairs"]["fast"]["speed"]["closed:2"]
    assert speed["e2e_p95"]["n_blocks"] == 2 and "e2e_p99" not in speed


def test_the_difference_of_error_rates() -> None:
    rows = [row(sequence=i) for i in range(10)]
    rows += [row("fast", sequence=i, error="http" if i < 3 else None) for i in range(10)]
    found = figures(rows, [], seed=0)["pairs"]["fast"]["errors"]["closed:2"]
    assert found["estimate"] == pytest.approx(0.3) and found["low"] < 0.3 < found["high"]


def test_failures_in_bursts_widen_the_interval_of_their_rate() -> None:
    def rate(bursts: bool) -> dict[str, Any]:
        failed = (lambda b, i: b in (2, 6)) if bursts else (lambda b, i: i % 4 == b % 4)
        return at([row(item=f"{b}-{i}", block=b, sequence=i, error="http" if failed(b, i) else None)
                   for b in range(8) for i in range(20)])  # fmt: skip

    even, bursts = rate(False), rate(True)
    assert even["error_rate"]["estimate"] == bursts["error_rate"]["estimate"] == 0.25
    assert even["error_design_effect"] == 1.0 and bursts["error_design_effect"] > 10
    assert bursts["error_rate"]["high"] > even["error_rate"]["high"] + 0.15


def test_a_request_that_is_there_twice_is_refused() -> None:
    with pytest.raises(InputError, match=r"request 4 of arm 'baseline' under closed:2, block 0"):
        figures([row(sequence=4), row(sequence=4)], [], seed=0)


def test_no_rows_give_no_figures() -> None:
    assert figures([], [], seed=0) == {"confidence": 0.95, "arms": {}, "pairs": {}}
    only = figures([row("fast")], [], seed=0)
    assert only["pairs"]["fast"] == {"speed": {}, "quality": {}, "errors": {}}


@given(st.randoms(use_true_random=False), st.integers(1, 3))
def test_figures_are_json_and_do_not_depend_on_order(rng: random.Random, blocks: int) -> None:
    rows, turns = two_arms(blocks, 4)
    rows = [row(r.arm, r.item, block=r.block, sequence=r.sequence, error="timeout")
            if rng.random() < 0.3 else r for r in rows]  # fmt: skip
    found = figures(rows, turns, seed=3, slo={"e2e_ms": 400.0})
    text = json.dumps(found, allow_nan=False)
    rng.shuffle(rows)
    rng.shuffle(turns)
    assert json.dumps(figures(rows, turns, seed=3, slo={"e2e_ms": 400.0}), allow_nan=False) == text
    assert json.loads(text) == found


@given(st.lists(st.lists(st.floats(0, 9), max_size=4), max_size=6))
def test_gaps_are_those_within_a_request(pieces: list[list[float]]) -> None:
    rows = [row(sequence=i, chunks=sorted(c), e2e_s=9.0) for i, c in enumerate(pieces)]
    expected = sorted(b - a for c in map(sorted, pieces) for a, b in pairwise(c))
    gaps = latencies_ms(rows)["itl"]
    assert sorted(gaps / 1e3) == pytest.approx(expected, abs=1e-9)
