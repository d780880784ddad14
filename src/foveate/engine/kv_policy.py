"""Cache policies at work: what a policy sees of a layer, and budgets brought to entries."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from typing import Any

import numpy as np
import torch
from torch import Tensor

from foveate.core.errors import PlanError, UnsupportedError
from foveate.core.language import CachePolicy, Pages
from foveate.core.views import Reduction
from foveate.engine.kv import LayerStore
from foveate.engine.kv_cache import RaggedCache, SequenceKV
from foveate.engine.kv_pages import offload
from foveate.engine.language_pass import Prefill, RowMeta, Seen
from foveate.engine.language_view import BLOCK_ELEMENTS, attention_rows
from foveate.measure.memory import trim

TRIM_BYTES = 64 * 2**20  # from here on what a prefill's evictions freed goes back to the system


class StoreView:
    """A `foveate.core.language.KVView` of one sequence's store at one layer."""

    def __init__(
        self,
        policy: CachePolicy,
        store: LayerStore,
        meta: RowMeta,
        layers: int,
        seen: tuple[Seen, int, Tensor] | None = None,
    ) -> None:
        self._policy, self._store, self._seen = policy, store, seen
        heads = [store.head(h) for h in range(store.heads)]
        self.keys = [h[0] for h in heads]
        self.values = [h[1] for h in heads]
        self.origin = [h[2].cpu().numpy().astype(np.int64) for h in heads]
        self.modality, self.segment = meta.modality, meta.segment
        self.question, self.position, self.grids = meta.question, meta.position, meta.grids
        self.cell = meta.cell
        self.layers = layers

    @property
    def n(self) -> int:
        """Entries of the longest head."""
        return max(len(k) for k in self.keys)

    def modality_of(self, head: int) -> np.ndarray:
        """Modality (n_h,) of a head's entries; generated tokens are text."""
        return self._of(self.modality, head, 0)

    def segment_of(self, head: int) -> np.ndarray:
        """Segment (n_h,) of a head's entries, -1 for text."""
        return self._of(self.segment, head, -1)

    def cell_of(self, head: int) -> np.ndarray:
        """Cell (n_h,) of a head's entries in its segment's grid, -1 for layout tokens and text."""
        return self._of(self.cell, head, -1)

    def _of(self, values: np.ndarray, head: int, fill: int) -> np.ndarray:
        at = self.origin[head]
        known = at < len(values)
        out = np.full(len(at), fill, values.dtype)
        out[known] = values[at[known]]
        return out

    def _call(self) -> tuple[Seen, int, Tensor]:
        if self._seen is None:
            raise UnsupportedError(
                f"{self._policy.name} asks for attention rows where no prompt queries are kept: read "
                "them in observe(), and declare which in `reads`"
            )
        return self._seen

    def rows(self, query_index: Any) -> Tensor:
        """Attention (H, r, n) of prompt queries, by index among the n tokens present; float32."""
        seen, row, columns = self._call()
        index = torch.as_tensor(np.asarray(query_index, np.int64), device=columns.device)
        first = len(columns) - seen.q.shape[2]  # a window keeps only the last queries
        if int(index.min()) < first:
            raise PlanError(
                f"{self._policy.name} asks for query {int(index.min())}; those from {first} on are kept"
            )
        mask = None
        if seen.mask is not None:
            part = seen.mask[min(row, seen.mask.shape[0] - 1), 0]
            mask = (part[columns[index]] if part.shape[0] > 1 else part)[:, columns]
        return attention_rows(
            seen.q[row][:, index - first],
            seen.k[row][:, columns],
            mask,
            index,
            seen.scaling,
            seen.softcap,
        )

    def column_sum(self) -> Tensor:
        """Attention received (H, n), summed over all queries in blocks; float32."""
        seen, _, columns = self._call()
        heads, n = seen.q.shape[1], len(columns)
        block = max(1, BLOCK_ELEMENTS // max(1, heads * n))
        total = torch.zeros(heads, n, device=columns.device)
        for start in range(0, n, block):
            total += self.rows(np.arange(start, min(start + block, n))).sum(1)
        return total


class PolicyRun:
    """One cache policy on one model: observes layers as they run, and reduces the stores."""

    def __init__(self, policy: CachePolicy, held: Sequence[bool], sources: Sequence[int]) -> None:
        self.policy = policy
        self.layers = [i for i, h in enumerate(held) if h and sources[i] == i]
        self.stats: dict[int, list[Any]] = {}
        self.evicted = 0
        self.freed_bytes = 0

    def prefilled(self, index: int, prefill: Prefill, cache: RaggedCache, seen: Seen) -> None:
        """A layer of the prefill ran; its entries are in the stores."""
        policy, count = self.policy, len(self.layers)
        if index not in self.layers or policy.when == "overflow" and not policy.reads:
            if index in self.layers:
                self._overflow(index, prefill.meta, cache, whole=True)
            return
        place = self.layers.index(index)
        stats = []
        for row, sequence in enumerate(cache.rows):
            columns = prefill.columns(row)
            kept = seen
            if "all" not in policy.reads:
                kept = _window(seen, row, columns, policy.window_tokens)
            store, meta = sequence.layers[index], prefill.meta[row]
            view = StoreView(policy, store, meta, count, (kept, row, columns))
            found = policy.observe(place, view)
            stats.append(found)
            if policy.scope == "layer":
                mean = mean_entries(policy, store, count)
                part = policy.layer_entries(place, count, view.n, min(view.n, mean))
                room = [store.lengths]
                k = policy.allocate([found], room, part * store.heads)[0]
                self._reduce(place, store, view, k, found)
        self.stats[index] = stats
        if policy.scope == "model" and index == self.layers[-1]:
            for row, sequence in enumerate(cache.rows):
                self._whole(row, sequence, prefill.meta[row])
            self.stats.clear()
        if index == self.layers[-1] and self.freed_bytes >= TRIM_BYTES:
            self.freed_bytes = 0
            trim()

    def _whole(self, row: int, sequence: SequenceKV, meta: RowMeta) -> None:
        stores = [sequence.layers[i] for i in self.layers]
        stats = [self.stats[i][row] for i in self.layers]
        room = [store.lengths for store in stores]
        budget = sum(
            mean_entries(self.policy, store, len(stores)) * store.heads for store in stores
        )
        counts = self.policy.allocate(stats, room, min(budget, sum(map(sum, room))))
        for place, (store, k) in enumerate(zip(stores, counts, strict=True)):
            view = StoreView(self.policy, store, meta, len(stores))
            self._reduce(place, store, view, k, stats[place])

    def stepped(self, index: int, meta: Sequence[RowMeta], cache: RaggedCache) -> None:
        """Entries were added to a layer while decoding."""
        if self.policy.when == "overflow" and index in self.layers:
            self._overflow(index, meta, cache)

    def _overflow(
        self, index: int, meta: Sequence[RowMeta], cache: RaggedCache, whole: bool = False
    ) -> None:
        place = self.layers.index(index)
        for sequence, m in zip(cache.rows, meta, strict=True):
            if not m.entered:
                continue  # a plan leaves prompts without pictures alone
            store = sequence.layers[index]
            longest = max(store.lengths)
            mean = mean_entries(self.policy, store, len(self.layers))
            if longest <= mean or not (whole or self.policy.overflows(longest, mean)):
                continue
            view = StoreView(self.policy, store, m, len(self.layers))
            stats = self.policy.observe(place, view)
            k = self.policy.allocate([stats], [store.lengths], mean * store.heads)[0]
            self._reduce(place, store, view, k, stats)

    def _reduce(
        self, place: int, store: LayerStore, view: StoreView, k: Sequence[int], stats: Any
    ) -> None:
        name, lengths = self.policy.name, store.lengths
        counts = [int(x) for x in k]
        if len(counts) != len(lengths) or any(
            not 1 <= x <= n for x, n in zip(counts, lengths, strict=True)
        ):
            raise PlanError(f"{name} allots {counts} entries to heads that hold {list(lengths)}")
        if counts == list(lengths) and not self.policy.pages:
            return
        chosen = list(self.policy.select(place, view, counts, stats))
        paged: dict[int, Pages] = {}
        kept: dict[int, Reduction] = {}
        for h, (r, count, n) in enumerate(zip(chosen, counts, lengths, strict=True)):
            if isinstance(r, Pages):
                if not self.policy.pages:
                    raise PlanError(f"{name} answered pages for head {h} without `pages`")
                found, paged[h] = r.resident(n), r
            else:
                r.check()
                found, kept[h] = r.k, r
            if found != count:
                raise PlanError(f"{name} kept {found} entries of head {h}; {count} were allotted")
        self.evicted += sum(lengths[h] - r.k for h, r in kept.items())
        held = store.nbytes
        if paged:

            def ask(query: Tensor, pages: Any) -> Any:
                return self.policy.retrieve(place, query, pages)

            store.groups = [*offload(store, paged, ask), *store.reduced(kept)]
        else:
            store.reduce(list(kept.values()))
        self.freed_bytes += held - store.nbytes


def _window(seen: Seen, row: int, columns: Tensor, window: int) -> Seen:
    """The call with the last `window` queries of one row only, as a batch that row indexes."""
    last = columns[-window:] if window else columns[:0]
    q = seen.q[row : row + 1][:, :, last].expand(seen.q.shape[0], -1, -1, -1)
    return Seen(q, seen.k, seen.mask, seen.scaling, seen.softcap)


def mean_entries(policy: CachePolicy, store: LayerStore, layers: int) -> int:
    """Entries a head keeps on average at this layer, at least 1. A share is one of those that its
    prompt brought: it does not shrink from step to step.
    """
    budget, heads = policy.budget, store.heads
    if budget.entries is not None:
        return budget.entries
    if budget.bytes is not None:
        return max(1, budget.bytes // (layers * heads * max(1, store.bytes_per_entry)))
    n = store.prompt
    return min(n, max(1, int(Fraction(budget.keep or 1) * n + Fraction(1, 2))))


def identity(n: int) -> Reduction:
    """All n entries."""
    return Reduction.pick(np.arange(n), n, "cache")
