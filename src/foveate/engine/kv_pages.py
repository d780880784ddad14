"""Heads whose prompt lies in host memory, page by page: a step brings back the pages that it attends to.

On the device such a head holds its newest entries, the mean key of every page, and `wanted` places
for pages. A page that is wanted again stays where it is; only others are copied. Pages in host memory
are never written again, so copies of a sequence share them. On a machine without an accelerator host
memory and the device's are the same: pages are still held apart, and only retrieved ones are seen.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from foveate.core.errors import PlanError, UnsupportedError
from foveate.core.language import Pages
from foveate.engine.kv import HeadGroup, LayerStore, blocks

Ask = Callable[[Tensor, Any], Any]
"""(query (h, g, a), the group as a `PageView`) -> (h, wanted) pages."""


@dataclass
class HostPages:
    """Whole pages of some heads in host memory: keys (h, p, size, a), values (h, p, size, b), and
    origin (p, size), the index of each entry in its sequence.
    """

    keys: Tensor
    values: Tensor
    origin: Tensor

    @classmethod
    def of(cls, k: Tensor, v: Tensor, at: Tensor, size: int) -> HostPages:
        """Copies of entries k (h, n, a), v (h, n, b) at (n,); n is a whole number of pages."""
        keys, values = (_to_host(x.unflatten(-2, (-1, size))) for x in (k, v))
        return cls(keys, values, at.reshape(-1, size).cpu())

    @property
    def count(self) -> int:
        return int(self.origin.shape[0])

    @property
    def nbytes(self) -> int:
        return self.keys.nbytes + self.values.nbytes


def _to_host(x: Tensor) -> Tensor:
    """A copy of its own in host memory, page-locked where x is on a GPU."""
    if x.device.type != "cuda":
        return x.cpu().clone(memory_format=torch.contiguous_format)
    out = torch.empty(x.shape, dtype=x.dtype, pin_memory=True)
    return out.copy_(x)


@dataclass
class PagedGroup(HeadGroup):
    """A head group whose first `wanted * size` entries are places for pages; a `PageView`.

    held (h, wanted): which page lies in each place. mean (h, p, a): the mean key of each page.
    """

    host: HostPages
    mean: Tensor
    spec: Pages
    held: np.ndarray
    ask: Ask

    @property
    def places(self) -> int:
        """Entries at the front that are places for pages."""
        return self.spec.wanted * self.spec.size

    @property
    def digest_bytes(self) -> int:
        return self.mean.nbytes

    @property
    def offloaded_bytes(self) -> int:
        return self.host.nbytes

    def retrieve(self, query: Tensor) -> None:
        """Bring the pages that one query (h, g, a) wants to their places."""
        chosen = np.asarray(self.ask(query, self), np.int64)
        if chosen.shape != self.held.shape or any(len(set(row)) < len(row) for row in chosen):
            raise PlanError(
                f"retrieve() answered {chosen.tolist()}; {len(self.heads)} heads want "
                f"{self.spec.wanted} different pages each"
            )
        if chosen.min() < 0 or chosen.max() >= self.host.count:
            raise PlanError(f"retrieve() named a page outside 0 to {self.host.count - 1}")
        rows, places, pages = [], [], []
        for h, (want, have) in enumerate(zip(chosen, self.held, strict=True)):
            new = np.setdiff1d(want, have)
            free = np.flatnonzero(~np.isin(have, want))
            rows += [h] * len(new)
            places += free[: len(new)].tolist()
            pages += new.tolist()
        if not rows:
            return
        self.held[rows, places] = pages
        size, device = self.spec.size, self.keys.device
        at = torch.as_tensor(places)[:, None] * size + torch.arange(size)
        row, page = torch.as_tensor(rows), torch.as_tensor(pages)
        there = row[:, None].to(device), at.to(device)
        self.keys[there] = self.host.keys[row, page].to(device, non_blocking=True)
        self.values[there] = self.host.values[row, page].to(device, non_blocking=True)
        self.origin[there] = self.host.origin[page].to(device)

    def clone(self) -> PagedGroup:
        plain = super().clone()
        return PagedGroup(
            plain.heads,
            plain.keys,
            plain.values,
            plain.origin,
            plain.n,
            self.host,
            self.mean,
            self.spec,
            self.held.copy(),
            self.ask,
        )

    def truncate(self, entries: int) -> None:
        if self.n - entries < self.places:
            raise UnsupportedError(f"{entries} entries reach into pages that are in host memory")
        super().truncate(entries)

    def before(self, length: int) -> HeadGroup:
        """Without the pages that know of a later token; what is left of a page that was cut becomes
        plain entries. Where no more pages are left than are wanted, all entries are plain.
        """
        host = self.host
        if length > int(host.origin[-1, -1]):
            return self
        entries = int((host.origin < length).sum())
        whole = entries // self.spec.size
        device = self.keys.device
        k, v = (x.flatten(1, 2)[:, :entries].to(device) for x in (host.keys, host.values))
        at = host.origin.view(-1)[:entries].to(device)
        if whole <= self.spec.wanted:
            return grouped(self.heads, k, v, at.expand(len(self.heads), -1))
        return paged(self.heads, k, v, at, whole, self.spec, self.ask)


def grouped(heads: Sequence[int], k: Tensor, v: Tensor, at: Tensor) -> HeadGroup:
    """A plain group of entries k (h, n, a), v (h, n, b), at (h, n)."""
    h, n = at.shape
    group = HeadGroup(
        tuple(heads),
        k.new_empty(h, blocks(n), k.shape[2]),
        v.new_empty(h, blocks(n), v.shape[2]),
        at.new_empty(h, blocks(n), dtype=torch.int32),
        n,
    )
    group.keys[:, :n], group.values[:, :n], group.origin[:, :n] = k, v, at
    return group


def paged(
    heads: Sequence[int], k: Tensor, v: Tensor, at: Tensor, count: int, spec: Pages, ask: Ask
) -> PagedGroup:
    """Heads with entries k (h, n, a), v (h, n, b) at (n,), the first `count` pages of them in host
    memory; the first ones lie in the places until a query asks for others.
    """
    cut, size = count * spec.size, spec.size
    host = HostPages.of(k[:, :cut], v[:, :cut], at[:cut], size)
    mean = k[:, :cut].unflatten(1, (count, size)).float().mean(2).to(k.dtype)
    front = spec.wanted * size
    rows = at.expand(len(heads), -1)
    k, v, rows = (torch.cat([x[:, :front], x[:, cut:]], 1) for x in (k, v, rows))
    g = grouped(heads, k, v, rows)
    held = np.tile(np.arange(spec.wanted), (len(heads), 1))
    return PagedGroup(g.heads, g.keys, g.values, g.origin, g.n, host, mean, spec, held, ask)


def offload(store: LayerStore, chosen: Mapping[int, Pages], ask: Ask) -> list[HeadGroup]:
    """Groups of the heads whose prompts go to host memory; the store is left as it is."""
    by_spec: dict[Pages, list[int]] = {}
    for head, spec in sorted(chosen.items()):
        by_spec.setdefault(spec, []).append(head)
    out: list[HeadGroup] = []
    for spec, heads in by_spec.items():
        parts = [store.head(h) for h in heads]
        k, v = torch.stack([p[0] for p in parts]), torch.stack([p[1] for p in parts])
        at = parts[0][2]
        if any(not torch.equal(p[2], at) for p in parts[1:]):
            raise UnsupportedError(
                "pages are cut from whole prompts: these heads hold other entries"
            )
        count = spec.count(len(at))
        if count < spec.wanted:
            raise PlanError(f"{spec.wanted} pages of {spec.size} are wanted; there are {count}")
        out.append(paged(heads, k, v, at, count, spec, ask))
    return out
