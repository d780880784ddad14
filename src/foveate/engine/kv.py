"""The KV entries of one sequence at one layer: own length per head, in blocks, freed when dropped.

Heads that hold equally many entries share one tensor, so that plain attention runs on it as it is:
nothing is gathered while decoding. Capacity is a whole number of blocks of `BLOCK_ENTRIES`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from foveate.core.errors import InputError
from foveate.core.views import Reduction

BLOCK_ENTRIES = 16


def blocks(entries: int) -> int:
    """Entries of capacity that hold `entries`: the next whole number of blocks."""
    return -(-entries // BLOCK_ENTRIES) * BLOCK_ENTRIES


@dataclass
class HeadGroup:
    """KV heads with equally many entries: keys (h, capacity, a), values (h, capacity, b), origin
    (h or 1, capacity): the index of each entry in its sequence. `n` entries are in use.
    """

    heads: tuple[int, ...]
    keys: Tensor
    values: Tensor
    origin: Tensor
    n: int

    @property
    def k(self) -> Tensor:
        return self.keys[:, : self.n]

    @property
    def v(self) -> Tensor:
        return self.values[:, : self.n]

    @property
    def at(self) -> Tensor:
        return self.origin[:, : self.n]

    @property
    def nbytes(self) -> int:
        """Bytes allocated for keys and values on the model's device."""
        return self.keys.nbytes + self.values.nbytes + self.digest_bytes

    @property
    def digest_bytes(self) -> int:
        """Bytes of what stands for entries that are elsewhere."""
        return 0

    @property
    def offloaded_bytes(self) -> int:
        """Bytes of entries in host memory."""
        return 0

    def before(self, length: int) -> HeadGroup:
        """The group once entries in other places know of no token after the first `length`."""
        return self

    def clone(self) -> HeadGroup:
        """An independent copy."""
        return HeadGroup(
            self.heads, self.keys.clone(), self.values.clone(), self.origin.clone(), self.n
        )

    def truncate(self, entries: int) -> None:
        """Forget the last `entries` entries."""
        self.n = max(0, self.n - entries)
        room = blocks(self.n)
        if room < self.keys.shape[1]:
            self.keys, self.values = self.keys[:, :room].clone(), self.values[:, :room].clone()
            self.origin = self.origin[:, :room].clone()

    def append(self, k: Tensor, v: Tensor, origin: Tensor) -> None:
        """Entries (h, s, a), (h, s, b) at sequence indices origin (s,)."""
        need = self.n + k.shape[1]
        if need > self.keys.shape[1]:
            room = blocks(need)
            self.keys, self.values = _grown(self.k, room), _grown(self.v, room)
            self.origin = _grown(self.at[..., None], room)[..., 0]
        self.keys[:, self.n : need] = k
        self.values[:, self.n : need] = v
        self.origin[:, self.n : need] = origin
        self.n = need


def _grown(x: Tensor, room: int) -> Tensor:
    out = x.new_empty(x.shape[0], room, x.shape[2])
    out[:, : x.shape[1]] = x
    return out


class LayerStore:
    """One sequence's entries at one layer; `prompt` is how many its prompt brought a head."""

    def __init__(self) -> None:
        self.groups: list[HeadGroup] = []
        self.prompt = 0

    @property
    def heads(self) -> int:
        return sum(len(g.heads) for g in self.groups)

    @property
    def lengths(self) -> tuple[int, ...]:
        """Entries of each KV head."""
        found = {h: g.n for g in self.groups for h in g.heads}
        return tuple(found[h] for h in sorted(found))

    @property
    def entries(self) -> int:
        return sum(self.lengths)

    @property
    def nbytes(self) -> int:
        """Bytes allocated for keys and values on the model's device."""
        return sum(g.nbytes for g in self.groups)

    @property
    def digest_bytes(self) -> int:
        """Bytes, among these, of what stands for entries that are in host memory."""
        return sum(g.digest_bytes for g in self.groups)

    @property
    def offloaded_bytes(self) -> int:
        """Bytes of entries in host memory."""
        return sum(g.offloaded_bytes for g in self.groups)

    @property
    def bytes_per_entry(self) -> int:
        """Bytes of one key and one value of one head."""
        if not self.groups:
            return 0
        g = self.groups[0]
        return int(g.keys[0, :1].nbytes + g.values[0, :1].nbytes)

    def append(self, k: Tensor, v: Tensor, origin: Tensor) -> None:
        """Entries k (Hkv, s, a), v (Hkv, s, b), written at sequence indices origin (s,) int."""
        if not self.groups:
            heads, s = k.shape[0], k.shape[1]
            self.prompt = s
            group = HeadGroup(
                tuple(range(heads)),
                k.new_empty(heads, blocks(s), k.shape[2]),
                v.new_empty(heads, blocks(s), v.shape[2]),
                torch.empty(1, blocks(s), dtype=torch.int32, device=k.device),
                0,
            )
            self.groups = [group]
        for group in self.groups:
            here = k if len(group.heads) == k.shape[0] else k[list(group.heads)]
            there = v if len(group.heads) == v.shape[0] else v[list(group.heads)]
            group.append(here, there, origin.to(group.origin))

    def head(self, index: int) -> tuple[Tensor, Tensor, Tensor]:
        """Keys (n, a), values (n, b) and origin (n,) of one KV head, as views."""
        for g in self.groups:
            if index in g.heads:
                i = g.heads.index(index)
                return g.k[i], g.v[i], g.at[i if g.origin.shape[0] > 1 else 0]
        raise InputError(f"KV head {index} is out of range: this layer has {self.heads}")

    def reduce(self, chosen: Sequence[Reduction]) -> None:
        """Keep what each head's Reduction says (the same W for keys and values); the rest is freed.

        Errors: InputError if a reduction was made for another number of entries.
        """
        lengths = self.lengths
        if len(chosen) != len(lengths):
            raise InputError(f"{len(chosen)} reductions for {len(lengths)} KV heads")
        for h, (r, n) in enumerate(zip(chosen, lengths, strict=True)):
            if r.n != n:
                raise InputError(f"head {h} holds {n} entries, its reduction is over {r.n}")
        if all(r.is_identity for r in chosen):
            return
        self.groups = self.reduced(dict(enumerate(chosen)))

    def reduced(self, chosen: Mapping[int, Reduction]) -> list[HeadGroup]:
        """Groups that hold, of each of these heads, what its Reduction says."""
        by_count: dict[int, list[int]] = {}
        for h, r in sorted(chosen.items()):
            by_count.setdefault(r.k, []).append(h)
        groups = []
        for count, heads in sorted(by_count.items()):
            parts = [_reduced(*self.head(h), chosen[h]) for h in heads]
            k, v = torch.stack([p[0] for p in parts]), torch.stack([p[1] for p in parts])
            at, room = torch.stack([p[2] for p in parts]), blocks(count)
            groups.append(
                HeadGroup(
                    tuple(heads),
                    _grown(k, room),
                    _grown(v, room),
                    _grown(at[..., None], room)[..., 0],
                    count,
                )
            )
        return groups

    def take_back(self, length: int) -> None:
        """Forget the entries of all tokens after the first `length` of the sequence."""
        self.groups = [g.before(length) for g in self.groups]
        groups: list[HeadGroup] = []
        for g in self.groups:
            counts = (g.at < length).sum(1)
            if bool((counts == counts[0]).all()):
                g.n = int(counts[0])
                groups.append(g)
                continue
            # A policy kept other entries in other heads of a group: each forgets its own.
            stays = {h: torch.nonzero(self.head(h)[2] < length)[:, 0].cpu() for h in g.heads}
            groups += self.reduced(
                {h: Reduction.pick(x.numpy(), g.n, "cache") for h, x in stays.items()}
            )
        self.groups = groups

    def truncate(self, entries: int) -> None:
        """Forget the last `entries` entries of every head."""
        for g in self.groups:
            g.truncate(entries)

    def clone(self) -> LayerStore:
        """An independent copy."""
        other = LayerStore()
        other.groups, other.prompt = [g.clone() for g in self.groups], self.prompt
        return other


def _reduced(k: Tensor, v: Tensor, at: Tensor, r: Reduction) -> tuple[Tensor, Tensor, Tensor]:
    anchor = torch.as_tensor(r.anchor, device=k.device)
    if r.rows is None or r.cols is None or r.weights is None:
        return k[anchor], v[anchor], at[anchor]
    rows, cols = (torch.as_tensor(np.asarray(x), device=k.device) for x in (r.rows, r.cols))
    weights = torch.as_tensor(np.asarray(r.weights, np.float32), device=k.device)[:, None]
    out = []
    for x in (k, v):
        total = torch.zeros(r.k, x.shape[1], dtype=torch.float32, device=x.device)
        out.append(total.index_add_(0, rows, x[cols].float() * weights).to(x.dtype))
    return out[0], out[1], at[anchor]
