"""Rows, blocks and specs of audits that never ran, for the auditor's tests."""

from __future__ import annotations

from typing import Any

from foveate.audit.records import Block, Gauges, Item, Observed, Picture, Row
from foveate.audit.spec import AuditSpec, checked


def row(
    arm: str = "baseline", load: str = "closed:2", block: int = 0, sequence: int = 0, **other: Any
) -> Row:
    """A finished request; `seen` replaces fields of what was observed."""
    seen: dict[str, Any] = {
        "sent_s": 10.0 + sequence,
        "done_s": 10.5 + sequence,
        "first_s": 10.2 + sequence,
        "chunk_s": (10.2 + sequence, 10.4 + sequence),
        "text": f"answer {sequence}",
        "model": "planted",
        "finish": "stop",
        "prompt_tokens": 70,
        "completion_tokens": 2,
    }
    seen |= other.pop("seen", {})
    values: dict[str, Any] = {
        "arm": arm, "load": load, "block": block, "place": 0, "sequence": sequence,
        "warmup": False, "item": f"q{sequence}", "category": "even", "metric": "exact",
        "references": (f"answer {sequence}",), "pictures": ("ab" * 32,),
        "intended_s": 10.0 + sequence, "observed": Observed(**seen),
    }  # fmt: skip
    return Row(**(values | other))


def block(arm: str = "baseline", load: str = "closed:2", number: int = 0, **other: Any) -> Block:
    values: dict[str, Any] = {
        "arm": arm, "load": load, "block": number, "place": 0, "start_s": 10.0, "end_s": 14.5,
        "requests": 4, "gained": Gauges(cpu_s=0.5), "client_cpu_s": 0.01,
    }  # fmt: skip
    return Block(**(values | other))


def items(n: int) -> tuple[Item, ...]:
    picture = Picture(b"bytes", "image/png")
    return tuple(
        Item(f"q{i}", (picture,), f"question {i} ?", (f"answer {i}",), "exact", "even", 8)
        for i in range(n)
    )


def spec(**other: Any) -> AuditSpec:
    """Two endpoints that nobody asks."""
    values: dict[str, Any] = {
        "workload": "rows.jsonl",
        "arms": [
            {"name": "baseline", "url": "http://127.0.0.1:9/v1"},
            {"name": "small", "url": "http://127.0.0.1:9/v1"},
        ],
        "loads": ("closed:2",),
        "blocks": 2,
        "requests": 4,
    }
    return checked(values | other, "a test")
