"""Continuous batching for requests with pictures: they join and leave between steps.

The scheduler (engine/scheduler.py, no torch) says what to run; this executor encodes, prefills and
decodes it on one model, over ragged caches. Transformers batches only text this way.
"""

from __future__ import annotations

import contextlib
import itertools
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import torch

from foveate.core.errors import FoveateError, InputError, StateError, UnsupportedError
from foveate.core.plan import Plan
from foveate.engine.attach import refuse_attached
from foveate.engine.compress import refuse_later_stages
from foveate.engine.engine import Engine
from foveate.engine.job import Job, OnToken
from foveate.engine.kv_report import HeldRows
from foveate.engine.language_door import kept_segments, meta_of, refuse_unguided
from foveate.engine.language_run import LanguageRun
from foveate.engine.passes import Passes
from foveate.engine.prefix_cache import shared_caches
from foveate.engine.request import Answer, Request
from foveate.engine.scheduler import Chunk, Scheduler, Shrunk, Step
from foveate.models import compat

# What torch says, in a plain RuntimeError, where a CPU or an Apple GPU has no memory left.
_NO_MEMORY = ("not enough memory", "can't allocate memory", "out of memory")


class ContinuousEngine:
    """Serves requests on an Engine's model under one plan.

    token_budget_tokens, max_running, kv_budget_bytes: see Scheduler; prefix_cache_bytes: what later
    questions about the same pictures may share (prefix_cache.py), 0 = nothing. Greedy, after the
    model's generation config. A request that fails carries its error in its answer; the others go on.
    `submit`, `cancel` and `answer` may be called from other threads than the one that steps. Raises
    UnsupportedError for plans or models that cannot be served so, before any compute.
    """

    def __init__(
        self,
        engine: Engine,
        plan: str | Plan | None = None,
        *,
        token_budget_tokens: int = 4096,
        max_running: int = 32,
        kv_budget_bytes: int | None = None,
        prefix_cache_bytes: int | None = None,
    ) -> None:
        self.engine, self.plan = engine, Plan.parse(plan)
        refuse_later_stages(self.plan)
        refuse_unguided(self.plan)
        self.run = LanguageRun(engine.adapter, self.plan)
        self.passes = Passes(engine, self.run)
        if self.passes.cache.recurrent:
            raise UnsupportedError(
                f"{engine.adapter.model_type} keeps a recurrent state for a whole batch, which "
                "requests cannot join or leave: use Engine.generate"
            )
        self.scheduler = Scheduler(token_budget_tokens, max_running, kv_budget_bytes)
        self.stop_ids = engine.stop_ids({})
        word = torch.zeros(1, 1, dtype=torch.long, device=engine.model.device)
        self._plain = not compat.greedy_processors(engine.model, word)  # the best logit as it is
        self.prefix, self.features = shared_caches(engine, prefix_cache_bytes)
        self._jobs: dict[str, Job] = {}
        self._done: dict[str, Answer] = {}
        self._numbers = itertools.count()
        self._lock = threading.RLock()
        self._reading = threading.Lock()  # the tokenizer's padding side is changed for a moment
        self._busy = self._closed = False
        self._attached: contextlib.ExitStack | None = None

    def __enter__(self) -> ContinuousEngine:
        if self._attached is not None or self._closed:
            raise StateError("a ContinuousEngine is entered once: make another")
        refuse_attached(self.engine.model)
        stack = contextlib.ExitStack()
        stack.enter_context(self.run.attached())
        self._attached = stack
        return self

    def __exit__(self, *_: Any) -> None:
        assert self._attached is not None
        with self._lock:
            self._attached.close()
            self._attached, self._closed = None, True
            for id in list(self._jobs):
                self.cancel(id)
            self._jobs.clear()

    # --- the user's side ---------------------------------------------------------------------------
    def submit(
        self,
        request: Request,
        *,
        max_new_tokens: int = 64,
        priority: int = 0,
        on_token: OnToken | None = None,
    ) -> str:
        """Queue a request and return its id (request.id, or a new one).

        Media are read and preprocessed here. Raises InputError or MediaError for a bad request, or an id
        whose answer has not been handed out, StateError once the engine was left.
        """
        with self._lock:
            fresh = (f"request-{n}" for n in self._numbers)
            id = request.id or next(i for i in fresh if i not in self._jobs and i not in self._done)
            self._check_open(id)
        member = self.engine.prepare(replace(request, id=id))
        try:
            with self._reading:
                ready = self.engine.preprocessed([member], self.plan)
        except (ValueError, IndexError) as error:
            if isinstance(error, FoveateError):
                raise
            raise InputError(f"the processor: {error}") from error
        adapter = self.engine.adapter
        tokens = [
            t for t in (adapter.token_id("image"), adapter.token_id("video")) if t is not None
        ]
        visual = sum(int((ready.inputs["input_ids"] == t).sum()) for t in tokens)
        chunkable = not self.passes.whole and adapter.cuttable(ready.inputs)
        with self._lock:
            self._check_open(id)
            if not self._busy:
                self._forget_ended()
            self.scheduler.add(
                id,
                visual_tokens=visual,
                max_new_tokens=max_new_tokens,
                priority=priority,
                chunkable=chunkable,
            )
            job = Job(id, request, ready, max_new_tokens, on_token, start_s=time.perf_counter())
            self._jobs[id] = job
        return id

    def cancel(self, id: str) -> bool:
        """End a request and free its KV, also from inside on_token. False if it had ended before;
        InputError for an id that is unknown or whose answer has been handed out.
        """
        with self._lock:
            if id not in self._jobs and id in self._done:
                return False
            was = self.scheduler.cancel(id)
            if was:
                self._end(self._jobs[id], InputError("the request was cancelled"))
            return was

    def _check_open(self, id: str) -> None:
        if self._closed:
            raise StateError("the engine was left: submit inside its `with` block")
        if id in self._done:
            raise InputError(f"id {id!r} is in use: take its answer() first, or give another")

    def answer(self, id: str) -> Answer | None:
        """The answer of an ended request, handed out once; None while it runs."""
        with self._lock:
            return self._done.pop(id, None)

    def run_all(self) -> dict[str, Answer]:
        """Step until nothing is left; answers by id."""
        while self.step():
            pass
        with self._lock:
            done, self._done = self._done, {}
        return done

    @property
    def kv_bytes(self) -> int:
        """KV bytes of all requests now."""
        with self._lock:
            held = (j.sequence for j in self._jobs.values())
            return sum(sequence.memory_bytes for sequence in held if sequence is not None)

    # --- one step ----------------------------------------------------------------------------------
    @torch.no_grad()
    def step(self) -> bool:
        """Run what the scheduler says next; False when there is nothing to do.

        Any thread may step. StateError while another plan is on the model, or from inside on_token.
        """
        if self._attached is None:
            raise InputError("enter the engine first: `with ContinuousEngine(...) as serving:`")
        with self._lock:
            if self._busy:
                raise StateError("step() was called from inside on_token: let the step end first")
            if not self.run.in_charge:
                raise StateError("another plan was put on this model: leave its block first")
            self._forget_ended()
            step = self.scheduler.step()
            if not step:
                return False
            self._busy = True
            try:
                if not self._ran(step):
                    freed = self.prefix is not None and self.prefix.stats.bytes > 0
                    self._shrink(self.scheduler.shrink(freed))
            except BaseException:
                self.scheduler.recall()
                self._take_back()
                raise
            finally:
                self._busy = False
                self.passes.let_go()
            for job in self._jobs.values():
                if job.sequence is not None and self.scheduler.ticket(job.id).holds_kv:
                    self.scheduler.kv_bytes(job.id, job.sequence.memory_bytes)
            return True

    def _ran(self, step: Step) -> bool:
        """Whether memory sufficed. What a callback cancels on the way is passed over."""
        for id in step.preempt:
            self._jobs[id].sequence = None
        try:
            if step.decode:
                self._decode([self._jobs[i] for i in step.decode])
            for chunk in step.prefill:
                self._guarded(self._jobs[chunk.id], self._prefill, chunk)
            for id in step.encode:
                self._guarded(self._jobs[id], self._encode)
        except (torch.OutOfMemoryError, MemoryError):
            return False
        except RuntimeError as error:
            if not any(words in str(error) for words in _NO_MEMORY):
                raise
            return False
        return True

    def _guarded(self, job: Job, work: Callable[..., None], *args: Any) -> None:
        """Do a request's own work; if it cannot be done, that request alone fails."""
        if self._gone(job):
            return
        try:
            work(job, *args)
        except FoveateError as error:
            self._fail(job, error)

    def _gone(self, job: Job) -> bool:
        return self.scheduler.ticket(job.id).ended

    def _forget_ended(self) -> None:
        for id in [i for i in self._jobs if self.scheduler.ticket(i).ended]:
            with contextlib.suppress(FoveateError):  # a cancelled one is forgotten a step later
                self.scheduler.forget(id)
                del self._jobs[id]

    def _encode(self, job: Job) -> None:
        assert job.ready is not None
        try:
            run = self.engine.compressed(job.ready, self.features)
        except (ValueError, IndexError) as error:
            if isinstance(error, FoveateError):
                raise
            raise InputError(f"the processor: {error}") from error
        job.run, job.meta = run, meta_of(run.short, self.engine.special_ids)[0]
        if self.prefix:
            self.prefix.announce(job, self.engine.adapter, self.plan, job.ready.inputs)
        if not self._plain:
            job.scores = compat.greedy_processors(self.engine.model, job.prompt)
        job.ready = None
        run.clock.start("prefill")
        held = (j.sequence for j in self._jobs.values())
        bytes_per_token = max(1, self.passes.bytes_per_token(held))
        self.scheduler.encoded(job.id, len(run.short.rows[0].index), bytes_per_token)

    def _decode(self, jobs: list[Job]) -> None:
        try:
            tokens = self.passes.step(jobs)
        except FoveateError as error:
            if len(jobs) == 1:
                self._fail(jobs[0], error)
                return
            self._take_back()
            for job in jobs:  # one by one, so that only the bad one fails
                if not self._gone(job):
                    self._decode([job])
            return
        for job, token in zip(jobs, tokens, strict=True):
            self._emit(job, token)

    def _prefill(self, job: Job, chunk: Chunk) -> None:
        assert job.run is not None and job.meta is not None
        length, start, stop = job.meta.n, chunk.start, chunk.stop
        first = self.prefix.enter(job) if self.prefix and start == 0 else None
        if job.sequence is not None and start < length:
            start = max(start, min(stop, job.sequence.length))
        if start == stop:  # a shared prefix brought it all
            self.scheduler.prefilled(job.id, stop)
            if chunk.emits and first is not None:
                self._emit(job, first)
            return
        out = self.passes.prompt(job, start, stop)
        token = job.best(out.logits[:, -1]) if chunk.emits else None
        if self.prefix:
            self.prefix.keep(job, start, stop, token)
        self.scheduler.prefilled(job.id, stop)
        if token is not None:
            self._emit(job, token)

    def _emit(self, job: Job, token: int) -> None:
        if self._gone(job):
            return
        if job.first_s is None:
            job.first_s = time.perf_counter()
            if job.run is not None:
                job.run.clock.stop()
                job.run.clock.start("decode")
        job.ids.append(token)
        finished = token in self.stop_ids
        ended = self.scheduler.emitted(job.id, finished)
        error = None
        if job.on_token is not None and not finished:
            error = job.tell(token, self._text(job), ended)
        if error is not None:
            self._fail(job, error)
        elif ended:
            self._finish(job)

    def _text(self, job: Job) -> str:
        words = [x for x in job.ids if x not in self.stop_ids]
        return str(self.engine.processor.tokenizer.decode(words, skip_special_tokens=True)).strip()

    def _finish(self, job: Job) -> None:
        assert job.run is not None and job.sequence is not None and job.first_s is not None
        job.run.clock.stop()
        held = HeldRows([job.sequence], len(job.ids) - 1)
        job.run.out = SimpleNamespace(past_key_values=held)
        report = self.engine.report(job.run, 0, len(job.ids))
        report = replace(
            report,
            ttft_ms=(job.first_s - job.start_s) * 1e3,
            notes=(
                *report.notes,
                "continuous batching: prefill and decode times hold others' steps",
                *job.notes,
            ),
        )
        self._done[job.id] = Answer(
            self._text(job),
            tuple(job.ids),
            report,
            kept_segments(job.run.short.rows[0], job.run.inside, 0, 1),
            tuple(job.run.pictures[0]),
            notes=tuple(job.run.members[0].notes),
            id=job.id,
        )
        job.sequence = job.run = None

    def _fail(self, job: Job, error: FoveateError) -> None:
        if not self._gone(job):
            self.scheduler.failed(job.id, error)
        self._end(job, error)

    def _end(self, job: Job, error: FoveateError) -> None:
        self._done[job.id] = job.ended(self._text(job), error)

    def _shrink(self, found: Shrunk) -> None:
        """Out of memory: free what the scheduler says, and take back what the failed pass wrote."""
        if self.prefix:
            self.prefix.clear()
        for id in found.preempt:
            self._jobs[id].sequence = None
        if found.failed is not None:
            error = self.scheduler.ticket(found.failed).error
            assert error is not None
            self._end(self._jobs[found.failed], error)
        self._take_back()
        self.passes.let_go()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    def _take_back(self) -> None:
        """Put caches back to the tokens that were reported."""
        for job in self._jobs.values():
            ticket = self.scheduler.ticket(job.id)
            if job.sequence is not None and ticket.holds_kv:
                job.sequence.take_back(ticket.cached_tokens)


@contextlib.contextmanager
def serving(
    engine: Engine, plan: str | Plan | None = None, **options: Any
) -> Iterator[ContinuousEngine]:
    """A ContinuousEngine, attached to its model for the length of the block."""
    with ContinuousEngine(engine, plan, **options) as found:
        yield found
