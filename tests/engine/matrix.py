"""The engine matrix: family x batch shape x kind of method, each cell against a masked full-length
reference.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from foveate.core import Plan
from foveate.engine.compress import Compressed, compress
from foveate.models.adapter import AutoAdapter, adapter_for
from tests.engine.methods import CORNERS
from tests.engine.reference import features_replaced, hidden_columns, relative
from tests.support import tiny

EXACT = 2e-5
BITE = 1e-3
STEPS = 3


@dataclass
class Cell:
    """One comparison: `diff` and `bite` relative to the largest logit; bite None where no reference
    exists.
    """

    shape: str
    kind: str
    diff: float
    bite: float | None = None


@dataclass
class FamilyResult:
    """What was seen of one family. `reference`: masked full-length, or batch against single for
    hybrids.
    """

    name: str
    reference: str
    cells: list[Cell] = field(default_factory=list)
    refused: str | None = None

    @property
    def worst(self) -> float:
        return max(c.diff for c in self.cells)

    @property
    def status(self) -> str:
        if self.refused:
            return "refused"
        return "exact" if self.reference == "masked" else "batch-equals-single"


def plan_of(kind: str, keep: str = "1/2", positions: str = "auto") -> Plan:
    return Plan((CORNERS[kind](keep=keep),), positions=positions)  # type: ignore[arg-type]


def logits(model: Any, short: Compressed) -> torch.Tensor:
    """Prefill logits (B, S', V) of a compressed call; encoder outputs are rebuilt since forward
    edits them.
    """
    call = {**short.kwargs, "mm_encoder_outputs": short.expand(None, 1)}
    return model(**call, use_cache=False).logits


def real_rows(short: Compressed, out: torch.Tensor, rows: int) -> list[torch.Tensor]:
    mask = short.kwargs["attention_mask"].bool()
    return [out[i][mask[i]] for i in range(rows)]


def reference_row(
    model: Any,
    adapter: AutoAdapter,
    row: dict[str, Any],
    mm: dict[str, Any],
    short: Compressed,
    i: int,
    modality: str = "image",
) -> torch.Tensor:
    """Logits of row i's kept positions from a full-length forward that hides what was dropped."""
    result = short.rows[i]
    length = row["input_ids"].shape[1]
    kept = result.index
    dropped = np.setdiff1d(np.arange(length), kept)
    mask = short.kwargs["attention_mask"][i].bool()
    spent = short.kwargs["position_ids"]
    shape = (*spent.shape[:-2], 1, length)
    positions = torch.zeros(shape, dtype=spent.dtype)
    positions[..., 0, torch.as_tensor(kept)] = spent[..., i, :][..., mask]

    def edit(out: Any) -> None:
        payloads = []
        for p, r in zip(result.placed, result.reductions, strict=True):
            full = p.piece.payload.clone()
            if not r.is_pick:
                free = p.free
                for k, anchor in enumerate(r.anchor):
                    here = r.rows == k
                    total = torch.zeros(full.shape[1])
                    for col, w in zip(r.cols[here], r.weights[here], strict=True):
                        total += float(w) * p.piece.payload[free[col]].float()
                    full[free[anchor]] = total
            payloads.append(full)
        adapter.put(out, out, payloads)

    with hidden_columns(model, dropped), features_replaced(model, modality, edit):
        out = model(**row, **mm, position_ids=positions, use_cache=False).logits[0]
    return out[torch.as_tensor(kept)]


def shifted(model: Any, short: Compressed) -> torch.Tensor:
    """The same call with one visual token's position moved by one: the planted fault of P2."""
    call = dict(short.kwargs)
    positions = call["position_ids"].clone()
    ids = call["input_ids"][0]
    visual = [i for i, x in enumerate(ids.tolist()) if x == tiny.IMAGE]
    positions[..., 0, visual[len(visual) // 2]] += 1
    call.update(position_ids=positions, mm_encoder_outputs=short.expand(None, 1))
    return model(**call, use_cache=False).logits


@torch.no_grad()
def check_family(name: str, kinds: tuple[str, ...] = ("pick", "merge", "adaptive")) -> FamilyResult:
    """Every cell of one family: batch 1, 2 x 1 ragged on both padding sides, two pictures in one
    row.
    """
    model = tiny.make_model(name)
    adapter = adapter_for(model)
    windows = name.endswith("_w16")
    masked = not adapter.recurrent and not windows
    result = FamilyResult(name, "masked" if masked else "single")
    singles = tiny.split_images(name, tiny.image_inputs(name))
    rows, medias = [], []
    for i, mm in enumerate(singles[:2]):
        rows.append(tiny.prompt(name, model, mm, lead=5 - 2 * i, tail=6 + i, seed=1 + i))
        medias.append(mm)
    if len(rows) == 1:
        rows.append(tiny.prompt(name, model, medias[0], lead=3, tail=7, seed=2))
        medias.append(medias[0])

    for kind in kinds:
        plan = plan_of(kind)
        alone = []
        for i, (row, mm) in enumerate(zip(rows, medias, strict=True)):
            short = compress(adapter, plan, {**row, **mm})
            out = logits(model, short)
            got = real_rows(short, out, 1)[0]
            alone.append(got)
            if masked:
                want = reference_row(model, adapter, row, mm, short, 0)
                bite = (
                    relative(real_rows(short, shifted(model, short), 1)[0], want)
                    if i == 0
                    else None
                )
                result.cells.append(Cell(f"single {i}", kind, relative(got, want), bite))
        both = tiny.join_images(name, medias)
        for side in ("left", "right"):
            batch = tiny.pad_batch(rows, side)
            short = compress(adapter, plan, {**batch, **both})
            out = real_rows(short, logits(model, short), 2)
            for got, want in zip(out, alone, strict=True):
                result.cells.append(Cell(f"batch {side}", kind, relative(got, want)))
        joined = tiny.image_inputs(name)
        row = tiny.prompt(name, model, joined)
        short = compress(adapter, plan, {**row, **joined})
        got = real_rows(short, logits(model, short), 1)[0]
        if masked:
            want = reference_row(model, adapter, row, joined, short, 0)
            result.cells.append(Cell("two pictures", kind, relative(got, want)))
        clip = tiny.video_inputs(name)
        if clip is not None and masked:
            row_v = tiny.video_prompt(name, model, clip)
            short = compress(adapter, plan, {**row_v, **clip})
            got = real_rows(short, logits(model, short), 1)[0]
            want = reference_row(model, adapter, row_v, clip, short, 0, "video")
            result.cells.append(Cell("video", kind, relative(got, want)))
        decoded = decode_diff(model, adapter, row, joined, plan, masked)
        if decoded is not None:
            result.cells.append(Cell("decode", kind, decoded))
    return result


def decode_diff(
    model: Any,
    adapter: AutoAdapter,
    row: dict[str, Any],
    mm: dict[str, Any],
    plan: Plan,
    masked: bool,
) -> float | None:
    """Greedy steps with a cache against a cache-free forward over the shortened prompt plus the new
    tokens.
    """
    short = compress(adapter, plan, {**row, **mm})
    avoid = [t for t in (adapter.token_id("image"), adapter.token_id("video")) if t is not None]
    out = model.generate(
        **{**short.kwargs, "mm_encoder_outputs": short.expand(None, 1)},
        max_new_tokens=STEPS,
        min_new_tokens=STEPS,
        do_sample=False,
        suppress_tokens=avoid,
        return_dict_in_generate=True,
        output_logits=True,
    )
    if not masked:
        return None
    ids = out.sequences[:, :-1]
    extra = ids.shape[1] - short.kwargs["input_ids"].shape[1]
    positions = short.kwargs["position_ids"]
    tail = torch.stack([positions[..., -1] + 1 + j for j in range(extra)], -1)
    call = {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "position_ids": torch.cat([positions, tail], -1),
        "mm_encoder_outputs": short.expand(None, 1),
    }
    for key in ("token_type_ids", "mm_token_type_ids"):
        if key in short.kwargs:
            value = short.kwargs[key]
            # PaliGemma: token type 1 marks the causal suffix.
            fill = 1 if "paligemma" in adapter.model_type else 0
            call[key] = torch.cat([value, torch.full((1, extra), fill)], 1)
    want = model(**call, use_cache=False).logits[0, -STEPS:]
    return relative(torch.cat(out.logits), want)
