"""What one request cost: tokens, bytes and milliseconds by stage. A figure that was not measured is
None, never zero.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

PHASES = ("preprocess", "encode", "select", "prefill", "decode")


@dataclass(frozen=True)
class SegmentReport:
    """Tokens of one segment: in and kept without fixed tokens, fixed tokens kept apart."""

    image: int
    kind: str
    grid: tuple[int, int, int]
    tokens_in: int
    tokens_kept: int
    fixed_in: int = 0
    fixed_kept: int = 0


@dataclass(frozen=True)
class Report:
    """One request's record. `ms` is wall-clock time by phase, `cpu_ms` process CPU time by phase.

    identity: the plan (or its budget) changed nothing. positions: retain or renumber as resolved.
    layers: visual tokens present at each language-model layer, if a prefill method acted.
    """

    plan: str
    plan_hash: str
    model: str
    positions: str
    identity: bool
    visual_tokens_in: int
    visual_tokens_kept: int
    fixed_tokens_kept: int
    text_tokens: int
    prompt_tokens: int
    prompt_tokens_in: int
    new_tokens: int
    kv_bytes: int | None = None
    tower_tokens: tuple[int, int] | None = None
    segments: tuple[SegmentReport, ...] = ()
    layers: tuple[int, ...] | None = None
    ms: dict[str, float] = field(default_factory=dict)
    cpu_ms: dict[str, float] = field(default_factory=dict)
    ttft_ms: float | None = None
    joules: float | None = None
    notes: tuple[str, ...] = ()

    @property
    def keep_ratio(self) -> float:
        """Kept over entered visual tokens; 1 for a request without pictures."""
        return self.visual_tokens_kept / self.visual_tokens_in if self.visual_tokens_in else 1.0

    def to_dict(self) -> dict[str, Any]:
        return {**asdict(self), "keep_ratio": self.keep_ratio}
