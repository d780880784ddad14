"""Planted targets on a virtual clock: latencies, errors and answers whose truth is known.

Everything is drawn beforehand from the seed. Both arms share a drift: latencies double over the
run, as on a machine that gets warm, and errors become more frequent. Answers of one item are drawn
together, so that the share of discordant pairs is planted.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.optimize import brentq
from scipy.special import ndtr

from foveate.audit.load import parse_load, run_block
from foveate.audit.records import Block, Gauges, Item, Observed, Row
from foveate.audit.virtual import VirtualLoop

WORDS = ("red", "green", "blue", "white")
SIGMA = 0.5  # of the logarithm of a latency
FIRST = 0.4  # share of an answer's time until its first token
TOKENS = 11


@dataclass(frozen=True)
class Arm:
    """One planted arm. errors: at the start of the run; they double as latencies do.

    lost, won: share of binary items that only the baseline, or only this arm, gets right.
    words: probabilities that a graded answer holds 0 to 4 of the reference's four words.
    """

    name: str
    median_s: float = 0.1
    errors: float = 0.01
    lost: float = 0.0
    won: float = 0.0
    words: tuple[float, ...] = (0.05, 0.10, 0.15, 0.20, 0.50)


RIGHT = 0.8  # share of binary items that the baseline gets right


def drift(now_s: float, length_s: float) -> float:
    """The factor on latencies and error rates: from 1 to 2 over the run, with a slow swing."""
    part = now_s / length_s
    return 2.0**part * (1 + 0.05 * math.sin(20 * part))


class Target:
    """Answers by the draws; times are those of the running loop."""

    def __init__(self, arm: Arm, items: int, requests: int, seed: int, length_s: float) -> None:
        self.arm, self._plant, self._length_s = arm.name, arm, length_s
        word = sum(arm.name.encode())
        rng = np.random.default_rng([seed, word])
        self._noise = np.exp(SIGMA * rng.standard_normal(requests)).tolist()
        self._failure = rng.random(requests).tolist()
        self._count = 0
        shared = np.random.default_rng([seed, 1]).random(items)
        # 0..RIGHT: right on the baseline; the first `lost` of those are wrong here, and `won` of
        # those that are wrong on the baseline are right here.
        right = ((shared >= arm.lost) & (shared < RIGHT)) | (
            (shared >= RIGHT) & (shared < RIGHT + arm.won)
        )
        count = rng.choice(5, items, p=arm.words)
        self._answers = [
            ("yes" if right[i] else "no") if i % 2 == 0 else " ".join(WORDS[: count[i]])
            for i in range(items)
        ]

    async def open(self) -> None: ...

    async def close(self) -> None: ...

    def describe(self) -> Mapping[str, Any]:
        return {}

    def reset(self) -> None: ...

    def gauges(self) -> Gauges:
        return Gauges()

    async def ask(self, item: Item) -> Observed:
        sent_s = asyncio.get_running_loop().time()
        number, self._count = self._count, self._count + 1
        factor = drift(sent_s, self._length_s)
        taken_s = self._plant.median_s * factor * self._noise[number]
        await asyncio.sleep(taken_s)
        done_s = sent_s + taken_s
        if self._failure[number] < self._plant.errors * factor:
            return Observed(sent_s, done_s, error="http")
        first_s = sent_s + FIRST * taken_s
        return Observed(
            sent_s, done_s, first_s, (first_s, done_s), self._answers[int(item.id)],
            completion_tokens=TOKENS,
        )  # fmt: skip


def planted_items(count: int) -> list[Item]:
    """Even ones are binary (category "exact"), odd ones graded (category "words")."""
    return [
        Item(str(i), (), "?", ("yes",), "exact", "exact", 16)
        if i % 2 == 0
        else Item(str(i), (), "?", (" ".join(WORDS),), "f1", "words", 16)
        for i in range(count)
    ]


def run_planted(
    arms: Sequence[Arm],
    load: str,
    *,
    blocks: int,
    requests: int,
    seed: int,
    length_s: float,
    interleaved: bool = True,
) -> tuple[list[Row], list[Block]]:
    """One audit on the virtual clock by the real load generator: every arm asks the same items in
    each block, and every second block begins with the other arm. Without interleaving one arm runs
    all its blocks before the next begins.
    """  # fmt: skip
    items = planted_items(blocks * requests)
    parsed = parse_load(load)
    targets = [Target(arm, len(items), len(items), seed, length_s) for arm in arms]
    rows: list[Row] = []

    async def main() -> list[Block]:
        done = []
        order = [(b, t) for b in range(blocks) for t in (targets if b % 2 == 0 else targets[::-1])]
        if not interleaved:
            order = [(b, t) for t in targets for b in range(blocks)]
        for b, target in order:
            done.append(
                await run_block(
                    target, items[b * requests : (b + 1) * requests], parsed,
                    block=b, place=targets.index(target), seed=seed, warmup_requests=0,
                    timeout_s=1e6, time_limit_s=None, on_row=rows.append,
                )
            )  # fmt: skip
        return done

    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        return rows, runner.run(main())


def true_quantile_ms(rows: Sequence[Row], median_s: float, q: float, length_s: float) -> float:
    """The q-quantile of the mixture that these requests' latencies were drawn from, each at the
    drift of its own moment.
    """
    log_medians = np.log(median_s) + np.log([drift(r.observed.sent_s, length_s) for r in rows])
    low, high = log_medians.min() - 5 * SIGMA, log_medians.max() + 5 * SIGMA
    found = brentq(lambda x: float(ndtr((x - log_medians) / SIGMA).mean()) - q, low, high)
    return 1e3 * math.exp(found)


def true_error_rate(rows: Sequence[Row], arm: Arm, length_s: float) -> float:
    """The mean probability of a failure over these requests."""
    return float(np.mean([arm.errors * drift(r.observed.sent_s, length_s) for r in rows]))


def true_score(arm: Arm, category: str) -> float:
    """Expected score of a request that did not fail."""
    if category == "exact":
        return RIGHT - arm.lost + arm.won
    return sum(p * (2 * k / (k + 4)) for k, p in enumerate(arm.words))
