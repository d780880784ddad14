"""The words of the scheduler: what it knows of a request, what it hands out, what it counts.

No torch and no tensors: token counts, bytes and states only. engine/scheduler.py holds the rules.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import NamedTuple

from foveate.core.errors import FoveateError

HEAD_START_REQUESTS = 100
MAX_PRIORITY = 10


class State(StrEnum):
    """waiting -> encoded -> prefilling -> running -> finished; preempted goes back to the queue."""

    WAITING = "waiting"
    ENCODED = "encoded"
    PREFILLING = "prefilling"
    RUNNING = "running"
    PREEMPTED = "preempted"
    FINISHED = "finished"
    CANCELLED = "cancelled"
    FAILED = "failed"


ENDED = frozenset({State.FINISHED, State.CANCELLED, State.FAILED})


@dataclass(slots=True, eq=False)
class Ticket:
    """One request as the scheduler sees it; only the scheduler writes to it.

    prompt_tokens: spliced length, None until encoded. cached_tokens: how many tokens of prompt and
    answer are in the KV cache. kv_bytes: what the cache takes, as last reported or, since then,
    estimated. chunkable: False where a method acts inside the prefill and must see all of the
    prompt in one pass.
    """

    id: str
    visual_tokens: int
    max_new_tokens: int
    priority: int
    arrival: int
    chunkable: bool = True
    state: State = State.WAITING
    prompt_tokens: int | None = None
    generated_tokens: int = 0
    cached_tokens: int = 0
    kv_bytes: int = 0
    kv_bytes_per_token: int = 0
    preemptions: int = 0
    error: FoveateError | None = None

    @property
    def place(self) -> tuple[int, int]:
        """Order in the queue, smallest first: arrival, moved ahead by the head start of priority.

        It never changes, so that only finitely many requests can ever come before this one.
        """
        return (self.arrival - self.priority * HEAD_START_REQUESTS, self.arrival)

    @property
    def ended(self) -> bool:
        return self.state in ENDED

    @property
    def holds_kv(self) -> bool:
        return self.state in (State.PREFILLING, State.RUNNING)

    @property
    def length_tokens(self) -> int:
        """Prompt and answer so far; 0 before the prompt's length is known."""
        return (self.prompt_tokens or 0) + self.generated_tokens

    @property
    def pending_tokens(self) -> int:
        """Tokens that are not cached yet: 1 for a running request, its newest token."""
        return self.length_tokens - self.cached_tokens

    @property
    def claim_bytes(self) -> int:
        """KV bytes once all pending tokens are cached."""
        return self.kv_bytes + self.pending_tokens * self.kv_bytes_per_token

    @property
    def chunk_end(self) -> int:
        """Where the next chunk must stop at the latest: the prompt's end, then the answer's.

        A prompt that is computed anew after a preemption is passed alone, without the answer's
        tokens, because methods that act on the whole prompt must choose as they did before.
        """
        prompt = self.prompt_tokens or 0
        return prompt if self.cached_tokens < prompt else self.length_tokens

    @property
    def whole(self) -> bool:
        """The next chunk may not be cut."""
        return not self.chunkable and self.cached_tokens < (self.prompt_tokens or 0)


class Chunk(NamedTuple):
    """Tokens [start, stop) of a request's prompt and answer to prefill; `emits`: the logits of the
    last one give the next token of the answer, to be reported by `emitted`.
    """

    id: str
    start: int
    stop: int
    emits: bool


@dataclass(frozen=True, slots=True)
class Step:
    """What to run next, in this order: drop the caches of `preempt`, then decode, prefill, encode.

    preempt: ids whose KV is to be freed; their encoder features and tokens stay. decode: ids that
    get their next token. prefill: chunks. encode: ids whose media are to be encoded.
    """

    preempt: tuple[str, ...] = ()
    decode: tuple[str, ...] = ()
    prefill: tuple[Chunk, ...] = ()
    encode: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.preempt or self.decode or self.prefill or self.encode)

    @property
    def tokens(self) -> int:
        """Tokens that pass through the language model."""
        return len(self.decode) + sum(c.stop - c.start for c in self.prefill)


class Shrunk(NamedTuple):
    """After an out-of-memory: ids whose KV is to be freed, and the id that failed, if any."""

    preempt: tuple[str, ...]
    failed: str | None


@dataclass(slots=True)
class Counts:
    """Since the start. decode_tokens: passes of one token; generated_tokens: tokens of answers, more
    than decoded where a drafter's stand; dropped_tokens: cached ones that a preemption threw away.
    """

    steps: int = 0
    decode_tokens: int = 0
    prefill_tokens: int = 0
    encode_tokens: int = 0
    generated_tokens: int = 0
    dropped_tokens: int = 0
    preemptions: int = 0
    out_of_memory: int = 0
    finished: int = 0
    cancelled: int = 0
    failed: int = 0


@dataclass(frozen=True, slots=True)
class Stats:
    """Requests in the queue and with KV, bytes of KV, tokens of the last step; limit: how many may
    run since an out-of-memory (None: max_running); `total`: counts since the start.
    """

    waiting: int
    running: int
    kv_bytes: int
    step_tokens: int
    limit: int | None
    total: Counts
