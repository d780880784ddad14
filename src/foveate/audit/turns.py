"""The order of an audit: which arm asks which items, in which turn; and what an interruption left.

In every block and under every load all arms get the same items, one arm after the other. Every second
block turns the order of the one before round, and each pair of blocks begins one arm later, so that
no arm always stands first, or behind the same other, and drift of the machine hits all alike.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from foveate.audit.journal import Kept, Key
from foveate.audit.records import Block, Gauges, Item, Row
from foveate.audit.spec import AuditSpec


@dataclass(frozen=True)
class Turn:
    """One arm's requests in one block under one load; `place` is its rank among the arms there."""

    arm: str
    load: str
    block: int
    place: int
    items: tuple[Item, ...]

    @property
    def key(self) -> Key:
        return (self.arm, self.load, self.block)


def turns(spec: AuditSpec, items: Sequence[Item], loads: Sequence[str]) -> Iterator[Turn]:
    """Every turn of an audit, in order; `loads` are the names of the loads. Items are asked in the
    workload's order until all were asked, then again and again in orders that follow from the seed.
    """
    names = [arm.name for arm in spec.arms]
    rng = np.random.default_rng([spec.seed, 7])
    start = int(rng.integers(len(names)))
    drawn = _stream(len(items), spec.blocks * len(loads) * spec.requests, rng)
    for block in range(spec.blocks):
        for number, load in enumerate(loads):
            at = (block * len(loads) + number) * spec.requests
            some = tuple(items[i] for i in drawn[at : at + spec.requests])
            for place, name in enumerate(
                _order(names, start + block // 2 + number, block % 2 == 1)
            ):
                yield Turn(name, load, block, place, some)


def _order(names: Sequence[str], shift: int, reverse: bool) -> list[str]:
    shift %= len(names)
    found = [*names[shift:], *names[:shift]]
    return found[::-1] if reverse else found


def _stream(n: int, total: int, rng: np.random.Generator) -> list[int]:
    out = list(range(n))  # the workload's order: any first part of it is a sample by category
    while len(out) < total:
        out += (int(i) for i in rng.permutation(n))
    return out[:total]


def parts(kept: Kept) -> dict[Key, list[Block]]:
    """For each turn that has rows and did not end: a block a session, from its first to its last
    finished request. Counters are unknown: those of a killed session died with it.
    """
    rows: dict[Key, dict[int, list[Row]]] = {}
    for row, session in zip(kept.rows, kept.session, strict=True):
        key = (row.arm, row.load, row.block)
        if key not in kept.blocks and not row.warmup:
            rows.setdefault(key, {}).setdefault(session, []).append(row)
    return {
        key: [_part(found) for _, found in sorted(sessions.items())]
        for key, sessions in rows.items()
    }


def _part(rows: Sequence[Row]) -> Block:
    one = rows[0]
    start_s = min(min(r.intended_s, r.observed.sent_s) for r in rows)
    end_s = max(r.observed.done_s for r in rows)
    return Block(one.arm, one.load, one.block, one.place, start_s, end_s, len(rows), Gauges())
