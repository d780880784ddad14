"""Event loops with another clock: a virtual one for tests, and a precise one for measurements.

On `VirtualLoop` hours of load run in seconds: whenever nothing is ready, time jumps to the next
timer. The same program then sees the same times to the last bit, on any machine. On `precise_loop`
a timer fires within tens of microseconds; the default loop of Linux waits in whole milliseconds and
rounds up, which an open loop would report as latency of the server.
"""

from __future__ import annotations

import asyncio
import select
import selectors
import time
from collections.abc import Coroutine
from typing import Any, TypeVar

from foveate.core.errors import StateError

T = TypeVar("T")

POLL_S = 150e-6
"""A precise loop polls so long before a timer: about what a sleeping process takes to come back."""

Events = list[tuple[selectors.SelectorKey, int]]


class _Jumping(selectors.DefaultSelector):
    """Polls what is ready; where the loop would sleep, it moves the clock instead."""

    def __init__(self, patience_s: float) -> None:
        super().__init__()
        self.now_s = 0.0
        self.patience_s = patience_s

    def select(self, timeout: float | None = None) -> Events:
        ready = super().select(0)
        if ready or (timeout is not None and timeout <= 0):
            return ready
        if timeout is not None:
            self.now_s += timeout
            return ready
        # No timer at all: only a thread or a socket can wake the loop, and those take real time.
        ready = super().select(self.patience_s)
        if not ready:
            raise StateError(
                "the virtual clock has no timer left and nothing is ready: the program waits for "
                "something that never comes"
            )
        return ready


class VirtualLoop(asyncio.SelectorEventLoop):
    """An event loop whose `time()` starts at 0 and jumps to the next timer. For work that waits by
    the loop alone: sockets and threads take real time, of which this clock knows nothing.

    patience_s: real seconds to wait for a thread or a socket when no timer is left; StateError then.
    """

    def __init__(self, patience_s: float = 10.0) -> None:
        # Before the base class, which asks for the time.
        self._jumping = _Jumping(patience_s)
        super().__init__(self._jumping)

    def time(self) -> float:
        """Virtual seconds since the loop was made."""
        return self._jumping.now_s


def run_virtual(main: Coroutine[Any, Any, T]) -> T:
    """`asyncio.run` on a virtual clock."""
    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        return runner.run(main)


def precise_loop() -> asyncio.AbstractEventLoop:
    """A new event loop with timers as fine as the system's; the default loop where there is no epoll
    (kqueue counts in microseconds anyway).
    """
    if not hasattr(selectors, "EpollSelector"):
        return asyncio.new_event_loop()

    class Fine(selectors.EpollSelector):
        """epoll counts in milliseconds and Python rounds up; select(2) on its descriptor does not."""

        def select(self, timeout: float | None = None) -> Events:
            # select(2) takes descriptors below 1024 only.
            if timeout is None or timeout <= 0 or self.fileno() >= 1024:
                return super().select(timeout)
            end_s = time.monotonic() + timeout
            if timeout > POLL_S and select.select((self.fileno(),), (), (), timeout - POLL_S)[0]:
                return super().select(0)
            while True:
                ready = super().select(0)
                if ready or time.monotonic() >= end_s:
                    return ready

    return asyncio.SelectorEventLoop(Fine())


def run_precise(main: Coroutine[Any, Any, T]) -> T:
    """`asyncio.run` on a precise loop: what an audit runs on."""
    with asyncio.Runner(loop_factory=precise_loop) as runner:
        return runner.run(main)
