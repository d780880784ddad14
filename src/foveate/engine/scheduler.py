"""The scheduler of continuous batching: which requests to encode, prefill and decode next.

Pure bookkeeping: it imports no torch, holds no tensors, reads no clock and draws no random numbers,
so equal calls give equal steps. The executor asks `step()`, runs what it says and reports each piece
(`encoded`, `prefilled`, `emitted` or `failed`, and `kv_bytes`) before it asks again. One thread owns
it. engine/book.py holds the requests.

The rules, with their reasons:

- Iteration-level scheduling after Orca (Yu et al., OSDI 2022): the set of requests is chosen anew
  for each step. Decoding goes first and a prompt fills the rest of the step in chunks, after
  Sarathi-Serve (Agrawal et al., OSDI 2024): a long prompt delays no token for long.
- A prompt that may not be cut and does not fit beside the decodes takes their room, so that it does
  not wait for others to end. No two steps in a row do so: a running request gets a token at least in
  every second step. Such a step goes over the token budget only when the prompt alone does.
- A prefill that has begun comes before a new one: half a cache holds memory and answers nothing.
- New requests start in the order of the queue and none overtakes one that waits for room. The order
  is arrival with a head start of 100 arrivals a level of priority. It is fixed when a request
  comes in, so a finite number of others can ever be ahead of it: no request starves, and no
  clock is needed for aging.
- Encoding has a budget of its own, so that a burst of pictures does not stall decoding, and looks
  ahead by `max_running` requests at most, because encoder features wait in memory, too.
- KV is counted in bytes as reported: layers may keep different lengths, so tokens times a constant
  is only the forecast for what is not cached yet. When the forecast goes over the budget, the newest
  are preempted (their KV is dropped and recomputed later, as vLLM does: Kwon et al., SOSP 2023),
  never the oldest. Until one that runs has ended, nothing new starts: KV only grows meanwhile, and
  the preempted would be dropped again. A request alone may exceed the budget.
- After an out-of-memory (`shrink`) half of what ran may run. The limit then grows by one for each
  `limit` requests that finish. It counts encodes, too, so that in the end one piece runs alone: if
  that does not fit either, the request fails, and nothing is tried for ever.

Cost of a step: O(r + q) for r running and q = `max_running` queued requests that are looked at.
"""

from __future__ import annotations

from foveate.core.errors import CapacityError, InputError, SettingError, StateError
from foveate.engine.book import Book, at_least
from foveate.engine.ticket import Chunk, Counts, Shrunk, State, Stats, Step, Ticket

__all__ = ["Chunk", "Counts", "Scheduler", "Shrunk", "State", "Stats", "Step", "Ticket"]


class Scheduler(Book):
    """Says what to run next under a budget of tokens a step, requests, and KV bytes.

    token_budget_tokens: tokens through the language model a step, at least max_running, so that each
    running request finds room for its token. max_running: requests that hold KV. kv_budget_bytes:
    None counts but does not bound. encode_budget_tokens: visual tokens encoded a step, by default
    token_budget_tokens.
    Raises SettingError for a budget out of range, InputError for an id or a figure that cannot be,
    StateError for a report of work that was not handed out.
    """

    def __init__(
        self,
        token_budget_tokens: int,
        max_running: int,
        kv_budget_bytes: int | None = None,
        encode_budget_tokens: int | None = None,
    ) -> None:
        at_least(1, SettingError, token_budget_tokens=token_budget_tokens, max_running=max_running)
        if token_budget_tokens < max_running:
            raise SettingError(
                f"token_budget_tokens = {token_budget_tokens} has no room for {max_running} running "
                "requests: at least max_running, one token each"
            )
        if kv_budget_bytes is not None:
            at_least(1, SettingError, kv_budget_bytes=kv_budget_bytes)
        if encode_budget_tokens is None:
            encode_budget_tokens = token_budget_tokens
        at_least(1, SettingError, encode_budget_tokens=encode_budget_tokens)
        super().__init__(max_running)
        self.token_budget_tokens = token_budget_tokens
        self.kv_budget_bytes = kv_budget_bytes
        self.encode_budget_tokens = encode_budget_tokens
        self._paused = False  # the last step put decodes off for a whole prompt

    def step(self) -> Step:
        """What to run next; an empty step means that there is nothing. StateError while work of the
        last step is not reported.
        """
        if self._due:
            raise StateError(f"not reported yet: {', '.join(self._due)}; report each, or cancel it")
        self._void.clear()
        preempt = self._make_room()
        decode = [t for t in self._running if t.state is State.RUNNING]
        chunks, decode = self._fill(decode)
        encode = self._ahead()
        for t in decode:
            self._due[t.id] = "token"
        for chunk in chunks:
            self._due[chunk.id] = chunk
        for t in encode:
            self._due[t.id] = "encode"
        self._parts = frozenset(t.id for t in [*self._running, *encode])
        step = Step(preempt, tuple(t.id for t in decode), chunks, tuple(t.id for t in encode))
        if step:
            self._total.steps += 1
        self._step_tokens = step.tokens
        return step

    def _make_room(self) -> tuple[str, ...]:
        """Preempt the newest until the forecast fits; the oldest stays."""
        out = []
        while len(self._running) > 1 and self._over(self._claimed()):
            out.append(self._preempt(self._running[-1]))
        return tuple(out)

    def _fill(self, decode: list[Ticket]) -> tuple[tuple[Chunk, ...], list[Ticket]]:
        """Chunks for the room that decoding leaves, begun prefills first; and who decodes."""
        rest = self.token_budget_tokens - len(decode)
        chunks: list[Chunk] = []
        paused, self._paused = self._paused, False
        begun = [t for t in self._running if t.state is State.PREFILLING]
        claimed = self._claimed()
        for t in [*begun, *self._queue[: self.max_running]]:
            fresh = t.state is not State.PREFILLING
            if rest < 1 or (fresh and not self._admits(t, claimed)):
                break  # none behind it may take what it waits for
            wanted = t.chunk_end - t.cached_tokens
            if t.whole and wanted > rest:
                if chunks or (paused and decode):
                    break
                room = max(0, self.token_budget_tokens - wanted)
                self._paused, decode = len(decode) > room, decode[:room]
                rest = wanted
            stop = t.cached_tokens + min(wanted, rest)
            rest -= stop - t.cached_tokens
            if fresh:
                claimed += t.claim_bytes
                self._start(t)
            chunks.append(Chunk(t.id, t.cached_tokens, stop, stop == t.length_tokens))
        return tuple(chunks), decode

    def _admits(self, ticket: Ticket, claimed: int) -> bool:
        if ticket.state is State.WAITING:
            return False
        if not self._running:
            return True
        places = self.max_running if self._limit is None else min(self.max_running, self._limit)
        if self._hold or len(self._running) >= places:
            return False
        return not self._over(claimed + ticket.claim_bytes)

    def _ahead(self) -> list[Ticket]:
        """The next requests to encode, in the order of the queue."""
        chosen: list[Ticket] = []
        rest = self.encode_budget_tokens
        places = None if self._limit is None else self._limit - len(self._running)
        for t in self._queue[: self.max_running]:
            if t.state is not State.WAITING:
                continue
            if places is not None and len(chosen) >= places:
                break
            if t.visual_tokens > rest and rest < self.encode_budget_tokens:
                break  # more than the budget only for one request
            chosen.append(t)
            rest -= t.visual_tokens
        return chosen

    def encoded(self, id: str, prompt_tokens: int, kv_bytes_per_token: int = 0) -> None:
        """A request's media are encoded and its spliced prompt has prompt_tokens; one more token takes
        about kv_bytes_per_token, a forecast that `kv_bytes` corrects (needed with a KV budget).
        """
        if self._is_void(id, "encode"):
            return
        at_least(1, InputError, prompt_tokens=prompt_tokens)
        least = 0 if self.kv_budget_bytes is None else 1
        at_least(least, InputError, kv_bytes_per_token=kv_bytes_per_token)
        ticket = self._tickets[id]
        del self._due[id]
        ticket.prompt_tokens = prompt_tokens
        ticket.kv_bytes_per_token = kv_bytes_per_token
        ticket.state = State.ENCODED
        self._total.encode_tokens += ticket.visual_tokens

    def prefilled(self, id: str, stop: int) -> None:
        """A chunk is in the cache up to `stop`; where it emits, `emitted` is to follow."""
        if self._is_void(id, "prefill"):
            return
        ticket, chunk = self._tickets[id], self._due[id]
        if not isinstance(chunk, Chunk) or chunk.stop != stop:
            raise StateError(f"request {id!r}: prefilled to {stop}, but handed out was {chunk}")
        del self._due[id]
        self._total.prefill_tokens += stop - chunk.start
        self._cache(ticket, stop)
        if chunk.emits:
            self._due[id] = "token"

    def emitted(self, id: str, finished: bool, tokens: int = 1) -> bool:
        """A request got its next token, or several where a drafter's stand; True if it has ended,
        because it is `finished` or has max_new_tokens. Its KV is then to be freed.
        """
        if self._is_void(id, "token"):
            return True
        ticket = self._tickets[id]
        left = ticket.max_new_tokens - ticket.generated_tokens
        at_least(1, InputError, tokens=tokens)
        if tokens > left:
            raise InputError(
                f"request {id!r}: {tokens} tokens emitted, but max_new_tokens leaves {left}"
            )
        del self._due[id]
        if ticket.state is State.RUNNING:
            self._total.decode_tokens += 1
        ticket.state = State.RUNNING
        ticket.generated_tokens += tokens
        self._total.generated_tokens += tokens
        self._cache(ticket, ticket.length_tokens - 1)
        if finished or tokens == left:
            self._end(ticket, State.FINISHED)
        return ticket.ended

    def kv_bytes(self, id: str, bytes: int) -> None:
        """The exact size of a running request's KV, over all layers; it replaces the forecast."""
        ticket = self.ticket(id)
        at_least(0, InputError, bytes=bytes)
        if ticket.ended and id in self._parts:
            return  # freed in this step
        if not ticket.holds_kv:
            raise StateError(f"request {id!r} is {ticket.state}: it holds no KV")
        ticket.kv_bytes = bytes

    def shrink(self, freed: bool = False) -> Shrunk:
        """After an out-of-memory in the last step: half of what ran stays, the newest go back to the
        queue, and what was handed out and not reported is handed out again.

        The executor frees the KV of the preempted and puts caches of the others back to cached_tokens
        entries. What ran alone fails with CapacityError, unless the executor `freed` memory beside it:
        then it is tried again. StateError if nothing ran.
        """
        if not self._parts:
            raise StateError("nothing was handed out that could be made smaller")
        parts, self._parts = self._parts, frozenset()
        self._total.out_of_memory += 1
        self._due.clear()
        self._limit, self._calm = max(1, len(parts) // 2), 0
        if len(parts) == 1:
            ticket = self._tickets.get(next(iter(parts)))
            if ticket is None or ticket.ended or freed:
                return Shrunk((), None)
            doing = "its KV cache" if ticket.holds_kv else "its encoder"
            ticket.error = CapacityError(
                f"request {ticket.id!r} ran out of memory alone, in {doing} ({ticket.visual_tokens} visual "
                f"tokens encoded, a prompt of {ticket.prompt_tokens or 'unknown'} tokens, "
                f"{ticket.generated_tokens} generated): keep fewer visual tokens or give smaller pictures"
            )
            self._end(ticket, State.FAILED)
            return Shrunk((), ticket.id)
        out = [self._preempt(t) for t in reversed(self._running[self._limit :])]
        return Shrunk(tuple(out), None)

    def recall(self) -> None:
        """After a step that broke off: what was handed out and not reported is handed out again. The
        executor puts caches back to cached_tokens entries.
        """
        self._due.clear()

    def _is_void(self, id: str, what: str) -> bool:
        """Whether a report comes after a cancel; StateError if no such work was handed out."""
        ticket = self.ticket(id)
        if id in self._void:
            return True
        due = self._due.get(id)
        if ("prefill" if isinstance(due, Chunk) else due) != what:
            raise StateError(
                f"request {id!r} is {ticket.state} and has no {what} to report; handed out: {due}"
            )
        return False

    def _cache(self, ticket: Ticket, tokens: int) -> None:
        """Until the exact size is reported, each token counts as forecast."""
        ticket.kv_bytes += (tokens - ticket.cached_tokens) * ticket.kv_bytes_per_token
        ticket.cached_tokens = tokens

    def _claimed(self) -> int:
        return sum(t.claim_bytes for t in self._running)

    def _over(self, bytes: int) -> bool:
        return self.kv_budget_bytes is not None and bytes > self.kv_budget_bytes
