"""An executor without a model: it keeps the caches the scheduler speaks of as lists, and refuses
work that a model could not do.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from foveate.core.errors import FoveateError, MediaError
from foveate.engine.scheduler import Chunk, Scheduler, Shrunk, State, Step


class ToyMemoryError(Exception):
    """What a device raises in the middle of a step."""


@dataclass
class Job:
    """A request's truth: sizes nobody but the executor knows, and what became of it."""

    prompt_tokens: int
    answer_tokens: int
    chunkable: bool = True
    bytes_per_token: int = 4
    forecast_bytes: int = 4
    broken: bool = False
    features: bool = False
    cache: list[int] = field(default_factory=list)
    answer: list[int] = field(default_factory=list)
    ends: list[str] = field(default_factory=list)
    prompt_passes: list[list[tuple[int, int]]] = field(default_factory=lambda: [[]])


class Toy:
    """Runs steps. Token i of an answer is computed from the cache, so that a gap, an overlap or a
    token out of order shows as a wrong answer. `memory`: sizes of all caches above it are refused.
    """

    def __init__(self, scheduler: Scheduler, memory_bytes: int | None = None) -> None:
        self.scheduler = scheduler
        self.memory_bytes = memory_bytes
        self.jobs: dict[str, Job] = {}
        self.steps: list[Step] = []
        self.planned: Callable[[Step], None] = lambda step: None

    def add(
        self, id: str, job: Job, *, visual: int = 3, budget: int = 99, priority: int = 0
    ) -> None:
        self.jobs[id] = job
        self.scheduler.add(
            id,
            visual_tokens=visual,
            max_new_tokens=budget,
            priority=priority,
            chunkable=job.chunkable,
        )

    def cancel(self, id: str) -> None:
        if self.scheduler.cancel(id):
            self.free(id)
            self.jobs[id].ends.append("cancelled")

    def free(self, id: str) -> None:
        self.jobs[id].cache = []
        self.jobs[id].prompt_passes.append([])

    def step(
        self, *, oom_after: int | None = None, cancel_at: tuple[int, str] | None = None
    ) -> Step:
        """Run one step. oom_after: the piece at which memory runs out; cancel_at: (piece, id)."""
        step = self.scheduler.step()
        self.steps.append(step)
        self.planned(step)
        for id in step.preempt:
            self.free(id)
        pieces: list[tuple[str, Chunk | str]] = [("decode", id) for id in step.decode]
        pieces += [("prefill", c) for c in step.prefill]
        pieces += [("encode", id) for id in step.encode]
        try:
            for i, (kind, what) in enumerate(pieces):
                if cancel_at is not None and cancel_at[0] == i:
                    self.cancel(cancel_at[1])
                if oom_after == i:
                    raise ToyMemoryError
                getattr(self, f"_{kind}")(what)
                self._check_memory()
        except ToyMemoryError:
            self.shrunk(self.scheduler.shrink())
        for id in self.running():
            self.scheduler.kv_bytes(id, self.bytes(id))
        return step

    def run(self, most: int = 10_000) -> list[Step]:
        """Until no request is left."""
        first = len(self.steps)
        while not self.scheduler.idle:
            assert len(self.steps) - first < most, "requests starve"
            self.step()
        return self.steps[first:]

    def running(self) -> list[str]:
        states = (State.PREFILLING, State.RUNNING)
        return [id for id in self.jobs if self.scheduler.ticket(id).state in states]

    def bytes(self, id: str) -> int:
        return len(self.jobs[id].cache) * self.jobs[id].bytes_per_token

    def shrunk(self, shrunk: Shrunk) -> None:
        for id in shrunk.preempt:
            self.free(id)
        if shrunk.failed is not None:
            self.free(shrunk.failed)
            self.jobs[shrunk.failed].ends.append("failed")

    def _encode(self, id: str) -> None:
        job = self.jobs[id]
        if self.scheduler.ticket(id).ended:
            self.scheduler.encoded(id, 1)  # the report of work that was cancelled is void
        elif job.broken:
            self._fail(id, MediaError("not a picture"))
        else:
            assert not job.features, "encoded twice"
            job.features = True
            self.scheduler.encoded(id, job.prompt_tokens, job.forecast_bytes)

    def _prefill(self, chunk: Chunk) -> None:
        job = self.jobs[chunk.id]
        if self.scheduler.ticket(chunk.id).ended:
            self.scheduler.prefilled(chunk.id, chunk.stop)
            return
        assert job.features
        assert chunk.start == len(job.cache) < chunk.stop, "chunks tile without gap or overlap"
        known = job.prompt_tokens + len(job.answer)
        assert chunk.stop <= known and chunk.emits == (chunk.stop == known)
        job.cache += range(chunk.start, chunk.stop)
        if chunk.start < job.prompt_tokens:
            job.prompt_passes[-1].append((chunk.start, chunk.stop))
        self.scheduler.prefilled(chunk.id, chunk.stop)
        if chunk.emits:
            self._emit(chunk.id)

    def _decode(self, id: str) -> None:
        job = self.jobs[id]
        if self.scheduler.ticket(id).ended:
            self.scheduler.emitted(id, False)
            return
        job.cache.append(len(job.cache))
        self._emit(id)

    def _emit(self, id: str) -> None:
        job = self.jobs[id]
        assert job.cache == list(range(job.prompt_tokens + len(job.answer)))
        job.answer.append(len(job.answer))
        if self.scheduler.emitted(id, len(job.answer) == job.answer_tokens):
            self.free(id)
            job.ends.append("finished")

    def _fail(self, id: str, error: FoveateError) -> None:
        self.scheduler.failed(id, error)
        self.free(id)
        self.jobs[id].ends.append("failed")

    def _check_memory(self) -> None:
        used = sum(self.bytes(id) for id in self.running())
        if self.memory_bytes is not None and used > self.memory_bytes:
            raise ToyMemoryError
