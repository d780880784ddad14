"""What each stage of a plan saved of one finished request: the run's counts, brought to stages.

`foveate.core.attribution` does the arithmetic on counts alone. What a method spends on choosing
is not in these FLOPs; it is in the milliseconds of the phases select and prefill.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from foveate.core.attribution import Stage, Work, attribute
from foveate.core.errors import UnsupportedError
from foveate.core.language import CachePolicy
from foveate.core.report import Saving
from foveate.core.shapes import EncodeWork, Entries, ModelShape
from foveate.engine.encode_work import encode_works
from foveate.engine.kv_report import (
    Seen,
    coded,
    entries_at_decode,
    layer_bytes,
    offloaded_bytes,
    seen_by_step,
)
from foveate.engine.language_door import INSIDE, tokens_by_layer
from foveate.models.shapes import model_shape

if TYPE_CHECKING:
    from foveate.core.plan import Plan
    from foveate.engine.engine import Engine, Run


@dataclass(frozen=True)
class Accounts:
    """What a report says of bytes and savings. layers: visual tokens by layer, None where nothing
    acts inside; layer_kv_bytes: None without a cache; notes: why savings are not counted. evicted:
    the cache holds fewer entries than the prompt brought, or codes in place of some.
    """

    layers: tuple[int, ...] | None
    layer_kv_bytes: tuple[int, ...] | None
    saved: tuple[Saving, ...]
    notes: tuple[str, ...] = ()
    offloaded_bytes: int | None = None
    evicted: bool = False

    @property
    def kv_bytes(self) -> int | None:
        return None if self.layer_kv_bytes is None else sum(self.layer_kv_bytes)


def accounts(engine: Engine, run: Run, index: int, new_tokens: int) -> Accounts:
    """Of request `index` of a run that has ended, with an answer of `new_tokens`."""
    row, of = run.short.rows[index], len(run.members)
    cache = getattr(run.out, "past_key_values", None)
    steps = max(0, new_tokens - 1)
    beams = len(rows) // of if (rows := getattr(cache, "rows", None)) else 1
    place = index * beams  # a request's beams are neighbours
    layers = tokens_by_layer(run.inside, index, of)
    seen = seen_by_step(cache, place, run.plan.stage("memory"))
    held = layer_bytes(cache, len(row.index) + steps, place, steps, seen)
    away = offloaded_bytes(cache, place)
    if not run.plan.methods:
        return Accounts(layers, held, (), offloaded_bytes=away)
    entries = entries_at_decode(cache, place, steps, seen)
    text = len(row.index) - row.visual_kept - sum(s.fixed_kept for s in row.reports)
    came = [text + visual for visual in layers or ()]
    evicted = coded(cache, place, came, steps) or any(
        n < here for heads, here in zip(entries or (), came, strict=False) for n in _each(heads)
    )
    try:
        shape = model_shape(engine.model.config, engine.model.dtype.itemsize)
        request, stages = stage_works(shape, run, index, steps, layers)
        stages = _inner(run.plan, request, stages, entries, held, _own(seen, steps))
        saved = attribute(shape, request, stages)
    except UnsupportedError as error:
        note = f"what each stage saved is not counted: {error}"
        return Accounts(layers, held, (), (note, *_away(engine, away)), away, evicted)
    came_and_went = () if entries is None else _notes(run.plan, steps, seen)
    notes = (*came_and_went, *_away(engine, away))
    return Accounts(layers, held, saved, notes, away, evicted)


def _each(entries: Entries) -> tuple[int, ...]:
    return (entries,) if isinstance(entries, int) else entries


def _own(seen: Seen | None, steps: int) -> Seen | None:
    """Of what a batch's steps saw, the request's own."""
    return None if seen is None else tuple(layer[:steps] for layer in seen)


def stage_works(
    shape: ModelShape, run: Run, index: int, steps: int, layers: tuple[int, ...] | None
) -> tuple[Work, list[Stage]]:
    """The counts of a request without its plan, and after each of its stages up to prefill."""
    row, plan, count = run.short.rows[index], run.plan, len(shape.text.layers)
    if shape.vision is None:
        raise UnsupportedError("the sizes of its vision tower are not known")
    whole, entered, cut = encode_works(shape.vision, run, index)
    dropped = run.look.dropped[index] if run.look.dropped else 0
    prompt = len(row.index)

    def work(encode: EncodeWork | None, tokens: int) -> Work:
        return Work(encode, (tokens,) * count, steps)

    request = work(whole, row.length + dropped)
    stages = []
    if plan.stage("pixels") is not None:
        stages.append(Stage("pixels", work(entered, row.length - row.unseen)))
    if plan.stage("tower") is not None:
        # Beside a token method each patch gets a token back, and the choice is that method's own.
        left = row.length - row.unseen if plan.stage("tokens") is not None else prompt
        stages.append(Stage("tower", work(cut, left)))
    if plan.stage("tokens") is not None:
        stages.append(Stage("tokens", work(cut, prompt)))
    if plan.stage("prefill") is not None:
        rows = _rows(run, index, layers, count)
        stages.append(Stage("prefill", Work(cut, rows, steps)))
    return request, stages


def _rows(run: Run, index: int, layers: tuple[int, ...] | None, count: int) -> tuple[int, ...]:
    """Tokens of the sequence at each layer of the prefill."""
    row = run.short.rows[index]
    prompt = len(row.index)
    if not row.placed:
        return (prompt,) * count
    if layers is None or len(layers) != count:
        raise UnsupportedError("the tokens at some layers of its prefill are not known")
    text = prompt - row.visual_kept - sum(s.fixed_kept for s in row.reports)
    return tuple(text + visual for visual in layers)


def _inner(
    plan: Plan,
    request: Work,
    stages: list[Stage],
    entries: tuple[Entries, ...] | None,
    held: tuple[int, ...] | None,
    seen: Seen | None,
) -> list[Stage]:
    """`stages` with the memory stage; the last that acts inside has the bytes that are held."""
    before = stages[-1].work if stages else request
    if plan.stage("memory") is not None:
        # Without pictures in its batch a request runs on the model's own cache, whole.
        after = before if entries is None else replace(before, kv=entries, seen=seen)
        stages.append(Stage("memory", after))
    if stages and stages[-1].name in INSIDE and entries is not None:
        last = stages.pop()
        stages.append(Stage(last.name, replace(last.work, kv_bytes=held)))
    return stages


def _notes(plan: Plan, steps: int, seen: Seen | None) -> tuple[str, ...]:
    memory = plan.stage("memory")
    if steps and seen is None and isinstance(memory, CachePolicy) and memory.when == "overflow":
        return (
            "decode FLOPs are counted with the entries left at the end: evicted ones came and went",
        )
    return ()


def _away(engine: Engine, offloaded: int | None) -> tuple[str, ...]:
    if offloaded is None:
        return ()
    words = f"{offloaded} bytes of keys and values lie in host memory; kv_bytes leaves them out"
    if engine.model.device.type == "cpu":
        words += " (on a CPU that is the same memory: pages are held apart, nothing is saved)"
    return (words,)
