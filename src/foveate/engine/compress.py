"""One batch in, the same batch with fewer visual tokens out: the one place where a plan meets a
model's inputs.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from foveate.core.errors import UnsupportedError
from foveate.core.method import Method
from foveate.core.plan import Plan
from foveate.core.report import SegmentReport
from foveate.core.views import Reduction, Segment
from foveate.engine import splice
from foveate.engine.cache import FeatureCache
from foveate.engine.patches import patches_of
from foveate.engine.rows import Placed, place, segments
from foveate.engine.select import TextTower, in_joint_space, question_of, reduce_request
from foveate.engine.times import METADATA, stamp_from_call
from foveate.engine.tower import TowerPass, around_tower
from foveate.models import compat
from foveate.models.adapter import MODALITIES, AutoAdapter
from foveate.models.encoded import Encoded

Phase = Callable[[str], contextlib.AbstractContextManager[Any]]


@contextlib.contextmanager
def untimed(_: str) -> Iterator[None]:
    yield


@dataclass
class RowResult:
    """One request of the batch: what was chosen, and how many tokens of each kind stand in the
    prompt.
    """

    segments: list[Segment]
    placed: list[Placed]
    reductions: list[Reduction]
    reports: tuple[SegmentReport, ...]
    index: np.ndarray
    length: int
    text_tokens: int
    cached: int = 0  # of `segments`, those whose features were known before
    guidance: np.ndarray | None = None  # a guide's scores of all placed tokens, in their order

    @property
    def visual_in(self) -> int:
        return sum(r.tokens_in for r in self.reports)

    @property
    def unseen(self) -> int:
        """Visual tokens whose patches did not enter the tower."""
        return self.visual_in - sum(s.n for s in self.segments)

    @property
    def visual_kept(self) -> int:
        return sum(r.k for r in self.reductions)


@dataclass
class Compressed:
    """The shortened call: `kwargs` go to the model; `expand` copies encoder outputs for beams, `part`
    cuts those of a single row for a chunk of its prompt; rows for reports.
    """

    kwargs: dict[str, Any]
    rows: list[RowResult]
    expand: Callable[[Any, int], Any]
    part: Callable[[int, int], dict[str, Any]]
    positions: str
    tower: TowerPass | None = None

    @property
    def identity(self) -> bool:
        whole = all(r.is_identity for row in self.rows for r in row.reductions)
        return whole and not any(row.unseen for row in self.rows)


def refuse_later_stages(plan: Plan) -> None:
    """UnsupportedError for stages that no engine runs yet: nothing goes on in silence."""
    for stage in ("decode",):
        method: Method | None = plan.stage(stage)
        if method is not None:
            raise UnsupportedError(
                f"{method.name} acts at stage {stage!r}, which this version does not run; "
                "drop it from the plan"
            )


def refuse_old_cache(adapter: AutoAdapter, kwargs: Mapping[str, Any]) -> None:
    """A filled cache beside ids with placeholders: its length is that of a shortened prompt, so the
    model would read the wrong part of the ids again. UnsupportedError before any compute.
    """
    past, ids = kwargs.get("past_key_values"), kwargs.get("input_ids")
    if past is None or not torch.is_tensor(ids) or ids.ndim != 2 or past.get_seq_length() == 0:
        return
    known = [t for t in map(adapter.token_id, MODALITIES) if t is not None]
    if any(bool((ids == t).any()) for t in known):
        raise UnsupportedError(
            "a second turn over a shortened prompt's cache is not supported: call again without "
            "past_key_values, with the pictures, or pass only the new tokens with their positions"
        )


def has_media(adapter: AutoAdapter, kwargs: Mapping[str, Any]) -> bool:
    return any(adapter.media_kwargs(kwargs, m) for m in MODALITIES)


def compress(
    adapter: AutoAdapter,
    plan: Plan,
    kwargs: Mapping[str, Any],
    *,
    phase: Phase = untimed,
    special_ids: frozenset[int] = frozenset(),
    text_tower: TextTower | None = None,
    encoded: dict[str, Encoded] | None = None,
    cache: FeatureCache | None = None,
    processor: Any = None,
    times: Callable[[list[list[Placed]]], None] | None = None,
) -> Compressed:
    """Encode, choose, splice. kwargs are a call's own inputs: input_ids (B, S), pixels, masks,
    types. `cache` gives the features of pictures that it knows; `encoded` goes before it. The
    processor, if given, tells pixel methods how the pictures were normalised; `times` stamps video
    segments, which else the call's own video_metadata or seconds a grid row do.

    Raises InputError where ids and pictures disagree, UnsupportedError where the model cannot serve
    the plan.
    """
    refuse_later_stages(plan)
    plan = plan.resolved(mrope=adapter.mrope)
    told, kwargs = kwargs, {k: v for k, v in kwargs.items() if k != METADATA}
    ids = kwargs.get("input_ids")
    if not torch.is_tensor(ids) or ids.ndim != 2:
        raise UnsupportedError(
            "a plan needs input_ids of shape (batch, tokens); inputs_embeds do not show where the "
            "visual tokens are"
        )
    past = kwargs.get("past_key_values")
    if past is not None and past.get_seq_length() > 0:
        raise UnsupportedError(
            "pictures with a filled past_key_values are not supported: start a new cache for a turn "
            "that brings pictures"
        )
    if plan.question_turn != -1:
        raise UnsupportedError(
            "question_turn other than -1 (the last turn) is not run by this version; drop it"
        )
    mask = kwargs.get("attention_mask")
    if mask is None:
        mask = torch.ones_like(ids)
    if not torch.is_tensor(mask) or mask.shape != ids.shape:
        raise UnsupportedError(
            "a plan needs attention_mask of shape (batch, tokens); a mask of another shape cannot be "
            "brought to the kept tokens"
        )
    if torch.is_tensor(kwargs.get("logits_to_keep")):
        raise UnsupportedError(
            "logits_to_keep as a tensor names places of the full sequence; give a number, or none"
        )
    given = kwargs.get("position_ids")
    if given is not None and plan.positions == "renumber" and plan.methods:
        raise UnsupportedError(
            "position_ids were given, but this plan numbers kept tokens anew: leave them out, or "
            "say positions=retain in the plan"
        )
    side = splice.padding_side(mask)
    method = plan.stage("tokens")
    needs = method.needs if method is not None else frozenset()
    media = {m: adapter.media_kwargs(kwargs, m) for m in MODALITIES}
    if media["image"] and kwargs.get("interpolate_pos_encoding"):
        media["image"]["interpolate_pos_encoding"] = True  # passed on to the tower by the model
    tower = plan.stage("tower")
    around: TowerPass | None = None
    chooser = patches_of(adapter, plan, processor)
    if chooser is not None and encoded is not None:
        raise UnsupportedError(
            f"{chooser.method.name} acts before the tower runs; features that were encoded before "
            "cannot be given with it"
        )
    if tower is not None:
        if encoded is not None:
            raise UnsupportedError(
                f"{tower.name} acts while the tower runs; features that were encoded before cannot "
                "be given with it"
            )
        around = around_tower(adapter, tower)
    types = kwargs.get("mm_token_type_ids")
    with phase("encode"):
        known: frozenset[int] = frozenset()
        if encoded is None:
            encoded = {}
            chosen_patches = chooser.choose(ids, mask, types, media) if chooser is not None else {}
            for m, mm in media.items():
                if mm and cache is not None:
                    fetched = cache.encode(adapter, mm, m, needs, around, chosen_patches.get(m))
                    encoded[m], known = fetched.encoded, known | fetched.hits
                elif mm:
                    encoded[m] = adapter.encode(mm, m, needs, around, chosen_patches.get(m))
    with phase("select"):
        rows = place(adapter, ids, mask, list(encoded.values()), types)
        if times is not None:
            times(rows)
        else:
            stamp_from_call(adapter, rows, told)
        results, kept = [], []
        real = mask.cpu().numpy() != 0
        for r, placed in enumerate(rows):
            views = in_joint_space(method, segments(placed, encoded, needs), text_tower)
            question = None
            if method is not None and views:
                last = max((int(p.at[-1]) for p in placed if p.at.size), default=-1)
                row_ids = ids[r][torch.as_tensor(real[r], device=ids.device)]
                skipped = int((~real[r])[: last + 1].sum())
                question = question_of(
                    adapter, method, row_ids, last - skipped, special_ids, text_tower
                )
            chosen = reduce_request(plan, adapter, views, question)
            if around is not None and method is None:
                chosen = around.collapse(placed)
            pieces = [
                splice.keep(adapter, p, c, v.encoder, plan.newlines)
                for p, c, v in zip(placed, chosen, views, strict=True)
            ]
            index = splice.row_index(ids.shape[1], placed, pieces, real[r])
            visual = sum(p.piece.n for p in placed)
            reports = tuple(
                SegmentReport(
                    v.image,
                    v.kind,
                    v.grid,
                    p.piece.n - p.fixed,
                    c.k,
                    p.fixed,
                    k.fixed,
                    None if v.time_s is None else tuple(v.time_s.tolist()),
                )
                for p, c, v, k in zip(placed, chosen, views, pieces, strict=True)
            )
            results.append(
                RowResult(
                    views,
                    placed,
                    chosen,
                    reports,
                    index,
                    int(real[r].sum()),
                    int(real[r].sum()) - visual,
                    sum(id(p.piece) in known for p in placed),
                )
            )
            kept.append(pieces)
        short = _shortened(adapter, plan, kwargs, media, mask, side, [r.index for r in results])

    def outputs(repeat: int) -> dict[str, Any]:
        found = {}
        for modality, enc in (encoded or {}).items():
            mine = [
                k
                for placed, pieces in zip(rows, kept, strict=True)
                for _ in range(repeat)
                for p, k in zip(placed, pieces, strict=True)
                if p.modality == modality
            ]
            found[modality] = adapter.repack(
                enc, [k.payload for k in mine], [k.deepstack for k in mine]
            )
        return found

    if encoded:
        short["mm_encoder_outputs"] = outputs(1)

    def expand(_: Any, repeat: int) -> dict[str, Any]:
        return outputs(repeat)

    def part(start: int, stop: int) -> dict[str, Any]:
        """Encoder outputs of a single row's placeholders at places [start, stop) of its prompt."""
        found = {}
        for modality, enc in (encoded or {}).items():
            mine = []
            for p, k in zip(rows[0], kept[0], strict=True):
                at = np.searchsorted(results[0].index, k.at)
                inside = np.flatnonzero((at >= start) & (at < stop))
                if p.modality == modality and inside.size:
                    mine.append(k.some(inside))
            if mine:
                found[modality] = adapter.repack(
                    enc, [k.payload for k in mine], [k.deepstack for k in mine]
                )
        return found

    return Compressed(short, results, expand, part, plan.positions, around)


def _shortened(
    adapter: AutoAdapter,
    plan: Plan,
    kwargs: Mapping[str, Any],
    media: Mapping[str, Mapping[str, Any]],
    mask: Tensor,
    side: str,
    index: list[np.ndarray],
) -> dict[str, Any]:
    ids = kwargs["input_ids"]
    full = {**kwargs, "attention_mask": mask}
    given = kwargs.get("position_ids")
    if plan.positions == "retain" and given is None:
        context = {
            k: v for k, v in full.items() if k not in ("input_ids", "position_ids", "labels")
        }
        full["position_ids"] = compat.position_ids(adapter.model, ids, context)
    if plan.positions == "renumber":
        full.pop("position_ids", None)
    if full.get("position_ids") is not None:
        given = full["position_ids"]
        if given.shape[-2] == 1 and ids.shape[0] > 1:
            full["position_ids"] = given.expand(*given.shape[:-2], *ids.shape)
    used = {k for mm in media.values() for k in mm} | _geometry_names(adapter)
    full = {k: v for k, v in full.items() if k not in used}
    pad = _pad_id(adapter, ids, mask)
    short = splice.shorten(full, index, side, pad)
    if plan.positions == "renumber":
        steps = (short["attention_mask"].long().cumsum(-1) - 1).clamp(min=0)
        short["position_ids"] = steps.expand(4, -1, -1).clone() if adapter.mrope else steps
    return short


def _geometry_names(adapter: AutoAdapter) -> set[str]:
    # With fewer placeholders these would size the wrong grid; explicit position_ids replace them.
    names = {
        "image_grid_thw",
        "video_grid_thw",
        "second_per_grid_ts",
        "image_sizes",
        "target_sizes",
    }
    return names | {"video_second_per_grid", "num_local_patches", "image_num_patches"}


def _pad_id(adapter: AutoAdapter, ids: Tensor, mask: Tensor) -> int:
    padded = ids[mask == 0]
    if padded.numel():
        return int(padded[0])
    pad = getattr(adapter.text_config, "pad_token_id", None)
    if isinstance(pad, list):
        pad = pad[0] if pad else None
    return int(pad) if pad is not None and pad >= 0 else 0
