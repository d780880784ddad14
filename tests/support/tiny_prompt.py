"""Prompts for tiny models: token ids whose runs of placeholders match what the encoder gives."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Generator, Tensor
from torch.nn import functional

from tests.support.tiny_spec import IMAGE, TEXT_IDS, Tiny

GAP = 3  # text tokens between two runs
SEQUENCE = ("input_ids", "attention_mask", "mm_token_type_ids", "token_type_ids")


@torch.no_grad()
def feature_lengths(model: Any, mm: dict[str, Tensor], modality: str = "image") -> list[int]:
    """Tokens of each entry of the features that the model makes of `mm`."""
    out = getattr(model.base_model, f"get_{modality}_features")(**mm, return_dict=True)
    features = out.pooler_output
    if features is None:  # Llama 4 projects later, inside forward
        features = out.last_hidden_state
    if torch.is_tensor(features):
        features = features.reshape(-1, *features.shape[-2:])
    return [int(f.shape[0]) for f in features]


def image_runs(tiny: Tiny, lengths: Sequence[int]) -> list[int]:
    """Lengths of the runs of placeholders, in order."""
    if tiny.run_tokens is None:
        return list(lengths)
    runs = []
    for n in lengths:
        if n % tiny.run_tokens:
            raise ValueError(f"{tiny.name}: {n} tokens are no multiple of {tiny.run_tokens}")
        runs += [tiny.run_tokens] * (n // tiny.run_tokens)
    return runs


def video_runs(tiny: Tiny, lengths: Sequence[int], frames: Sequence[int]) -> list[list[int]]:
    """Run lengths of each entry: one run a frame, or one in all."""
    out = []
    for n, t in zip(lengths, frames, strict=True):
        if tiny.frame_runs and n % t:
            raise ValueError(f"{tiny.name}: {n} tokens do not divide into {t} frames")
        out.append([n // t] * t if tiny.frame_runs else [n])
    return out


def write(
    tiny: Tiny,
    model: Any,
    groups: Sequence[Sequence[int]],
    token: int,
    kind: int,
    around: tuple[int, int] | None,
    lead: int,
    tail: int,
    seed: int,
) -> dict[str, Tensor]:
    """One row of text and runs. `groups`: runs that `around` encloses; `kind`: modality id."""
    generator = Generator().manual_seed(seed)

    def words(count: int) -> list[int]:
        return torch.randint(*TEXT_IDS, (count,), generator=generator).tolist()

    ids, first = words(lead), True
    for group in groups:
        opening, closing = ([around[0]], [around[1]]) if around else ([], [])
        if not first:
            ids += words(GAP)
        ids += opening
        for i, run in enumerate(group):
            if i:
                ids += words(GAP)
            before, after = tiny.around_run or (None, None)
            ids += [] if before is None else [before]
            ids += [token] * run
            ids += [] if after is None else [after]
        ids += closing
        first = False
    ids += words(tail)
    row = torch.tensor([ids])
    out = {"input_ids": row, "attention_mask": torch.ones_like(row)}
    return {**out, **token_types(tiny, model, row, token, kind)}


def token_types(tiny: Tiny, model: Any, ids: Tensor, token: int, kind: int) -> dict[str, Tensor]:
    """The token types that this family's forward takes, by name."""
    takes = {*inspect.signature(model.forward).parameters}
    takes |= {*inspect.signature(model.base_model.forward).parameters}
    types = (ids == token).long() * kind
    if not tiny.marks_images:
        types = torch.zeros_like(ids)
    return {k: types for k in ("mm_token_type_ids", "token_type_ids") if k in takes}


def image_prompt(
    tiny: Tiny, model: Any, mm: dict[str, Tensor], lead: int, tail: int, seed: int
) -> dict[str, Tensor]:
    groups = [[run] for run in image_runs(tiny, feature_lengths(model, mm))]
    return write(tiny, model, groups, IMAGE, 1, None, lead, tail, seed)


def video_prompt(
    tiny: Tiny, model: Any, mm: dict[str, Tensor], lead: int, tail: int, seed: int
) -> dict[str, Tensor]:
    if tiny.videos is None:
        raise ValueError(f"{tiny.name} takes no videos")
    lengths = feature_lengths(model, mm, "video")
    frames = tiny.videos.frames(mm)
    groups = video_runs(tiny, lengths, frames)
    token, kind, around = tiny.video_id, tiny.video_type, tiny.around_video
    out = write(tiny, model, groups, token, kind, around, lead, tail, seed)
    if tiny.seconds_per_grid is not None:
        out["video_second_per_grid"] = torch.full((len(lengths),), tiny.seconds_per_grid)
    return out


def pad_batch(
    rows: Sequence[dict[str, Tensor]], side: Literal["left", "right"]
) -> dict[str, Tensor]:
    """Rows of unequal length as one batch: id 0, attention 0 and type 0 where they are short."""
    if side not in ("left", "right"):
        raise ValueError(f"side is {side!r}; it must be 'left' or 'right'")
    width = max(r["input_ids"].shape[1] for r in rows)
    out = {}
    for key in rows[0]:
        parts = [r[key] for r in rows]
        if key in SEQUENCE:
            missing = [width - p.shape[1] for p in parts]
            pads = [(m, 0) if side == "left" else (0, m) for m in missing]
            parts = [functional.pad(p, pad) for p, pad in zip(parts, pads, strict=True)]
        out[key] = torch.cat(parts)
    return out
