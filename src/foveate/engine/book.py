"""The scheduler's book: every request, the queue, who runs, and how a request leaves.

No torch. What runs next is the matter of engine/scheduler.py, where the rules are given.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from dataclasses import replace
from typing import Literal

from foveate.core.errors import FoveateError, InputError, StateError
from foveate.engine.ticket import MAX_PRIORITY, Chunk, Counts, State, Stats, Ticket

Due = Chunk | Literal["encode", "token"]


class Book:
    """Requests by id, in the order of their places; `max_running` of them may hold KV."""

    def __init__(self, max_running: int) -> None:
        self.max_running = max_running
        self._tickets: dict[str, Ticket] = {}
        self._queue: list[Ticket] = []  # waiting, encoded, preempted
        self._running: list[Ticket] = []  # prefilling, running: those that hold KV
        self._due: dict[str, Due] = {}  # handed out, not reported yet
        self._void: set[str] = set()  # cancelled while handed out: reports of this step are void
        self._parts: frozenset[str] = frozenset()  # what took memory in the last step
        self._limit: int | None = None  # what may take memory, since an out-of-memory
        self._calm = 0  # requests finished since the limit was set or grew
        self._hold = False  # nothing new starts until one that runs has ended
        self._arrivals = self._step_tokens = 0
        self._total = Counts()

    def add(
        self,
        id: str,
        *,
        visual_tokens: int,
        max_new_tokens: int,
        priority: int = 0,
        chunkable: bool = True,
    ) -> Ticket:
        """Queue a request. visual_tokens: what its media give to encode, 0 for text alone; priority:
        -10 to 10, each level goes ahead of the 100 requests that came before. chunkable: False where
        the prompt must be prefilled in one pass. InputError for a figure out of range or an id in use.
        """
        if not isinstance(id, str) or not id:
            raise InputError(f"id = {id!r}: give a text that is not empty")
        if id in self._tickets:
            raise InputError(f"id {id!r} is in use: give another, or forget it once it has ended")
        at_least(0, InputError, visual_tokens=visual_tokens)
        at_least(1, InputError, max_new_tokens=max_new_tokens)
        at_least(-MAX_PRIORITY, InputError, priority=priority)
        if priority > MAX_PRIORITY:
            raise InputError(f"priority = {priority} is out of range: at most {MAX_PRIORITY}")
        ticket = Ticket(id, visual_tokens, max_new_tokens, priority, self._arrivals, chunkable)
        self._arrivals += 1
        self._tickets[id] = ticket
        insort(self._queue, ticket, key=_place)
        return ticket

    def cancel(self, id: str) -> bool:
        """End a request at any time, also while its work is handed out: what is reported of it in this
        step is void. The caller frees its KV and features. False if it had ended already.
        """
        ticket = self.ticket(id)
        if ticket.ended:
            return False
        if id in self._due:
            self._void.add(id)
        self._end(ticket, State.CANCELLED)
        return True

    def failed(self, id: str, error: FoveateError) -> None:
        """End a request with an error; all others run on."""
        if not isinstance(error, FoveateError):
            raise InputError(
                f"failed({id!r}) takes an error of Foveate, not {type(error).__name__}"
            )
        ticket = self.ticket(id)
        if id in self._void:
            return
        if ticket.ended:
            raise StateError(f"request {id!r} is {ticket.state} already: it cannot fail")
        ticket.error = error
        self._end(ticket, State.FAILED)

    def forget(self, id: str) -> Ticket:
        """Drop the record of a request that has ended; its id is free again."""
        ticket = self.ticket(id)
        if not ticket.ended:
            raise StateError(f"request {id!r} is {ticket.state}: cancel it first")
        if id in self._void:
            raise StateError(
                f"request {id!r} is in the step that runs: forget it after the next step()"
            )
        return self._tickets.pop(id)

    def ticket(self, id: str) -> Ticket:
        """What is known of a request; InputError if it was never added or was forgotten."""
        try:
            return self._tickets[id]
        except KeyError:
            raise InputError(f"no request has the id {id!r}: add it first") from None

    @property
    def idle(self) -> bool:
        """No request waits or runs."""
        return not self._queue and not self._running

    @property
    def stats(self) -> Stats:
        """Figures of this moment; a copy."""
        return Stats(
            waiting=len(self._queue),
            running=len(self._running),
            kv_bytes=sum(t.kv_bytes for t in self._running),
            step_tokens=self._step_tokens,
            limit=self._limit,
            total=replace(self._total),
        )

    def _start(self, ticket: Ticket) -> None:
        _take(self._queue, ticket)
        ticket.state = State.PREFILLING
        insort(self._running, ticket, key=_place)

    def _preempt(self, ticket: Ticket) -> str:
        """Back to the queue without its KV; features and tokens stay."""
        _take(self._running, ticket)
        self._total.preemptions += 1
        self._total.dropped_tokens += ticket.cached_tokens
        ticket.state, ticket.cached_tokens, ticket.kv_bytes = State.PREEMPTED, 0, 0
        ticket.preemptions += 1
        insort(self._queue, ticket, key=_place)
        self._hold = True
        return ticket.id

    def _end(self, ticket: Ticket, state: State) -> None:
        if ticket.holds_kv:
            _take(self._running, ticket)
            self._hold = False
        else:
            _take(self._queue, ticket)
        self._due.pop(ticket.id, None)
        ticket.state, ticket.kv_bytes = state, 0
        setattr(self._total, state.value, getattr(self._total, state.value) + 1)
        if state is State.FINISHED and self._limit is not None:
            self._recover(self._limit)

    def _recover(self, limit: int) -> None:
        """A request more for each `limit` that finished; at the end, no limit.

        2 max_running is all that a step can hold: those with KV, and as many that are encoded.
        """
        self._calm += 1
        if self._calm >= limit:
            self._calm = 0
            self._limit = limit + 1 if limit + 1 < 2 * self.max_running else None


def at_least(least: int, kind: type[FoveateError], **figures: int) -> None:
    """Raise `kind` for a figure that is no int or below `least`."""
    for name, value in figures.items():
        if not isinstance(value, int) or isinstance(value, bool):
            raise kind(f"{name} = {value!r} is no whole number")
        if value < least:
            raise kind(f"{name} = {value} is out of range: at least {least}")


def _place(ticket: Ticket) -> tuple[int, int]:
    return ticket.place


def _take(line: list[Ticket], ticket: Ticket) -> None:
    del line[bisect_left(line, ticket.place, key=_place)]
