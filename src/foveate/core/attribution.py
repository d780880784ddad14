"""Which stage of a plan saved what, from counts alone.

A plan's stages act one after the other, so a later one saves on what the earlier ones left: the
order of the stages decides who is credited with a token that two of them would have dropped.
Costs are whole numbers and each stage is credited with the difference it made, hence the parts sum
up to the whole exactly. Times are not attributed: they do not add up.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from foveate.core import flops
from foveate.core.errors import InputError, PlanError, nearest
from foveate.core.method import STAGES
from foveate.core.report import Saving
from foveate.core.shapes import EncodeWork, Entries, ModelShape, at_least

PHASES = ("encode", "prefill", "decode")


@dataclass(frozen=True)
class Work:
    """The counts of one request.

    encode: what the tower works on, None if nothing is encoded (no pictures, or features from a
    cache). rows: tokens of the sequence in prefill, by layer. steps: decode steps, one less than
    new tokens. past: KV entries by layer that a prefix cache gave. kv: entries by layer when
    decoding starts, one number or one a KV head; None means past and rows, nothing evicted.
    kv_bytes: bytes by layer at the end, where a codec makes them other than entries times width.
    encode_scoring, prefill_scoring, decode_scoring: FLOPs that methods spend on their scores.
    seen: entries of a KV head that each step attends to, by layer, where some leave between steps.
    """

    encode: EncodeWork | None
    rows: tuple[int, ...]
    steps: int = 0
    past: tuple[Entries, ...] | None = None
    kv: tuple[Entries, ...] | None = None
    kv_bytes: tuple[int, ...] | None = None
    encode_scoring: int = 0
    prefill_scoring: int = 0
    decode_scoring: int = 0
    seen: tuple[tuple[int, ...], ...] | None = None

    def __post_init__(self) -> None:
        at_least(
            0,
            "Work",
            steps=self.steps,
            kv_bytes=min(self.kv_bytes or (0,)),
            encode_scoring=self.encode_scoring,
            prefill_scoring=self.prefill_scoring,
            decode_scoring=self.decode_scoring,
        )


@dataclass(frozen=True)
class Cost:
    """FLOPs by phase, and bytes of the KV cache by layer when the last token is out."""

    encode: int
    prefill: int
    decode: int
    layer_kv_bytes: tuple[int, ...]

    @property
    def kv_bytes(self) -> int:
        return sum(self.layer_kv_bytes)


@dataclass(frozen=True)
class Stage:
    """`name` of the stage, and the counts of the request after it and all stages before it."""

    name: str
    work: Work


def cost(shape: ModelShape, work: Work) -> Cost:
    """What `work` costs. O(layers x KV heads + segments)."""
    encoded = 0
    if work.encode is not None:
        if shape.vision is None:
            raise InputError("cost: the request has pictures, and the shape no vision tower")
        encoded = flops.encode(shape.vision, work.encode).total
    text = shape.text
    prefilled = flops.prefill(text, work.rows, past=work.past).total
    kv = _entries(work) if work.kv is None else work.kv
    held = work.kv_bytes
    if held is None:
        held = flops.kv_bytes(text, kv, shape.element_bytes, work.steps)
    elif len(held) != len(text.layers):
        raise InputError(f"kv_bytes of {len(held)} layers for a model of {len(text.layers)}")
    if work.seen is None:
        decoded = flops.decode(text, kv, work.steps).total
    else:
        decoded = flops.decode_seen(text, work.seen).total
    return Cost(
        encode=encoded + work.encode_scoring,
        prefill=prefilled + work.prefill_scoring,
        decode=decoded + work.decode_scoring,
        layer_kv_bytes=tuple(held),
    )


def attribute(shape: ModelShape, request: Work, stages: Sequence[Stage]) -> tuple[Saving, ...]:
    """What each stage saved of `request`, the counts without any stage; in the stages' order.

    Errors: PlanError for a stage that is unknown, twice there or out of order; InputError for
    counts that do not fit the shape.
    """
    _check_order([stage.name for stage in stages])
    whole = before = cost(shape, request)
    out = []
    for stage in stages:
        after = cost(shape, stage.work)
        saved = [getattr(before, p) - getattr(after, p) for p in (*PHASES, "kv_bytes")]
        of = [getattr(whole, p) for p in (*PHASES, "kv_bytes")]
        shares = [s / w if w else None for s, w in zip(saved, of, strict=True)]
        out.append(Saving(stage.name, *saved, *shares))
        before = after
    return tuple(out)


def _entries(work: Work) -> tuple[Entries, ...]:
    """Entries after prefill where nothing was evicted."""
    if work.past is None:
        return work.rows
    if len(work.past) != len(work.rows):
        raise InputError(f"past of {len(work.past)} layers, rows of {len(work.rows)}")
    return tuple(
        past + rows if isinstance(past, int) else tuple(p + rows for p in past)
        for past, rows in zip(work.past, work.rows, strict=True)
    )


def _check_order(names: Sequence[str]) -> None:
    last = -1
    for name in names:
        if name not in STAGES:
            raise PlanError(f"attribute: no stage {name!r}; {nearest(name, STAGES)}")
        place = STAGES.index(name)
        if place <= last:
            raise PlanError(
                f"attribute: stage {name!r} comes after {STAGES[last]!r}; give each stage once, in "
                f"the order {', '.join(STAGES)}"
            )
        last = place
