"""One turn of the load generator: which requests, when, how many at a time, and what ends it."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import numpy as np
import pytest

from foveate.audit.arrivals import Closed, Load, Open, Trace, schedule
from foveate.audit.load import GRACE_S, run_block
from foveate.audit.records import Block, Item, Observed, Row
from foveate.audit.virtual import run_precise, run_virtual
from foveate.core.errors import InputError
from tests.support.planted_target import PlantedTarget, planted_items

LOADS: list[Load] = [Closed(4), Open(20.0), Trace((0.0, 0.3, 0.4, 1.0), "t")]


async def turn(
    target: PlantedTarget, items: list[Item], load: Load, **options: Any
) -> tuple[Block, list[Row]]:
    rows: list[Row] = []
    given = {
        "block": 0,
        "place": 0,
        "seed": 5,
        "warmup_requests": 0,
        "timeout_s": 60.0,
        "time_limit_s": None,
        "on_row": rows.append,
    }
    block = await run_block(target, items, load, **(given | options))
    return block, rows


def run(target: PlantedTarget, count: int, load: Load, **options: Any) -> tuple[Block, list[Row]]:
    return run_virtual(turn(target, planted_items(count), load, **options))


@pytest.mark.parametrize("load", LOADS, ids=str)
def test_every_item_is_asked_once_and_its_row_says_what_it_was(load: Load) -> None:
    items = planted_items(23)
    target = PlantedTarget("small", wrong=0.3, errors=0.2)
    block, rows = run(target, 23, load, block=3, place=1)
    assert sorted(target.asked) == sorted(i.id for i in items)
    assert sorted(r.sequence for r in rows) == list(range(23))
    assert len({r.key for r in rows}) == 23
    for row in rows:
        item = items[row.sequence]
        assert (row.arm, row.load, row.block, row.place) == ("small", str(load), 3, 1)
        assert (row.item, row.category, row.metric) == (item.id, item.category, item.metric)
        assert row.references == item.references and not row.warmup
        assert row.pictures == (item.pictures[0].digest,)
        assert block.start_s <= row.intended_s <= row.observed.sent_s <= row.observed.done_s
        assert row.observed.done_s <= block.end_s
    ends = [r.observed.done_s for r in rows]
    assert ends == sorted(ends) and block.end_s == ends[-1]
    assert {r.observed.error for r in rows} == {None, "http"}
    assert (block.requests, block.arm, block.load, block.block) == (23, "small", str(load), 3)
    assert block.gained.cpu_s == pytest.approx(0.001 * sum(not r.observed.error for r in rows))
    assert block.gained.joules is None and block.client_cpu_s is not None


@pytest.mark.parametrize("load", LOADS, ids=str)
def test_a_turn_on_the_virtual_clock_is_the_same_every_time(load: Load) -> None:
    found = [run(PlantedTarget("a", ttft_s=lambda n: 0.05 + n % 7), 30, load) for _ in range(2)]
    assert found[0][1] == found[1][1]
    # The client's CPU is this machine's, everything else is on the virtual clock.
    assert (found[0][0].start_s, found[0][0].end_s) == (found[1][0].start_s, found[1][0].end_s)


def test_a_closed_loop_holds_its_concurrency_and_counts_from_the_free_place() -> None:
    target = PlantedTarget("a", ttft_s=1.0, tokens=1)
    block, rows = run(target, 12, Closed(4))
    assert target.most_at_once == 4
    assert block.end_s - block.start_s == pytest.approx(3.0)
    assert all(r.intended_s == r.observed.sent_s for r in rows)


def test_a_closed_loop_wider_than_the_block_asks_each_item_once() -> None:
    target = PlantedTarget("a")
    block, rows = run(target, 3, Closed(50))
    assert target.most_at_once == 3 and block.requests == len(rows) == 3


def test_an_open_loop_sends_at_its_times_however_slow_the_server() -> None:
    """The server has one place and falls behind; arrivals do not wait for it."""
    target = PlantedTarget("a", ttft_s=1.0, tokens=1, slots=1)
    block, rows = run(target, 50, Open(10.0), block=2)
    times = schedule(Open(10.0), 50, seed=5, block=2)
    sent = {r.sequence: r.observed.sent_s for r in rows}
    assert np.allclose([sent[i] for i in range(50)], np.add(times, block.start_s))
    assert target.most_at_once > 30
    assert max(r.observed.done_s - r.intended_s for r in rows) > 40


def test_all_arms_get_the_same_arrivals() -> None:
    fast, slow = PlantedTarget("baseline", ttft_s=0.01), PlantedTarget("small", ttft_s=3.0)
    offsets = []
    for target in (fast, slow):
        block, rows = run(target, 20, Open(5.0), block=4)
        offsets.append(sorted(r.intended_s - block.start_s for r in rows))
    assert np.allclose(*offsets)


def test_a_trace_is_played_as_recorded() -> None:
    block, rows = run(PlantedTarget("a", ttft_s=0.001, tokens=1), 4, LOADS[2])
    assert [r.intended_s - block.start_s for r in rows] == pytest.approx([0.0, 0.3, 0.4, 1.0])


@pytest.mark.parametrize("load", LOADS, ids=str)
def test_warm_up_comes_before_the_window_and_counts_nowhere(load: Load) -> None:
    target = PlantedTarget("a")
    block, rows = run(target, 10, load, warmup_requests=12)
    warm = [r for r in rows if r.warmup]
    assert len(warm) == 12 and block.requests == 10 == len(rows) - 12
    assert sorted(r.sequence for r in warm) == list(range(-12, 0))
    assert max(r.observed.done_s for r in warm) <= block.start_s
    # The items asked last come first, so that a cache helps the measured ones least.
    assert [r.item for r in sorted(warm, key=lambda r: -r.sequence)][:3] == ["q9", "q8", "q7"]
    assert target.resets == 2
    assert block.gained.cpu_s == pytest.approx(0.010)


@pytest.mark.parametrize("load", LOADS, ids=str)
def test_no_request_begins_after_the_time_limit_and_those_under_way_end(load: Load) -> None:
    target = PlantedTarget("a", ttft_s=0.5, tokens=1)
    block, rows = run(target, 400, load, time_limit_s=3.2, warmup_requests=3)
    real = [r for r in rows if not r.warmup]
    assert 0 < len(real) < 400 and block.requests == len(real)
    assert max(r.observed.sent_s for r in real) < block.start_s + 3.2 < block.end_s
    assert all(r.observed.error is None for r in real)
    assert sorted(r.sequence for r in real) == list(range(len(real)))


@pytest.mark.parametrize("load", LOADS, ids=str)
def test_finished_requests_are_not_repeated(load: Load) -> None:
    whole, before = run(PlantedTarget("a"), 20, load, block=1)
    kept = [r for r in before if r.sequence not in (7, 12) and r.sequence < 15]
    target = PlantedTarget("a")
    done = {r.key for r in kept} | {("other", str(load), 1, 18), ("a", str(load), 2, 19)}
    block, rows = run(target, 20, load, block=1, done=done, warmup_requests=2)
    real = [r for r in rows if not r.warmup]
    assert sorted(r.sequence for r in real) == [7, 12, 15, 16, 17, 18, 19]
    assert len([r for r in rows if r.warmup]) == 2 and block.requests == 7
    if not isinstance(load, Closed):
        # The arrivals that are left keep their distances, also the first one's to the one before.
        times = schedule(load, 20, seed=5, block=1)
        at = {r.sequence: r.intended_s - block.start_s for r in real}
        assert at[7] == pytest.approx(times[7] - times[6])
        assert at[19] - at[7] == pytest.approx(times[19] - times[7])


def test_warm_up_of_a_resumed_turn_has_new_sequences_and_a_finished_turn_has_none() -> None:
    _, first = run(PlantedTarget("a"), 6, Closed(2), warmup_requests=3)
    kept = {r.key for r in first if r.warmup or r.sequence < 4}
    _, again = run(PlantedTarget("a"), 6, Closed(2), warmup_requests=3, done=kept)
    assert sorted(r.sequence for r in again) == [-6, -5, -4, 4, 5]
    target = PlantedTarget("a")
    block, rows = run(
        target, 6, Closed(2), warmup_requests=3, done={("a", "closed:2", 0, i) for i in range(6)}
    )
    assert rows == [] == target.asked and block.requests == 0 and block.start_s == block.end_s


@pytest.mark.parametrize("load", LOADS, ids=str)
def test_a_target_without_a_time_limit_of_its_own_is_stopped(load: Load) -> None:
    target = PlantedTarget("a", hang=frozenset({3}))
    block, rows = run(target, 8, load, timeout_s=30.0)
    late = [r for r in rows if r.observed.error]
    assert [r.observed.error for r in late] == ["timeout"] and target.cancelled == 1
    seen = late[0].observed
    assert seen.done_s - seen.sent_s == pytest.approx(30.0 + GRACE_S)
    assert seen.error_detail == "no end within 30 s" and block.end_s == seen.done_s
    assert block.requests == 8 and sum(r.observed.error is None for r in rows) == 7


@pytest.mark.parametrize("load", LOADS, ids=str)
def test_cancelling_a_turn_cancels_what_is_under_way(load: Load) -> None:
    target = PlantedTarget("a", ttft_s=1.0)
    rows: list[Row] = []

    async def main() -> None:
        items = planted_items(90)
        work = asyncio.create_task(turn(target, items, load, on_row=rows.append))
        await asyncio.sleep(2.5)
        work.cancel()
        with pytest.raises(asyncio.CancelledError):
            await work
        await asyncio.sleep(100)

    run_virtual(main())
    assert target.cancelled > 0 and target.at_once == 0
    assert rows and len(rows) + target.cancelled == len(target.asked) < 90


class FullError(Exception):
    pass


@pytest.mark.parametrize("load", LOADS, ids=str)
def test_a_journal_that_cannot_write_ends_the_turn_with_its_own_error(load: Load) -> None:
    target = PlantedTarget("a", ttft_s=1.0)
    rows: list[Row] = []

    def full(row: Row) -> None:
        if len(rows) == 5:
            raise FullError("no space")
        rows.append(row)

    with pytest.raises(FullError, match="no space"):
        run(target, 40, load, on_row=full)
    assert len(rows) == 5 and target.at_once == 0


def test_a_judge_scores_answers_and_holds_up_no_place() -> None:
    async def judge(item: Item, text: str) -> float:
        await asyncio.sleep(1000)
        return 0.5 if text == item.references[0] else 0.25

    target = PlantedTarget("a", ttft_s=1.0, tokens=1, errors=0.3, wrong=0.4)
    block, rows = run(target, 30, Closed(1), judge=judge, warmup_requests=2)
    assert block.end_s - block.start_s == pytest.approx(30.0)
    real = [r for r in rows if not r.warmup]
    assert len(real) == 30 and all(r.judged is None for r in rows if r.warmup)
    for row in real:
        right = row.observed.text == row.references[0]
        expected = None if row.observed.error else 0.5 if right else 0.25
        assert row.judged == expected
    assert {r.judged for r in real} == {None, 0.5, 0.25}


def test_a_judge_that_fails_ends_the_turn() -> None:
    async def judge(item: Item, text: str) -> float:
        raise FullError("the judge is out of credit")

    target = PlantedTarget("a")
    with pytest.raises(FullError, match="out of credit"):
        run(target, 5, Closed(2), judge=judge)
    assert target.at_once == 0


@pytest.mark.parametrize(
    "options", [{"timeout_s": 0}, {"warmup_requests": -1}, {"time_limit_s": 0.0}], ids=str
)
def test_bad_bounds_are_refused_before_anything_is_asked(options: dict[str, Any]) -> None:
    target = PlantedTarget("a")
    with pytest.raises(InputError, match="need to be above 0"):
        run(target, 3, Closed(1), **options)
    assert target.asked == []


def test_a_turn_without_items_is_empty() -> None:
    block, rows = run(PlantedTarget("a"), 0, Open(3.0), warmup_requests=2)
    assert rows == [] and block.requests == 0


class Blocking(PlantedTarget):
    """Its client's own event loop stands still while the third request is being sent."""

    async def ask(self, item: Item) -> Observed:
        if len(self.asked) == 2:
            time.sleep(0.4)
        return await super().ask(item)


def test_a_client_that_is_late_itself_does_not_hide_it() -> None:
    target = Blocking("a", ttft_s=0.001, tokens=1)
    _, rows = run_precise(turn(target, planted_items(40), Open(100.0)))
    late = sorted(r.observed.sent_s - r.intended_s for r in rows)
    assert late[-2] > 0.2 and late[0] < 0.2
    assert all(r.observed.done_s - r.intended_s >= r.observed.sent_s - r.intended_s for r in rows)
