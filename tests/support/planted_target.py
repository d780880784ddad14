"""A planted target in this process, for the virtual clock: answers, waits and failures are known."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from foveate.audit.records import Gauges, Item, Observed, Picture
from tests.support.planted import picture_bytes, planted_answer, question, right_answer, share


def planted_items(n: int) -> list[Item]:
    """The items of `workload_file`, without the file."""
    out = []
    for number in range(n):
        text, category = question(number)
        picture = Picture(picture_bytes(number), "image/png")
        right = (right_answer(text),)
        out.append(Item(f"q{number}", (picture,), text, right, "exact", category, 16))
    return out


@dataclass
class PlantedTarget:
    """Waits `ttft_s`, then `tokens - 1` times `tpot_s`; both may be functions of the request's
    number (from 0, in order of arrival) for a spread. errors: share of failed requests; wrong: of
    wrong answers. slots: so many at a time, the others wait. stalls: (from, until) in seconds on the
    loop's clock, in which nothing moves. hang: numbers of requests that never end.
    """

    arm: str
    ttft_s: float | Callable[[int], float] = 0.1
    tpot_s: float | Callable[[int], float] = 0.01
    tokens: int = 8
    wrong: float = 0.0
    errors: float = 0.0
    slots: int | None = None
    stalls: tuple[tuple[float, float], ...] = ()
    hang: frozenset[int] = frozenset()
    cpu_s: float = 0.0
    asked: list[str] = field(default_factory=list)
    at_once: int = 0
    most_at_once: int = 0
    resets: int = 0
    cancelled: int = 0

    def __post_init__(self) -> None:
        self._slots: asyncio.Semaphore | None = None

    async def open(self) -> None:
        """Nothing to open."""

    async def close(self) -> None:
        """Nothing to close."""

    def describe(self) -> Mapping[str, Any]:
        return {"kind": "planted"}

    def reset(self) -> None:
        self.resets += 1

    def gauges(self) -> Gauges:
        return Gauges(cpu_s=self.cpu_s)

    async def ask(self, item: Item) -> Observed:
        number = len(self.asked)
        self.asked.append(item.id)
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        try:
            return await self._served(item, number)
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        finally:
            self.at_once -= 1

    async def _served(self, item: Item, number: int) -> Observed:
        loop = asyncio.get_running_loop()
        sent_s = loop.time()
        if self.slots and self._slots is None:
            self._slots = asyncio.Semaphore(self.slots)
        if self._slots is not None:
            async with self._slots:
                return await self._answer(item, number, sent_s)
        return await self._answer(item, number, sent_s)

    async def _answer(self, item: Item, number: int, sent_s: float) -> Observed:
        loop = asyncio.get_running_loop()
        if number in self.hang:
            await asyncio.Event().wait()
        await self._work(_of(self.ttft_s, number))
        if share(f"error {self.arm}", f"{item.id}|{number}") < self.errors:
            return Observed(sent_s, loop.time(), error="http", error_detail="status 500: planted")
        chunk_s = [loop.time()]
        for _ in range(self.tokens - 1):
            await self._work(_of(self.tpot_s, number))
            chunk_s.append(loop.time())
        self.cpu_s += 0.001
        return Observed(
            sent_s,
            loop.time(),
            chunk_s[0],
            tuple(chunk_s),
            planted_answer(item.question, self.wrong),
            model="planted",
            finish="stop",
            prompt_tokens=100,
            completion_tokens=self.tokens,
            visual_tokens=64,
        )

    async def _work(self, seconds: float) -> None:
        """Sleep, and longer by what of a stall falls into it."""
        loop = asyncio.get_running_loop()
        end_s = loop.time() + seconds
        for begin_s, until_s in self.stalls:
            if loop.time() < until_s and end_s > begin_s:
                end_s += until_s - max(begin_s, loop.time())
        await asyncio.sleep(end_s - loop.time())


def _of(value: float | Callable[[int], float], number: int) -> float:
    return value(number) if callable(value) else value
