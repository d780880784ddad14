"""Passes of continuous batching through the language model: a decode step of several requests, a whole
prompt, and a part of one.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch

from foveate.engine.engine import Engine
from foveate.engine.job import Job
from foveate.engine.kv_cache import RaggedCache, SequenceKV
from foveate.engine.kv_coded import changes_by_step
from foveate.engine.language_door import acts_inside, taken
from foveate.engine.language_run import LanguageRun


class Passes:
    """Runs jobs on one model over one ragged cache, whose rows are exchanged before each pass."""

    def __init__(self, engine: Engine, run: LanguageRun) -> None:
        self.engine, self.run = engine, run
        self.cache = run.new_cache()
        self.whole = acts_inside(run.plan)  # such a plan sees a prompt in one pass

    def bytes_per_token(self, held: Iterable[SequenceKV | None]) -> int:
        """KV bytes that one more token takes: as in the sequences held, or of all layers in full."""
        known = [s for s in held if s and s.length]
        if known:
            return max(s.memory_bytes // s.length for s in known)
        text = self.run.text_config
        heads = getattr(text, "num_key_value_heads", None) or text.num_attention_heads
        width = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
        size = torch.finfo(self.engine.model.dtype).bits // 8
        return int(2 * sum(self.cache.held) * heads * width * size)

    def let_go(self) -> None:
        """Hold nothing of the last pass: neither its sequences nor its masks."""
        self._rows([], 0)
        self.run.prefill = None

    def _rows(self, jobs: list[Job], seen: int) -> RaggedCache:
        cache = self.cache
        cache.rows = [j.sequence for j in jobs if j.sequence is not None]
        cache.set_seen(seen)
        self.run.resume(cache, [j.meta for j in jobs if j.meta is not None])
        return cache

    def step(self, jobs: list[Job]) -> list[int]:
        """The next token of each job, which holds a sequence and has said something."""
        device = self.engine.model.device
        cache = self._rows(jobs, max(j.sequence.length for j in jobs if j.sequence))
        ids = torch.tensor([[j.ids[-1]] for j in jobs], device=device)
        places = torch.cat([j.places(len(j.ids) - 1, len(j.ids)) for j in jobs], -2)
        out = self.engine.model(
            input_ids=ids, position_ids=places, past_key_values=cache, use_cache=True
        )
        logits = out.logits[:, -1]
        if not any(j.scores for j in jobs):
            found: list[int] = logits.float().argmax(-1).tolist()
            return found
        return [j.best(logits[i : i + 1]) for i, j in enumerate(jobs)]

    def prompt(self, job: Job, start: int, stop: int) -> Any:
        """The model's output for tokens [start, stop) of a prompt and its answer; its last logits."""
        assert job.run is not None and job.meta is not None
        call, length = {**job.call, "logits_to_keep": 1}, job.meta.n
        pictures = bool(job.run.short.rows[0].placed)
        # A plan leaves prompts without pictures alone; those go the way of chunks.
        if start > 0 or stop < length or (self.whole and not pictures):
            return self._part(job, call, start, stop, length)
        self.run.begin([job.meta], call["attention_mask"], "left")
        cache = self._rows([], 0)
        if "mm_encoder_outputs" in call:  # forward() edits what it is given
            call["mm_encoder_outputs"] = job.run.short.part(0, length)
        out = self.engine.model(**call, past_key_values=cache, use_cache=True)
        job.sequence = cache.rows[0]
        if self.whole:
            job.run.inside = taken(self.run, 0)
        return out

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
            places = job.places(start - length, stop - length)
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
