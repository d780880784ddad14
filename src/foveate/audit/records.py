"""What an audit writes down: items of a workload, what was seen of each request, rows and blocks.

Every figure of a receipt follows from rows and blocks alone (figures.py); nothing else is kept.
Times are seconds on the run's own monotonic clock. None means "not measured", never zero.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal

ErrorKind = Literal[
    "http",  # a status of 400 or above
    "timeout",  # no end within the request's time limit
    "connection",  # refused, reset, closed in the middle
    "protocol",  # an answer that is not what the API promises
    "model",  # another model answered than before
    "engine",  # our own engine refused or failed
]


@dataclass(frozen=True)
class Picture:
    """One encoded picture file, as it is sent. `mime` such as "image/png"."""

    data: bytes = field(repr=False)
    mime: str

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the bytes, hexadecimal."""
        return hashlib.sha256(self.data).hexdigest()


@dataclass(frozen=True)
class Item:
    """One question of a workload. `id` is unique in it; `references` is empty in logs without
    reference answers, and then `metric` is "loyalty": agreement with the uncompressed answer.
    """

    id: str
    pictures: tuple[Picture, ...]
    question: str
    references: tuple[str, ...]
    metric: str
    category: str
    max_new_tokens: int


@dataclass(frozen=True)
class Observed:
    """What the client saw of one request.

    sent_s: the request began to leave; first_s: first token; done_s: the end, also that of a failure;
    chunk_s: when each piece of text came (the first equals first_s). error_detail is one line.
    visual_tokens and kv_bytes: what the language model got, where the server says so.
    """

    sent_s: float
    done_s: float
    first_s: float | None = None
    chunk_s: tuple[float, ...] = ()
    text: str = ""
    model: str | None = None
    finish: str | None = None
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    visual_tokens: int | None = None
    kv_bytes: int | None = None
    error: ErrorKind | None = None
    error_detail: str = ""


@dataclass(frozen=True)
class Row:
    """One request of a run, the unit of the raw rows.

    arm: "baseline" or the candidate's name; load: such as "closed:8" or "open:5"; block: number of
    the interleaved block; place: whose turn the arm had within the block; sequence: number of the
    request within (arm, load, block); warmup rows count nowhere. intended_s: when it ought to have
    left; latency in open loop counts from there. judged: the score of a judge that cannot be
    computed again from text, None for built-in metrics.
    """

    arm: str
    load: str
    block: int
    place: int
    sequence: int
    warmup: bool
    item: str
    category: str
    metric: str
    references: tuple[str, ...]
    pictures: tuple[str, ...]  # digests
    intended_s: float
    observed: Observed
    judged: float | None = None

    @property
    def key(self) -> tuple[str, str, int, int]:
        """What makes a request one and the same when a run is resumed."""
        return (self.arm, self.load, self.block, self.sequence)


@dataclass(frozen=True)
class Gauges:
    """Counters of a target at one moment; what a machine does not have is None.

    cpu_s and joules add up from an arbitrary start; the others are levels or peaks since `reset`.
    """

    cpu_s: float | None = None
    rss_peak_bytes: int | None = None
    device_peak_bytes: int | None = None
    kv_peak_bytes: int | None = None
    device_s: float | None = None
    joules: float | None = None


@dataclass(frozen=True)
class Block:
    """One arm's turn in one block: its window and what its counters gained in it.

    client_cpu_s is the auditor's own process; for a target inside it, cpu_s is the same counter.
    """

    arm: str
    load: str
    block: int
    place: int
    start_s: float
    end_s: float
    requests: int
    gained: Gauges
    client_cpu_s: float | None = None
