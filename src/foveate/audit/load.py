"""The load generator: one arm's turn in one block, closed or open, with warm-up and bounds.

In an open loop a request is due at its time in the schedule, whatever the server does, and its
latency counts from there (Row.intended_s). A server that stands still is then seen by every request
that was due meanwhile, and not, as in a closed loop, only by those that were under way: leaving the
others out is known as coordinated omission (G. Tene, "How NOT to Measure Latency").
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine, Iterator, Sequence, Set
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from foveate.audit.arrivals import Closed, Load, Open, Trace, parse_load, schedule
from foveate.audit.judge import Judge
from foveate.audit.meters import gained
from foveate.audit.records import Block, Item, Observed, Row
from foveate.audit.target import Target
from foveate.core.errors import InputError

__all__ = ["Closed", "Load", "Open", "Trace", "parse_load", "run_block"]

WARMUP_AT_ONCE = 8
"""Warm-up of an open load: so many requests in flight, because its own pace may take minutes."""

GRACE_S = 0.5
"""A target keeps its own time limit and knows best what came before it; one that does not is stopped
this much later.
"""

Key = tuple[str, str, int, int]


@dataclass
class _Turn:
    """What the requests of one turn share."""

    target: Target
    load: Load
    block: int
    place: int
    timeout_s: float
    on_row: Callable[[Row], None]
    judge: Judge | None
    requests: int = 0
    end_s: float = 0.0

    async def one(
        self,
        group: asyncio.TaskGroup,
        item: Item,
        sequence: int,
        intended_s: float,
        warmup: bool = False,
    ) -> None:
        """Ask, and hand over the row; a judge takes its time in a task of its own in `group`."""
        seen = await self._ask(item)
        row = Row(
            arm=self.target.arm,
            load=str(self.load),
            block=self.block,
            place=self.place,
            sequence=sequence,
            warmup=warmup,
            item=item.id,
            category=item.category,
            metric=item.metric,
            references=item.references,
            pictures=tuple(p.digest for p in item.pictures),
            intended_s=intended_s,
            observed=seen,
        )
        if not warmup:
            self.requests += 1
            self.end_s = max(self.end_s, seen.done_s)
        if self.judge is not None and seen.error is None and not warmup:
            # The place in a closed loop is free again: the server waits for no judge.
            group.create_task(self._judge_row(self.judge, item, row))
        else:
            self.on_row(row)

    async def _judge_row(self, judge: Judge, item: Item, row: Row) -> None:
        self.on_row(replace(row, judged=await judge(item, row.observed.text)))

    async def _ask(self, item: Item) -> Observed:
        loop = asyncio.get_running_loop()
        sent_s = loop.time()
        limit = asyncio.timeout(self.timeout_s + GRACE_S)
        try:
            async with limit:
                return await self.target.ask(item)
        except TimeoutError:
            if not limit.expired():
                raise
            detail = f"no end within {self.timeout_s:g} s"
            return Observed(sent_s, loop.time(), error="timeout", error_detail=detail)


async def run_block(
    target: Target,
    items: Sequence[Item],
    load: Load,
    *,
    block: int,
    place: int,
    seed: int,
    warmup_requests: int,
    timeout_s: float,
    time_limit_s: float | None,
    on_row: Callable[[Row], None],
    done: Set[Key] = frozenset(),
    judge: Judge | None = None,
) -> Block:
    """Ask every item once under the load; each finished request goes to `on_row`, in order of its
    end. Returns the turn's window and what the counters gained in it.

    The request for items[i] has sequence i. Those whose key is in `done` are not sent again; an open
    load then leaves out their arrivals and begins right before the first that is left. time_limit_s:
    no request begins later than that after the window's start; those under way are finished.

    Warm-up comes before the window, with the items that are asked last: rows with `warmup` and
    sequences -1, -2, …. It runs whenever something is left to ask, in a resumed turn too. Peaks of
    the target's gauges start anew after it.

    Cancelling it cancels the requests under way, which leave no row. An exception of `on_row`,
    `judge` or the target's own ends the turn and is raised. InputError for bad bounds.
    """
    if not timeout_s > 0 or warmup_requests < 0 or (time_limit_s is not None and time_limit_s <= 0):
        raise InputError(
            f"timeout_s = {timeout_s}, time_limit_s = {time_limit_s} need to be above 0, "
            f"warmup_requests = {warmup_requests} at least 0"
        )
    loop = asyncio.get_running_loop()
    turn = _Turn(target, load, block, place, timeout_s, on_row, judge)
    name = str(load)
    left = [i for i in range(len(items)) if (target.arm, name, block, i) not in done]
    target.reset()
    if left and warmup_requests:
        await _warm_up(turn, items, warmup_requests, done)
        target.reset()
    before, cpu_s, start_s = target.gauges(), time.process_time(), loop.time()
    turn.end_s = start_s
    stop_s = None if time_limit_s is None else start_s + time_limit_s
    if isinstance(load, Closed):
        asks = iter([(i, items[i]) for i in left])
        places = min(load.concurrency, len(left))
        await _together(*(partial(_worker, turn, asks, stop_s) for _ in range(places)))
    elif left:
        times = schedule(load, len(items), seed=seed, block=block)
        await _together(partial(_arrivals, turn, items, left, times, start_s, stop_s))
    return Block(
        arm=target.arm,
        load=name,
        block=block,
        place=place,
        start_s=start_s,
        end_s=turn.end_s,
        requests=turn.requests,
        gained=gained(before, target.gauges()),
        client_cpu_s=time.process_time() - cpu_s,
    )


async def _warm_up(turn: _Turn, items: Sequence[Item], count: int, done: Set[Key]) -> None:
    name = (turn.target.arm, str(turn.load), turn.block)
    first = min((s for *key, s in done if tuple(key) == name and s < 0), default=0) - 1
    asks = iter([(first - i, items[-1 - i % len(items)]) for i in range(count)])
    at_once = turn.load.concurrency if isinstance(turn.load, Closed) else WARMUP_AT_ONCE
    worker = partial(_worker, turn, asks, None, warmup=True)
    await _together(*[worker] * min(at_once, count))


async def _worker(
    turn: _Turn,
    asks: Iterator[tuple[int, Item]],
    stop_s: float | None,
    group: asyncio.TaskGroup,
    warmup: bool = False,
) -> None:
    """One of the closed loop's places: the next request begins when the last one has ended."""
    loop = asyncio.get_running_loop()
    for sequence, item in asks:
        now_s = loop.time()
        if stop_s is not None and now_s >= stop_s:
            return
        await turn.one(group, item, sequence, now_s, warmup)


async def _arrivals(
    turn: _Turn,
    items: Sequence[Item],
    left: Sequence[int],
    times: Sequence[float],
    start_s: float,
    stop_s: float | None,
    group: asyncio.TaskGroup,
) -> None:
    """The open loop: each request leaves at its time, however many are under way."""
    loop = asyncio.get_running_loop()
    # In a resumed turn the gap before the first that is left stays as it was.
    origin_s = start_s - (times[left[0] - 1] if left[0] else 0.0)
    due = [(i, origin_s + times[i]) for i in left]
    if stop_s is not None:
        due = [(i, at_s) for i, at_s in due if at_s < stop_s]
    waiting = len(due)
    all_left = loop.create_future()

    def leave(i: int, due_s: float) -> None:
        nonlocal waiting
        group.create_task(turn.one(group, items[i], i, due_s))
        waiting -= 1
        if not waiting:
            all_left.set_result(None)

    # Timers that send by themselves: a sleeping task would take two more rounds of the loop.
    timers = [loop.call_at(due_s, leave, i, due_s) for i, due_s in due]
    try:
        if timers:
            await all_left
    finally:
        for timer in timers:
            timer.cancel()


async def _together(*work: Callable[[asyncio.TaskGroup], Coroutine[Any, Any, None]]) -> None:
    """Wait for all and for what they add; the first failure cancels the others and is raised as
    itself.
    """
    try:
        async with asyncio.TaskGroup() as group:
            for each in work:
                group.create_task(each(group))
    except BaseExceptionGroup as failed:
        found: BaseException = failed
        while isinstance(found, BaseExceptionGroup):
            found = found.exceptions[0]
        raise found from None
