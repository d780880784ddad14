"""The virtual clock jumps to the next timer and no further; the precise loop waits as it should."""

from __future__ import annotations

import asyncio
import selectors
import time

import pytest

from foveate.audit.virtual import VirtualLoop, run_precise, run_virtual
from foveate.core.errors import StateError


async def _race(log: list[tuple[str, float]]) -> float:
    loop = asyncio.get_running_loop()

    async def runner(name: str, step_s: float, steps: int) -> None:
        for _ in range(steps):
            await asyncio.sleep(step_s)
            log.append((name, loop.time()))

    await asyncio.gather(runner("hour", 3600.0, 3), runner("odd", 1234.5, 7))
    return loop.time()


def test_hours_pass_in_order_and_every_run_is_the_same() -> None:
    start = time.monotonic()
    first: list[tuple[str, float]] = []
    second: list[tuple[str, float]] = []
    assert run_virtual(_race(first)) == run_virtual(_race(second)) == 3 * 3600.0
    assert first == second
    assert [t for _, t in first] == sorted(t for _, t in first)
    assert first[:3] == [("odd", 1234.5), ("odd", 2469.0), ("hour", 3600.0)]
    assert time.monotonic() - start < 600


def test_time_limits_fire_on_the_virtual_clock() -> None:
    async def main() -> float:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(900):
                await asyncio.Event().wait()
        return asyncio.get_running_loop().time()

    assert run_virtual(main()) == 900.0


def test_a_thread_is_waited_for() -> None:
    async def main() -> tuple[int, float]:
        found = await asyncio.to_thread(lambda: time.sleep(0.05) or 5)
        return found, asyncio.get_running_loop().time()

    assert run_virtual(main()) == (5, 0.0)


def test_a_program_that_waits_for_nothing_is_told_so() -> None:
    async def main() -> None:
        await asyncio.Event().wait()

    loop = VirtualLoop(patience_s=0.01)
    task = loop.create_task(main())
    try:
        with pytest.raises(StateError, match="never comes"):
            loop.run_until_complete(task)
    finally:
        task.cancel()
        loop.run_until_complete(asyncio.gather(task, return_exceptions=True))
        loop.close()


@pytest.mark.skipif(not hasattr(selectors, "EpollSelector"), reason="no epoll")
def test_the_precise_loop_never_wakes_early_and_beats_whole_milliseconds() -> None:
    async def main() -> list[float]:
        loop, late = asyncio.get_running_loop(), []
        for _ in range(200):
            due_s = loop.time() + 0.0013
            await asyncio.sleep(0.0013)
            late.append(loop.time() - due_s)
        return sorted(late)

    precise, usual = run_precise(main()), asyncio.run(main())
    # The loop may fire a timer one tick of the clock early, by asyncio's own rule.
    assert precise[0] > -1e-6
    # Epoll alone rounds 1.3 ms up to 2 ms every time; a tenth of the timers, for a busy machine.
    assert precise[20] < usual[20]


def test_sockets_work_on_the_precise_loop() -> None:
    async def main() -> bytes:
        async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            writer.write(await reader.readline())
            await writer.drain()
            writer.close()

        server = await asyncio.start_server(echo, "127.0.0.1", 0)
        async with server:
            port = server.sockets[0].getsockname()[1]
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(b"a line\n")
            found = await asyncio.wait_for(reader.readline(), 10)
            writer.close()
            return found

    assert run_precise(main()) == b"a line\n"
