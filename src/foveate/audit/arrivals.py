"""Loads: how many requests are on their way at a time, or when each of them is meant to leave.

A closed loop keeps `concurrency` requests in flight and sends the next when one ends: the server
sets the pace, and a slow server is asked less often. An open loop sends at times that do not depend
on the server, as users do: Poisson arrivals at a rate, or the times of a recorded trace.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path

import numpy as np

from foveate.core.errors import InputError


@dataclass(frozen=True)
class Closed:
    """`concurrency` requests in flight at all times. Text: "closed:8"."""

    concurrency: int

    def __post_init__(self) -> None:
        if self.concurrency < 1:
            raise InputError(f"closed:{self.concurrency} is out of range: at least 1 request")

    def __str__(self) -> str:
        return f"closed:{self.concurrency}"


@dataclass(frozen=True)
class Open:
    """Poisson arrivals: `rate_per_s` requests a second in the mean. Text: "open:5"."""

    rate_per_s: float

    def __post_init__(self) -> None:
        if not (math.isfinite(self.rate_per_s) and self.rate_per_s > 0):
            raise InputError(f"open:{self.rate_per_s} is out of range: above 0 requests a second")

    def __str__(self) -> str:
        return f"open:{self.rate_per_s:g}"


@dataclass(frozen=True)
class Trace:
    """Recorded arrivals. times_s: ascending, the first is 0. Text: "trace:FILE"."""

    times_s: tuple[float, ...] = field(repr=False)
    source: str

    def __post_init__(self) -> None:
        t = self.times_s
        if not t or t[0] != 0 or not all(math.isfinite(x) for x in t):
            raise InputError(f"the trace {self.source} needs finite times that begin at 0")
        if any(b < a for a, b in zip(t, t[1:], strict=False)):
            raise InputError(f"the trace {self.source} goes back in time: sort it first")

    @property
    def digest(self) -> str:
        """SHA-256 of the times, hexadecimal: the file's name says nothing about them."""
        return sha256(np.asarray(self.times_s, dtype="<f8").tobytes()).hexdigest()

    def __str__(self) -> str:
        return f"trace:{self.source}"


Load = Closed | Open | Trace


def parse_load(text: str) -> Load:
    """The load that a text names; InputError says what is wrong. A trace's file is read here."""
    kind, _, value = text.strip().partition(":")
    try:
        if kind == "closed":
            return Closed(int(value))
        if kind == "open":
            return Open(float(value))
    except InputError:
        raise
    except ValueError:
        raise InputError(f"{text!r}: {value!r} is not a number; write closed:8 or open:5") from None
    if kind == "trace" and value:
        return Trace(_read_trace(Path(value)), value)
    raise InputError(f"{text!r} is no load: closed:8, open:5 (requests a second) or trace:FILE")


def _read_trace(path: Path) -> tuple[float, ...]:
    """Seconds since the first line. A line is a number of seconds or an object with `time_s`."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"the trace {path} cannot be read: {error}") from None
    times: list[float] = []
    for number, line in enumerate(lines, 1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        try:
            value = json.loads(line)
            times.append(float(value["time_s"] if isinstance(value, dict) else value))
        except (ValueError, KeyError, TypeError, OverflowError):
            raise InputError(
                f"{path}, line {number}: expected a number of seconds or an object with time_s"
            ) from None
    if not times:
        raise InputError(f"the trace {path} holds no times")
    return tuple(t - times[0] for t in times)


def schedule(load: Open | Trace, count: int, *, seed: int, block: int) -> tuple[float, ...]:
    """When each of `count` requests of a block leaves, in seconds after the block began.

    It follows from seed, load and block alone: every arm of a block meets the same arrivals. Poisson
    gaps are exponential with mean 1 / rate. A trace is played on from block to block, `count` times
    each, and begins again at its end after its mean gap; the first of a block leaves at once.
    """
    if count < 0 or block < 0 or seed < 0:
        raise InputError(f"count = {count}, block = {block}, seed = {seed}: at least 0 each")
    if isinstance(load, Open):
        word = int.from_bytes(sha256(str(load).encode()).digest()[:8], "big")
        draw = np.random.Generator(np.random.Philox(np.random.SeedSequence([seed, word, block])))
        gaps = draw.standard_exponential(count) / load.rate_per_s
        return tuple(float(x) for x in np.cumsum(gaps))
    n = len(load.times_s)
    if n < 2 and count > 1:
        raise InputError(f"the trace {load.source} holds one time: it cannot be played on")
    mean_gap = load.times_s[-1] / (n - 1) if n > 1 else 0.0
    lap_s = load.times_s[-1] + mean_gap
    places = range(block * count, block * count + count)
    times = [load.times_s[i % n] + (i // n) * lap_s for i in places]
    return tuple(t - times[0] for t in times)
