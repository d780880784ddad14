"""Finished audits for tests of the report: rows with planted differences, receipts as a run writes
them. The answers are planted; every figure and verdict is computed from the rows.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from foveate.audit.bounds import Bounds
from foveate.audit.receipt import write_receipt
from foveate.audit.records import Block, Gauges, Item, Observed, Picture, Row
from foveate.audit.spec import checked
from foveate.audit.target import BASELINE

CATEGORIES = ("shape", "count", "bar", "code", "table", "a form, as people name it")
WORDS = ("circle", "square", "three", "seven", "K7-Q2", "41.5", "blue")


@dataclass(frozen=True)
class Planted:
    """An arm: how many times faster than the baseline, how often wrong, how often it fails."""

    name: str
    speed: float = 1.0
    wrong: float = 0.0
    fails: float = 0.0
    tokens: int = 196
    gauges: bool = True


PLANS = (
    Planted(BASELINE),
    Planted("visionzip:keep=1/2", 1.35, 0.02, tokens=98),
    Planted("visionzip:keep=1/4", 1.7, 0.05, tokens=49),
    Planted("divprune:keep=1/2", 1.3, 0.03, tokens=98),
    Planted("divprune:keep=1/4", 1.65, 0.08, tokens=49),
    Planted("fastv:layer=2,keep=1/2", 1.15, 0.1, tokens=120),
    Planted("random:keep=1/4;seed=7", 1.72, 0.22, tokens=49),
    Planted("pool:side=7", 1.75, 0.3, 0.004, tokens=49),
    Planted("snapkv:keep=1/4", 0.97, 0.002, 0.03, gauges=False),
)
LOADS = ("closed:1", "closed:4", "closed:16", "open:5")


def items(count: int, seed: int = 0) -> tuple[Item, ...]:
    """Questions about small pictures, evenly over the categories; every third shares its picture."""
    rng = np.random.default_rng(seed)
    found = []
    for i in range(count):
        word = WORDS[int(rng.integers(len(WORDS)))]
        found.append(
            Item(
                id=f"q{i:04d}", pictures=(_picture(i // 3, word),),
                question=f"what is written in picture {i} ?", references=(word,), metric="exact",
                category=CATEGORIES[i % len(CATEGORIES)], max_new_tokens=8,
            )
        )  # fmt: skip
    return tuple(found)


def _picture(number: int, word: str) -> Picture:
    image = Image.new("RGB", (112, 112), ((37 * number) % 200 + 40, (91 * number) % 200 + 40, 120))
    ImageDraw.Draw(image).text((20, 48), word, "white")
    file = io.BytesIO()
    image.save(file, "PNG")
    return Picture(file.getvalue(), "image/png")


def rows_of(
    arms: Sequence[Planted], asked: Sequence[Item], loads: Sequence[str], blocks: int, seed: int
) -> tuple[list[Row], list[Block]]:
    """Rows and blocks of a run in which every arm answers the same questions in every block."""
    rng = np.random.default_rng(seed)
    rows: list[Row] = []
    turns: list[Block] = []
    share = -(-len(asked) // blocks)
    now = 100.0
    for load in loads:
        for block in range(blocks):
            part = asked[block * share : (block + 1) * share]
            drift = float(rng.lognormal(0, 0.05))
            for place, arm in enumerate(arms):
                mine = list(_turn(arm, part, load, block, place, now, drift, rng))
                rows += mine
                end = max(r.observed.done_s for r in mine)
                turns.append(_block(arm, load, block, place, now, end, len(part)))
                now = end + 0.1
    return rows, turns


def _turn(
    arm: Planted, asked: Sequence[Item], load: str, block: int, place: int, now: float, drift: float,
    rng: np.random.Generator,
) -> Iterator[Row]:  # fmt: skip
    busy = 1 + 0.35 * np.log2(float(load.partition(":")[2]) + 1)
    for number, item in enumerate(asked):
        intended = now + 0.01 * number
        sent = intended + float(rng.exponential(0.001))
        first = sent + 0.08 * drift * busy / arm.speed * float(rng.lognormal(0, 0.25))
        gaps = 0.008 * busy * rng.lognormal(0, 0.2, size=3)
        chunks = (first, *(first + float(g) for g in np.cumsum(gaps)))
        error = "timeout" if number % 2 else "http"
        failed = bool(rng.random() < arm.fails)
        weight = 2.0 if item.category in ("code", "table") else 0.6
        wrong = bool(rng.random() < arm.wrong * weight + 0.03)
        seen = (
            Observed(sent, first, error=error, error_detail="planted")  # type: ignore[arg-type]
            if failed
            else Observed(
                sent, chunks[-1], first, chunks, "wrong" if wrong else item.references[0],
                "planted", "stop", arm.tokens + 12, 4, arm.tokens, arm.tokens * 9216,
            )
        )  # fmt: skip
        yield Row(
            arm.name, load, block, place, number, False, item.id, item.category, item.metric,
            item.references, tuple(p.digest for p in item.pictures), intended, seen,
        )  # fmt: skip


def _block(
    arm: Planted, load: str, block: int, place: int, start: float, end: float, asked: int
) -> Block:
    gained = Gauges(
        cpu_s=0.12 * asked / arm.speed, rss_peak_bytes=900 * 2**20 + arm.tokens * 2**18,
        kv_peak_bytes=arm.tokens * 9216 * 4,
    )  # fmt: skip
    return Block(
        arm.name, load, block, place, start, end, asked, gained if arm.gauges else Gauges(), 0.01
    )


def bounds(category: str | None) -> Bounds:
    """Five points of quality, ten in one category, a fifth faster at four at a time, few errors."""
    return Bounds.from_dict({
        "max_quality_drop": 0.05,
        "max_quality_drop_by_category": {category: 0.10} if category else {},
        "max_error_rate": 0.02,
        "min_speedup": [{"metric": "e2e", "at": "closed:4", "min": 1.2}],
    })  # fmt: skip


def audited(
    folder: Path,
    arms: Sequence[Planted] = PLANS,
    *,
    count: int = 240,
    loads: Sequence[str] = LOADS,
    blocks: int = 6,
    seed: int = 0,
    asked: Sequence[Item] | None = None,
    arm_specs: Sequence[Mapping[str, Any]] | None = None,
    name: str = "planted questions",
    bound_category: str | None = "code",
) -> tuple[Item, ...]:
    """Write a folder as an audit leaves it; the items that were asked."""
    folder.mkdir(parents=True, exist_ok=True)
    asked = tuple(asked) if asked is not None else items(count, seed)
    rows, turns = rows_of(arms, asked, loads, blocks, seed)
    held = bounds(bound_category)
    arm_specs = arm_specs or [{"name": a.name, "url": "http://127.0.0.1:8000/v1"} for a in arms]
    spec = checked(
        {"workload": "planted.jsonl", "arms": arm_specs, "loads": list(loads), "blocks": blocks,
         "requests": -(-len(asked) // blocks), "bounds": held.as_dict()},
        "planted",
    )  # fmt: skip
    write_receipt(
        folder, spec=spec, bounds=held, rows=rows, blocks=turns, notes=["planted by a test"],
        workload={"name": name, "hash": "0" * 64, "n": len(asked), "notes": []},
        arms={str(a["name"]): {"kind": "endpoint", "url": a.get("url")} for a in arm_specs},
    )  # fmt: skip
    return tuple(asked)
