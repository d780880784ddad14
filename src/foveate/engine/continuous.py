"""Continuous batching for requests with pictures: they join and leave between steps.

The scheduler (engine/scheduler.py, no torch) says what to run; this executor encodes, prefills and
decodes it on one model, over ragged caches. Transformers batches only text this way.
"""

from __future__ import annotations

import contextlib
import itertools
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from foveate.core.errors import FoveateError, InputError, UnsupportedError
from foveate.core.plan import Plan
from foveate.engine.compress import refuse_later_stages
from foveate.engine.engine import Engine
from foveate.engine.job import Job, OnToken
from foveate.engine.kv_cache import RaggedCache
from foveate.engine.kv_coded import changes_by_step
from foveate.engine.kv_report import HeldRows
from foveate.engine.language_door import kept_segments, meta_of, refuse_unguided, taken
from foveate.engine.language_run import LanguageRun
from foveate.engine.prefix_cache import shared_caches
from foveate.engine.request import Answer, Request
from foveate.engine.scheduler import Chunk, Scheduler, Shrunk


class ContinuousEngine:
    """Serves requests on an Engine's model under one plan.

    token_budget_tokens, max_running, kv_budget_bytes: see Scheduler; prefix_cache_bytes: what later
    questions about the same pictures may share (prefix_cache.py), 0 = nothing. Greedy. A request that
    fails carries its error in its answer; the others go on. `submit` and `cancel` may be called from
    other threads than the one that steps. Raises UnsupportedError for plans or models that cannot be
    served so, before any compute.
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
        self.cache = self.run.new_cache()
        if self.cache.recurrent:
            raise UnsupportedError(
                f"{engine.adapter.model_type} keeps a recurrent state for a whole batch, which "
                "requests cannot join or leave: use Engine.generate"
            )
        self.scheduler = Scheduler(token_budget_tokens, max_running, kv_budget_bytes)
        self.stop_ids = engine.stop_ids({})
        self.prefix, self.features = shared_caches(engine, prefix_cache_bytes)
        self._jobs: dict[str, Job] = {}
        self._done: dict[str, Answer] = {}
        self._numbers = itertools.count()
        self._lock = threading.RLock()
        inner = self.plan.stage("prefill") is not None or self.plan.stage("memory") is not None
        self._whole = inner
        self._attached: contextlib.ExitStack | None = None

    def __enter__(self) -> ContinuousEngine:
        self._attached = contextlib.ExitStack()
        self._attached.enter_context(self.run.attached())
        return self

    def __exit__(self, *_: Any) -> None:
        assert self._attached is not None
        self._attached.close()
        self._attached = None

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

        Media are read and preprocessed here. Raises InputError or MediaError for a bad request.
        """
        id = request.id or f"request-{next(self._numbers)}"
        member = self.engine.prepare(replace(request, id=id))
        try:
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
        # A block of tokens that see each other both ways must not be cut.
        chunkable = not self._whole and "token_type_ids" not in ready.inputs
        with self._lock:
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
        """End a request; its KV is freed at the next step. False if it had ended before."""
        with self._lock:
            was = self.scheduler.cancel(id)
            if was:
                job = self._jobs[id]
                job.sequence = job.ready = None
                self._done[id] = Answer(
                    job.said, tuple(job.ids), error=InputError("the request was cancelled"), id=id
                )
            return was

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
        """KV bytes allocated now."""
        return sum(j.sequence.memory_bytes for j in self._jobs.values() if j.sequence is not None)

    # --- one step ----------------------------------------------------------------------------------
    @torch.no_grad()
    def step(self) -> bool:
        """Run what the scheduler says next; False when there is nothing to do."""
        if self._attached is None:
            raise InputError("enter the engine first: `with ContinuousEngine(...) as serving:`")
        with self._lock:
            self._forget_ended()
            step = self.scheduler.step()
            if not step:
                return False
            for id in step.preempt:
                self._jobs[id].sequence = None
            try:
                if step.decode:
                    self._decode([self._jobs[i] for i in step.decode])
                for chunk in step.prefill:
                    self._prefill(self._jobs[chunk.id], chunk)
                for id in step.encode:
                    self._encode(self._jobs[id])
            except (torch.OutOfMemoryError, MemoryError):
                self._shrink(self.scheduler.shrink())
            except RuntimeError as error:
                if "not enough memory" not in str(error):
                    raise
                self._shrink(self.scheduler.shrink())
            for job in self._jobs.values():
                if job.sequence is not None and self.scheduler.ticket(job.id).holds_kv:
                    self.scheduler.kv_bytes(job.id, job.sequence.memory_bytes)
            return True

    def _forget_ended(self) -> None:
        for id in [i for i in self._jobs if self.scheduler.ticket(i).ended]:
            with contextlib.suppress(FoveateError):  # a cancelled one is forgotten a step later
                self.scheduler.forget(id)
                del self._jobs[id]

    def _encode(self, job: Job) -> None:
        assert job.ready is not None
        try:
            inputs = job.ready.inputs
            job.run = self.engine.compressed(job.ready, self.features)
        except FoveateError as error:
            self._fail(job, error)
            return
        job.ready = None
        row = job.run.short.rows[0]
        job.meta = meta_of(job.run.short, self.engine.special_ids)[0]
        if self.prefix:
            self.prefix.announce(job, self.engine.adapter, self.plan, inputs)
        job.run.clock.start("prefill")
        self.scheduler.encoded(job.id, len(row.index), max(1, self._bytes_per_token()))

    def _bytes_per_token(self) -> int:
        known = [j.sequence for j in self._jobs.values() if j.sequence and j.sequence.length]
        if known:
            return max(s.memory_bytes // s.length for s in known)
        text = self.run.text_config
        heads = getattr(text, "num_key_value_heads", None) or text.num_attention_heads
        width = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
        size = torch.finfo(self.engine.model.dtype).bits // 8
        return int(2 * sum(self.cache.held) * heads * width * size)

    def _rows(self, jobs: list[Job], seen: int) -> RaggedCache:
        cache = self.cache
        cache.rows = [j.sequence for j in jobs if j.sequence is not None]
        cache.set_seen(seen)
        self.run.resume(cache, [j.meta for j in jobs if j.meta is not None])
        return cache

    def _decode(self, jobs: list[Job]) -> None:
        device = self.engine.model.device
        cache = self._rows(jobs, max(j.sequence.length for j in jobs if j.sequence))
        ids = torch.tensor([[j.ids[-1]] for j in jobs], device=device)
        places = torch.cat([self._places(j, len(j.ids) - 1, len(j.ids)) for j in jobs], -2)
        out = self.engine.model(
            input_ids=ids, position_ids=places, past_key_values=cache, use_cache=True
        )
        for job, token in zip(jobs, out.logits[:, -1].float().argmax(-1).tolist(), strict=True):
            self._emit(job, int(token))

    def _places(self, job: Job, start: int, stop: int) -> Tensor:
        """Positions (1, s) or (p, 1, s) of answer tokens start to stop."""
        prompt = job.call["position_ids"]
        steps = torch.arange(start + 1, stop + 1, device=prompt.device)
        found: Tensor = prompt[..., -1:] + steps
        return found

    def _prefill(self, job: Job, chunk: Chunk) -> None:
        assert job.run is not None and job.meta is not None
        length, call = job.meta.n, dict(job.call)
        start, stop = chunk.start, chunk.stop
        call["logits_to_keep"] = 1
        first = self.prefix.enter(job) if self.prefix and start == 0 else None
        if job.sequence is not None and start < length:
            start = max(start, min(stop, job.sequence.length))
        if start == stop:  # a shared prefix brought it all
            self.scheduler.prefilled(job.id, stop)
            if chunk.emits and first is not None:
                self._emit(job, first)
            return
        pictures = bool(job.run.short.rows[0].placed)
        # A plan leaves prompts without pictures alone; those go the way of chunks.
        if start == 0 and stop == length and (pictures or not self._whole):
            self.run.begin([job.meta], call["attention_mask"], "left")
            cache = self._rows([], 0)
            if "mm_encoder_outputs" in call:  # forward() edits what it is given
                call["mm_encoder_outputs"] = job.run.short.part(0, length)
            out = self.engine.model(**call, past_key_values=cache, use_cache=True)
            job.sequence = cache.rows[0]
            if self._whole:
                job.run.inside = taken(self.run, 0)
        else:
            out = self._part(job, call, start, stop, length)
        token = int(out.logits[0, -1].float().argmax()) if chunk.emits else None
        if self.prefix:
            self.prefix.keep(job, start, stop, token)
        self.scheduler.prefilled(job.id, stop)
        if token is not None:
            self._emit(job, token)

    def _part(self, job: Job, call: dict[str, Any], start: int, stop: int, length: int) -> Any:
        assert job.run is not None
        device = self.engine.model.device
        if start >= length and stop - start > 1 and changes_by_step(self.run.memory):
            return self._stepwise(job, call, start, stop, length)
        if job.sequence is None:
            job.sequence = self.cache.new_row()
        cache = self._rows([job], start)
        extra: dict[str, Any] = {}
        # An empty cache reads as a new prompt of its own; the run is told that it is a part of one.
        if start >= length:  # tokens of the answer, computed anew after a preemption
            ids = torch.tensor([job.ids[start - length : stop - length]], device=device)
            places = self._places(job, start - length, stop - length)
        else:
            cut = slice(start, stop)
            ids, places = call["input_ids"][:, cut], call["position_ids"][..., cut]
            extra |= {
                k: v[:, cut]
                for k, v in call.items()
                if k.endswith("token_type_ids") and torch.is_tensor(v)
            }
            if media := job.run.short.part(start, stop):
                extra["mm_encoder_outputs"] = media
        with self.run.in_parts():
            return self.engine.model(
                input_ids=ids,
                position_ids=places,
                past_key_values=cache,
                use_cache=True,
                logits_to_keep=1,
                **extra,
            )

    def _stepwise(self, job: Job, call: dict[str, Any], start: int, stop: int, length: int) -> Any:
        """One token at a time, where earlier entries change as tokens are added."""
        assert job.sequence is not None
        before, job.sequence = job.sequence, job.sequence.clone()
        try:
            for i in range(start, stop):
                out = self._part(job, call, i, i + 1, length)
        except BaseException:
            job.sequence = before  # what was coded or evicted on the way cannot be undone
            raise
        return out

    def _emit(self, job: Job, token: int) -> None:
        now = time.perf_counter()
        if job.first_s is None:
            job.first_s = now
            if job.run is not None:
                job.run.clock.stop()
                job.run.clock.start("decode")
        job.ids.append(token)
        finished = token in self.stop_ids
        ended = self.scheduler.emitted(job.id, finished)
        if job.on_token is not None and not finished:
            text = self._text(job)
            piece, job.said = text[len(job.said) :], text
            job.on_token(job.id, token, piece)
        if ended:
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
        self.scheduler.failed(job.id, error)
        self._done[job.id] = Answer("", error=error, id=job.id)
        job.sequence = job.run = job.ready = None

    def _shrink(self, found: Shrunk) -> None:
        """Out of memory: free what the scheduler says, and take back what the failed pass wrote."""
        if self.prefix:
            self.prefix.clear()
        for id in found.preempt:
            self._jobs[id].sequence = None
        if found.failed is not None:
            job, error = self._jobs[found.failed], self.scheduler.ticket(found.failed).error
            self._done[job.id] = Answer("", error=error, id=job.id)
            job.sequence = job.run = job.ready = None
        for job in self._jobs.values():
            ticket = self.scheduler.ticket(job.id)
            if job.sequence is not None and ticket.holds_kv:
                job.sequence.take_back(ticket.cached_tokens)
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


@contextlib.contextmanager
def serving(
    engine: Engine, plan: str | Plan | None = None, **options: Any
) -> Iterator[ContinuousEngine]:
    """A ContinuousEngine, attached to its model for the length of the block."""
    with ContinuousEngine(engine, plan, **options) as found:
        yield found
