"""Figures of one arm under one load: latencies, rates, errors, counters.

Latencies are those of requests that succeeded; failures are counted beside them, by kind. In open
loops a latency counts from the intended departure, so that a server that stalls cannot hide it by
delaying the client; in closed loops from the real one.

Intervals (95 %): error rates by Wilson, quantiles by order statistics, without resampling; both with
the design effect of blocks, as requests that wait in one queue or meet one fault are not independent.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from foveate.audit.records import Block, Gauges, Row
from foveate.core.errors import InputError
from foveate.measure.quantiles import block_quantiles, design_effect
from foveate.measure.stats import Interval, wilson

CONFIDENCE = 0.95
"""Of every interval in the figures."""

LATENCIES = ("ttft", "tpot", "itl", "e2e")
"""Time to first token, time per output token after the first, gaps between pieces, whole answer."""

QUANTILES = {"p50": 0.50, "p95": 0.95, "p99": 0.99}


@dataclass
class Turn:
    """One arm's turn in one block: its rows in order, without warm-up, and its window."""

    rows: list[Row] = field(default_factory=list)
    blocks: list[Block] = field(default_factory=list)
    _times: dict[str, Any] = field(default_factory=dict)

    @property
    def succeeded(self) -> list[Row]:
        return [r for r in self.rows if r.observed.error is None]

    def latency_ms(self, name: str) -> Any:
        """Latencies of successful requests, float64 (n,); n is 0 where none was measured."""
        if not self._times:
            self._times = latencies_ms(self.rows)
        return self._times[name]

    @property
    def window_s(self) -> float | None:
        """Length of the turn; None if no block was recorded for it."""
        total = sum(b.end_s - b.start_s for b in self.blocks)
        return total if total > 0 else None

    def gained(self, name: str) -> float | None:
        """What a counter gained over the turn; None if any part of it was not measured."""
        found = [getattr(b.gained, name) for b in self.blocks]
        return None if not found or None in found else float(sum(found))

    def per_request(self, name: str) -> float | None:
        """A counter's gain over the requests that were asked in the turn, warm-up not counted."""
        gained, asked = self.gained(name), sum(b.requests for b in self.blocks)
        return None if gained is None or not asked else gained / asked

    def rate(self, amount: float | None) -> float | None:
        """An amount a second of the turn's window."""
        return None if amount is None or self.window_s is None else amount / self.window_s

    def output_tokens(self) -> int | None:
        """Tokens of successful answers; None if the server did not count one of them."""
        counts = [r.observed.completion_tokens for r in self.succeeded]
        return None if None in counts else sum(c for c in counts if c is not None)

    def good(self, slo: Mapping[str, float]) -> int | None:
        """How many requests succeeded within every bound of the SLO; None if one of them cannot be
        told because its latency was not measured.
        """
        met = [meets(r, slo) for r in self.rows]
        return None if None in met else sum(1 for m in met if m)


Cells = dict[str, dict[str, dict[int, Turn]]]
"""arm -> load -> block number -> turn."""


def cells(rows: Iterable[Row], blocks: Iterable[Block]) -> Cells:
    """Rows and blocks by arm, load and block. InputError if a request or a turn occurs twice."""
    found: Cells = defaultdict(lambda: defaultdict(lambda: defaultdict(Turn)))
    for row in rows:
        if not row.warmup:
            found[row.arm][row.load][row.block].rows.append(row)
    for block in blocks:
        found[block.arm][block.load][block.block].blocks.append(block)
    for arm, loads in found.items():
        for load, turns in loads.items():
            for number, turn in turns.items():
                # The order in which they ended must not change a sum's last digit.
                turn.rows.sort(key=lambda r: r.sequence)
                turn.blocks.sort(key=lambda b: b.start_s)
                _once(turn.rows, arm, load, number)
    return found


def _once(rows: Sequence[Row], arm: str, load: str, block: int) -> None:
    for a, b in zip(rows, rows[1:], strict=False):
        if a.sequence == b.sequence:
            raise InputError(
                f"request {a.sequence} of arm {arm!r} under {load}, block {block}, is in the rows "
                "twice: each request counts once"
            )


def start_s(row: Row) -> float:
    """Where the latency of a request begins: intended departure in open loops, else the real one."""
    return row.observed.sent_s if row.load.startswith("closed") else row.intended_s


def latencies_ms(rows: Iterable[Row]) -> dict[str, Any]:
    """Latencies in milliseconds by name, float64 arrays; each request gives at most one of each but
    for itl, which has one a gap. Failures, and what was not measured, give none.
    """
    ttft, tpot, e2e = [], [], []
    pieces: list[float] = []
    firsts: list[int] = []
    for row in rows:
        seen = row.observed
        if seen.error is not None:
            continue
        start = start_s(row)
        e2e.append(seen.done_s - start)
        if seen.first_s is not None:
            ttft.append(seen.first_s - start)
        each = tpot_s(row)
        if each is not None:
            tpot.append(each)
        if seen.chunk_s:
            firsts.append(len(pieces))
            pieces.extend(seen.chunk_s)
    # One difference over all pieces, without those from one request's last to the next one's first.
    gaps = np.delete(np.diff(pieces), np.asarray(firsts[1:], dtype=np.int64) - 1)
    named = {"ttft": ttft, "tpot": tpot, "itl": gaps, "e2e": e2e}
    return {name: 1e3 * np.asarray(v, dtype=np.float64) for name, v in named.items()}


def tpot_s(row: Row) -> float | None:
    """Seconds per output token after the first, up to the end of the answer; None where the server
    did not count tokens, gave one token only, or sent several in one piece.
    """
    seen = row.observed
    if seen.first_s is None or seen.completion_tokens is None or seen.completion_tokens < 2:
        return None
    if len(seen.chunk_s) < 2 and seen.completion_tokens > 2:
        return None
    # The stop token is counted and has no text: it came with the end.
    return (seen.done_s - seen.first_s) / (seen.completion_tokens - 1)


def meets(row: Row, slo: Mapping[str, float]) -> bool | None:
    """Whether a request succeeded within the SLO; a failure does not, an answer of one token meets
    any tpot. None if a latency that is asked for was not measured.
    """
    seen = row.observed
    if seen.error is not None:
        return False
    start, unknown = start_s(row), False
    for name, bound_ms in slo.items():
        taken: float | None
        if name == "ttft_ms":
            taken = None if seen.first_s is None else seen.first_s - start
        elif name == "e2e_ms":
            taken = seen.done_s - start
        elif seen.completion_tokens == 1:
            continue
        else:
            taken = tpot_s(row)
        if taken is None:
            unknown = True
        elif 1e3 * taken > bound_ms:
            return False
    return None if unknown else True


def load_figures(turns: Mapping[int, Turn], slo: Mapping[str, float] | None) -> dict[str, Any]:
    """The figures of one arm under one load, ready for JSON; None where nothing was measured."""
    ordered = [turns[number] for number in sorted(turns)]
    rows = [row for turn in ordered for row in turn.rows]
    failed = Counter(r.observed.error for r in rows if r.observed.error is not None)
    whole = Turn(rows, [b for turn in ordered for b in turn.blocks])
    found: dict[str, Any] = {
        "requests": len(rows),
        "blocks": sum(1 for turn in ordered if turn.rows),
        "errors": {str(kind): failed[kind] for kind in sorted(failed)},
        "error_rate": None,
        "error_design_effect": None,
    }
    if rows:
        rate, effect = error_rate(turns)
        found["error_rate"], found["error_design_effect"] = span(rate), effect
    for name in LATENCIES:
        found[f"{name}_ms"] = _quantiles([turn.latency_ms(name) for turn in ordered])
    done = whole.succeeded
    found["throughput_rps"] = whole.rate(len(done)) if rows else None
    if slo:
        found["goodput_rps"] = whole.rate(whole.good(slo)) if rows else None
    found["tokens_per_s"] = whole.rate(whole.output_tokens()) if done else None
    for name, counter in (("cpu_s", "cpu_s"), ("device_s", "device_s"), ("joules", "joules")):
        found[f"{name}_per_request"] = whole.per_request(counter)
    for name in ("rss_peak_bytes", "device_peak_bytes", "kv_peak_bytes"):
        found[name] = _peak([b.gained for b in whole.blocks], name)
    found["visual_tokens"] = _mean(r.observed.visual_tokens for r in done)
    found["prompt_tokens"] = _mean(r.observed.prompt_tokens for r in done)
    found["completion_tokens"] = _mean(r.observed.completion_tokens for r in done)
    found["kv_bytes"] = _mean(r.observed.kv_bytes for r in done)
    return found


def error_rate(turns: Mapping[int, Turn]) -> tuple[Interval, float]:
    """The share of failed requests, and the design effect in its interval: failures come in bursts,
    and a burst is no set of independent failures.
    """
    asked = [turns[number].rows for number in sorted(turns) if turns[number].rows]
    failed = [sum(1 for r in rows if r.observed.error is not None) for rows in asked]
    sizes = [len(rows) for rows in asked]
    effect = design_effect(failed, sizes)
    return wilson(sum(failed), sum(sizes), CONFIDENCE, design_effect=effect), effect


def span(interval: Interval) -> dict[str, float | None]:
    """An interval for JSON; an end that the sample is too small to give is None."""
    ends = (interval.low, interval.high)
    low, high = (float(x) if math.isfinite(x) else None for x in ends)
    return {"estimate": float(interval.estimate), "low": low, "high": high}


def _quantiles(blocks: Sequence[Any]) -> dict[str, Any] | None:
    """p50, p95 and p99 over all blocks, given in order of time."""
    n = sum(len(b) for b in blocks)
    if not n:
        return None
    found = block_quantiles(blocks, tuple(QUANTILES.values()), CONFIDENCE)
    return {"n": n} | {name: span(x) for name, x in zip(QUANTILES, found, strict=True)}


def _peak(gauges: Sequence[Gauges], name: str) -> int | None:
    """The highest peak; None if any turn did not measure it, as the highest may be among those."""
    found = [getattr(g, name) for g in gauges]
    return None if not found or None in found else int(max(found))


def _mean(values: Iterable[int | None]) -> float | None:
    found = [v for v in values if v is not None]
    return sum(found) / len(found) if found else None
