"""What one request cost: tokens, bytes and milliseconds by stage. A figure that was not measured is
None, never zero.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

PHASES = ("preprocess", "encode", "select", "prefill", "decode")


@dataclass(frozen=True)
class SegmentReport:
    """Tokens of one segment: in and kept without fixed tokens, fixed tokens kept apart.

    time_s: of a video, the time stamp of each temporal row of the grid; None where it is not known.
    """

    image: int
    kind: str
    grid: tuple[int, int, int]
    tokens_in: int
    tokens_kept: int
    fixed_in: int = 0
    fixed_kept: int = 0
    time_s: tuple[float, ...] | None = None


@dataclass(frozen=True)
class Saving:
    """What one stage of the plan saved, counted and not measured: `foveate.core.attribution`.

    The FLOPs by phase and the KV bytes are those that this stage took off what the stages before it
    left, so all stages together sum up to the whole; negative where a stage cost more than it
    saved. A share is of the same request without any stage, None where that has nothing to save.
    """

    stage: str
    encode_flops: int
    prefill_flops: int
    decode_flops: int
    kv_bytes: int
    encode_share: float | None = None
    prefill_share: float | None = None
    decode_share: float | None = None
    kv_share: float | None = None

    @property
    def flops(self) -> int:
        """FLOPs saved in all three phases."""
        return self.encode_flops + self.prefill_flops + self.decode_flops


@dataclass(frozen=True)
class Report:
    """One request's record. `ms` is wall-clock time by phase, `cpu_ms` process CPU time by phase.

    identity: the plan (or its budget) changed nothing. positions: retain or renumber as resolved.
    layers: visual tokens present at each language-model layer, if a prefill method acted.
    layer_kv_bytes: bytes of the KV cache by language-model layer. kv_offloaded_bytes: those that a
    policy holds in host memory beside these, None where none does. saved: what each stage saved, in
    the order of the stages; empty where the model's FLOPs are not known.
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
    layer_kv_bytes: tuple[int, ...] | None = None
    kv_offloaded_bytes: int | None = None
    saved: tuple[Saving, ...] = ()
    ms: dict[str, float] = field(default_factory=dict)
    cpu_ms: dict[str, float] = field(default_factory=dict)
    ttft_ms: float | None = None
    joules: float | None = None
    notes: tuple[str, ...] = ()

    @property
    def keep_ratio(self) -> float:
        """Kept over entered visual tokens; 1 for a request without pictures."""
        return self.visual_tokens_kept / self.visual_tokens_in if self.visual_tokens_in else 1.0

    @property
    def tokens_by_layer(self) -> float:
        """Visual tokens kept, mean over the language model's layers; layout tokens count where a
        method drops them too.
        """
        return sum(self.layers) / len(self.layers) if self.layers else self.visual_tokens_kept

    def to_dict(self) -> dict[str, Any]:
        return {**asdict(self), "keep_ratio": self.keep_ratio}
