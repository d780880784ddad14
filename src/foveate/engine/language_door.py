"""What both doors share when a plan acts inside the language model."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from foveate.core.errors import UnsupportedError
from foveate.core.language import GuidedMethod, PrefillMethod
from foveate.core.plan import Plan
from foveate.engine.compress import Compressed, RowResult
from foveate.engine.language_pass import RowMeta
from foveate.engine.language_run import LanguageRun
from foveate.engine.request import KeptSegment
from foveate.engine.splice import padding_side
from foveate.models.adapter import AutoAdapter

INSIDE = ("prefill", "memory")
_MODALITY = {"image": 1, "video": 2}


def acts_inside(plan: Plan) -> bool:
    """Whether a stage of the plan acts inside the language model."""
    return any(plan.stage(stage) is not None for stage in INSIDE)


@contextlib.contextmanager
def language_run(adapter: AutoAdapter, plan: Plan) -> Iterator[LanguageRun | None]:
    """The run of a plan's inner stages, attached; None for a plan without any."""
    if not acts_inside(plan):
        yield None
        return
    with LanguageRun(adapter, plan).attached() as run:
        yield run


def row_meta(
    row: RowResult, ids: Any, positions: Any, special: frozenset[int] = frozenset()
) -> RowMeta:
    """What each token of one shortened prompt is. ids (n,) and positions (p, n) or None without
    padding; special ids are no words of the question.
    """
    length = int(max((p.at.max(initial=-1) for p in row.placed), default=-1)) + 1
    length = max(length, int(row.index.max(initial=-1)) + 1)
    modality, segment = np.zeros(length, np.int8), np.full(length, -1, np.int32)
    cell = np.full(length, -1, np.int64)
    for ordinal, p in enumerate(row.placed):
        modality[p.at], segment[p.at] = _MODALITY[p.modality], ordinal
        cell[p.at[p.free]] = p.cells(np.arange(p.free.size))
    modality, segment, cell = modality[row.index], segment[row.index], cell[row.index]
    guidance = None
    if row.guidance is not None:
        guidance = np.full(length, np.nan)
        guidance[np.concatenate([p.at for p in row.placed])] = row.guidance
        guidance = guidance[row.index]
    last = int(np.flatnonzero(modality > 0).max(initial=-1))
    words = np.asarray([int(i) not in special for i in ids], bool)
    question = (modality == 0) & words & (np.arange(modality.size) > last)
    if not question.any():
        question = (modality == 0) & words
    places = np.arange(modality.size)[None] if positions is None else np.asarray(positions)
    grids = tuple(p.piece.grid for p in row.placed)
    return RowMeta(modality, segment, question, places, cell, grids, guidance)


def meta_of(short: Compressed, special: frozenset[int] = frozenset()) -> list[RowMeta]:
    """What each token of a shortened batch is, row by row, padding left out."""
    mask, ids = short.kwargs["attention_mask"], short.kwargs["input_ids"]
    positions = short.kwargs.get("position_ids")
    rows = []
    for i, row in enumerate(short.rows):
        real = (mask[i] != 0).cpu()
        places = None
        if torch.is_tensor(positions):
            mine = positions[..., i, :] if positions.ndim == 3 else positions[i][None]
            places = mine.cpu()[..., real].numpy()
        rows.append(row_meta(row, ids[i].cpu()[real].tolist(), places, special))
    return rows


def begin(
    run: LanguageRun,
    short: Compressed,
    special: frozenset[int] = frozenset(),
    *,
    cached: bool = True,
) -> dict[str, Any]:
    """Announce a shortened call to the run; returns what the call needs beside its own arguments."""
    mask = short.kwargs["attention_mask"]
    run.begin(meta_of(short, special), mask, padding_side(mask))
    return {"past_key_values": run.new_cache()} if cached else {}


def refuse_unguided(plan: Plan, guide: Any = None) -> None:
    """UnsupportedError for a plan that follows a guide, where there is none."""
    method = plan.stage("prefill")
    if guide is None and isinstance(method, GuidedMethod):
        raise UnsupportedError(
            f"{method.name} follows a small sibling model: use foveate.Engine(..., guide=Engine(...)) "
            "and its generate(), on the command line --guide; or drop it from the plan"
        )


def refuse_own_caches(kwargs: Mapping[str, Any], own: Any) -> None:
    """UnsupportedError for generate() options that bring a cache or forward passes of another kind:
    of the call, of its generation_config, or of `own`, the model's.
    """
    config = kwargs.get("generation_config")
    for name in ("past_key_values", "cache_implementation", "prefill_chunk_size", "assistant_model",
                 "assistant_early_exit", "use_mtp", "prompt_lookup_num_tokens"):  # fmt: skip
        given = [kwargs.get(name), getattr(config, name, None)]
        default = getattr(own, name, None)
        if default != "hybrid":  # of old checkpoints; transformers unsets it too
            given.append(default)
        if any(value is not None and value is not False for value in given):
            raise UnsupportedError(
                f"{name} cannot be combined with a plan inside the language model, which brings its "
                "own cache and needs the prompt whole: drop it (from the call and from the model's "
                "generation_config), or the prefill and memory methods"
            )
    found = (kwargs.get("use_cache"), getattr(config, "use_cache", None))
    used = next((v for v in (*found, getattr(own, "use_cache", None)) if v is not None), True)
    if not used:
        raise UnsupportedError(
            "use_cache=False would run the plan's prefill anew at every token: pass use_cache=True"
        )


@dataclass(frozen=True)
class Taken:
    """What a run left of one request, kept when the next prefill overwrites it: `counts` and
    `deepest` as those of a LanguageRun, for that request alone.
    """

    method: PrefillMethod | None
    counts: list[list[int]]
    deepest: list[np.ndarray]


def taken(run: LanguageRun, row: int) -> Taken:
    """Row `row` of the prefill that has just ended."""
    return Taken(run.method, [run.counts[row]], [run.deepest[row]])


def tokens_by_layer(run: LanguageRun | Taken | None, index: int, of: int) -> tuple[int, ...] | None:
    """Visual tokens by layer of request `index` of `of`; None where nothing acts inside."""
    if run is None or not run.counts:
        return None
    return tuple(run.counts[index * (len(run.counts) // of)])  # a request's beams are neighbours


def kept_segments(
    row: RowResult, run: LanguageRun | Taken | None, index: int, of: int
) -> tuple[KeptSegment, ...]:
    """Which tokens of each segment of request `index` of `of` entered, and which went deepest."""
    there: np.ndarray | None = None
    if run is not None and run.method is not None and run.counts:
        there = row.index[run.deepest[index * (len(run.counts) // of)]]
    out = []
    for s, p, r in zip(row.segments, row.placed, row.reductions, strict=True):
        cells = p.cells(r.anchor)
        deep = None if there is None else cells[np.isin(p.at[p.free[r.anchor]], there)]
        out.append(KeptSegment(s.image, s.kind, s.grid, p.piece.n - p.fixed, cells, deep))
    return tuple(out)
