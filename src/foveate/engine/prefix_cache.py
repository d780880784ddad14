"""The prefix cache: keys and values of a prompt up to the end of its last picture, for other questions.

A second question about the same picture clones what the first one left and passes only its own words
through the language model. The feature cache (engine/cache.py) saves the tower beside it.

What names an entry (sha256): the ids, positions and prompt places of the tokens that stand before the
boundary, every preprocessed pixel of the request, the model (see cache_key.py) and the state of its
language weights, the plan. Where the plan reads the words after the boundary, they enter, too. A plan
that acts inside the language model sees the whole prompt, so its entries are whole prompts, and only
the same prompt finds them. Numbers: no entry is changed by a hit, each request works on a copy.
"""

from __future__ import annotations

import hashlib
import json
import threading
from collections import OrderedDict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from foveate.core.errors import SettingError
from foveate.core.plan import Plan
from foveate.engine.cache import FeatureCache
from foveate.engine.cache_key import Identities, hashable, unit_key
from foveate.engine.compress import Compressed
from foveate.engine.engine import Engine
from foveate.engine.job import Job, Prefix
from foveate.engine.kv_cache import SequenceKV
from foveate.engine.language_door import Taken, acts_inside
from foveate.engine.language_pass import RowMeta
from foveate.models.adapter import MODALITIES, AutoAdapter

_READS_WORDS = ("question", "clip")


@dataclass(frozen=True)
class PrefixStats:
    """Counts of prompts. bypassed: without pictures, or of a kind that cannot be shared; tokens_saved:
    prompt tokens that did not pass through the language model; bytes: of keys and values held.
    """

    hits: int
    misses: int
    evictions: int
    bypassed: int
    tokens_saved: int
    bytes: int
    entries: int


@dataclass
class Entry:
    """A prefix's keys and values. `first` and `inside` belong to whole prompts: the greedy first token
    of the answer, and what the plan's prefill kept.
    """

    sequence: SequenceKV
    tokens: int
    first: int | None = None
    inside: Taken | None = None


def reads_words(plan: Plan) -> bool:
    """Whether keys and values before the boundary may depend on the words after it."""
    method = plan.stage("tokens")
    needs = method.needs if method is not None else frozenset()
    return acts_inside(plan) or any(n.what in _READS_WORDS for n in needs)


def boundary(meta: RowMeta, types: Tensor | None) -> int | None:
    """Tokens up to the end of the last picture; None where nothing may be shared: no picture, no words
    after it, or a family in which others than a picture's own tokens see each other both ways.
    """
    visual = meta.modality > 0
    end = int(np.flatnonzero(visual).max(initial=-1)) + 1
    if not 0 < end < meta.n:
        return None
    if types is not None and not np.array_equal(types[0].cpu().numpy() != 0, visual):
        return None  # PaliGemma's words look ahead; Gemma 3 marks the pictures and nothing else
    return end


class PrefixCache:
    """Entries within max_bytes; the longest unused leave first. One model; safe for threads.

    Errors: SettingError for a budget below 1.
    """

    def __init__(self, max_bytes: int) -> None:
        if isinstance(max_bytes, bool) or not isinstance(max_bytes, int) or max_bytes < 1:
            raise SettingError(
                f"prefix_cache_bytes = {max_bytes!r} is out of range: a whole number of bytes, 0 = off"
            )
        self.max_bytes = max_bytes
        self._entries: OrderedDict[str, Entry] = OrderedDict()
        self._identities = Identities()
        self._lock = threading.RLock()
        self._bytes = self._hits = self._misses = self._evictions = 0
        self._bypassed = self._saved = 0

    @property
    def stats(self) -> PrefixStats:
        with self._lock:
            counts = (self._hits, self._misses, self._evictions, self._bypassed, self._saved)
            return PrefixStats(*counts, self._bytes, len(self._entries))

    def clear(self) -> None:
        """Forget all entries; counts stay."""
        with self._lock:
            self._entries.clear()
            self._bytes = 0

    def check(self, adapter: AutoAdapter) -> None:
        """UnsupportedError for a model whose weights cannot be told apart."""
        self._identities.of(adapter)

    def name(
        self,
        adapter: AutoAdapter,
        plan: Plan,
        inputs: Mapping[str, Any],
        short: Compressed,
        meta: RowMeta,
    ) -> Prefix | None:
        """What a single shortened prompt may share; None if nothing. inputs: before it was shortened,
        with the pixels.
        """
        media = {m: adapter.media_kwargs(inputs, m) for m in MODALITIES}
        end = boundary(meta, short.kwargs.get("token_type_ids"))
        if end is None or not all(hashable(mm) for mm in media.values()):
            with self._lock:
                self._bypassed += 1
            return None
        tokens = meta.n if acts_inside(plan) else end
        with self._lock:
            identity = self._identities.of(adapter)
        pictures = [unit_key(identity, m, [], mm) for m, mm in media.items() if mm]
        ids, words = short.kwargs["input_ids"][0], end if reads_words(plan) else meta.n
        facts = [
            identity,
            _state(adapter.model),
            str(adapter.model.dtype),
            pictures,
            plan.hash,
            tokens,
            ids[:end].tolist(),
            ids[words:].tolist(),
            short.rows[0].index[:end].tolist(),
            meta.position[:, :end].tolist(),
        ]
        key = hashlib.sha256(json.dumps(facts).encode()).hexdigest()
        return Prefix(key, tokens, acts_inside(plan))

    def announce(
        self, job: Job, adapter: AutoAdapter, plan: Plan, inputs: Mapping[str, Any]
    ) -> None:
        """Name what an encoded request may share; inputs: its prompt and pixels before encoding."""
        assert job.run is not None and job.meta is not None
        job.prefix = self.name(adapter, plan, inputs, job.run.short, job.meta)

    def enter(self, job: Job) -> int | None:
        """Give a request that holds nothing what is known of its prompt; the first token of its answer
        where that is known, too.
        """
        if job.prefix is None or job.run is None or (job.sequence and job.sequence.length):
            return None
        entry = self.get(job.prefix)
        if entry is None:
            return None
        job.sequence, job.run.inside = entry.sequence, entry.inside
        job.notes = (f"{entry.tokens} prompt tokens came from the prefix cache",)
        return entry.first

    def keep(self, job: Job, start: int, stop: int, token: int | None) -> None:
        """Keep what a request may share, once tokens [start, stop) crossed its end; `token` came next."""
        prefix = job.prefix
        if prefix is None or job.run is None or job.sequence is None:
            return
        if not start < prefix.tokens <= stop or (prefix.whole and token is None):
            return
        first = token if prefix.whole else None
        self.put(prefix, job.sequence, first, job.run.inside)

    def get(self, prefix: Prefix) -> Entry | None:
        """An entry whose sequence is the caller's own copy, or None."""
        with self._lock:
            found = self._entries.get(prefix.key)
            if found is None:
                self._misses += 1
                return None
            self._entries.move_to_end(prefix.key)
            self._hits += 1
            self._saved += found.tokens
            return Entry(found.sequence.clone(), found.tokens, found.first, found.inside)

    def put(
        self,
        prefix: Prefix,
        sequence: SequenceKV,
        first: int | None = None,
        inside: Taken | None = None,
    ) -> None:
        """Keep a copy of a sequence's first tokens; an entry above the budget is not kept."""
        with self._lock:
            if prefix.key in self._entries or sequence.length < prefix.tokens:
                return
        copy = sequence.clone()
        if copy.length > prefix.tokens:
            copy.truncate(copy.length - prefix.tokens)
        with self._lock:
            if copy.memory_bytes > self.max_bytes or prefix.key in self._entries:
                return
            self._entries[prefix.key] = Entry(copy, prefix.tokens, first, inside)
            self._bytes += copy.memory_bytes
            while self._bytes > self.max_bytes:
                _, gone = self._entries.popitem(last=False)
                self._bytes -= gone.sequence.memory_bytes
                self._evictions += 1


def shared_caches(
    engine: Engine, max_bytes: int | None
) -> tuple[PrefixCache | None, FeatureCache | None]:
    """A prefix cache and the feature cache beside it: the engine's own, or a quarter of the bytes.
    UnsupportedError for a model whose weights cannot be told apart, SettingError for a bad budget.
    """
    if not max_bytes:
        return None, engine.cache
    features = engine.cache
    if features is None and max_bytes > 3:
        features = FeatureCache(max_bytes // 4)
        max_bytes -= max_bytes // 4
    cache = PrefixCache(max_bytes)
    cache.check(engine.adapter)
    return cache, features


def _state(model: torch.nn.Module) -> str:
    """Changes when a weight is replaced, or written through torch."""
    tensors: Iterable[Tensor] = (*model.parameters(), *model.buffers())
    live = [(t.data_ptr(), 0 if t.is_inference() else t._version) for t in tensors]
    return hashlib.sha256(repr(live).encode()).hexdigest()
