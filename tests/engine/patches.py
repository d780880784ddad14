"""What tests of dropped patches share: duplicates planted in packed pictures, and a tower of full
length in which no query sees the patches that were dropped.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from foveate.core import PixelMethod, PixelPlan, Pixels, Plan
from foveate.engine.compress import Compressed, compress
from foveate.models.adapter import AutoAdapter, adapter_for
from tests.engine.reference import features_replaced, hidden_columns
from tests.support import tiny

PACKED = (
    "qwen2_vl", "qwen2_5_vl", "qwen2_5_omni", "qwen3_vl", "qwen3_vl_moe", "qwen3_omni_moe",
    "qwen3_5", "glm4v", "glm46v", "glm_ocr", "glm4v_moe", "paddleocr_vl", "video_llama_3",
)  # fmt: skip
PIXELS = {"image": "pixel_values", "video": "pixel_values_videos"}


@dataclass(frozen=True)
class Scattered(PixelMethod):
    """Keeps the first token and about a third of the others, at random; a video loses a whole step."""

    name: ClassVar[str] = "scattered"
    summary: ClassVar[str] = "test: any tokens"
    acts = "patches"

    def reduce(self, pixels: list[Pixels], rng: Any) -> list[PixelPlan]:
        plans = []
        for p in pixels:
            assert p.grid is not None
            t, h, w = p.grid
            keep = np.random.default_rng([p.image, *p.grid]).random(p.grid) < 0.34
            keep[0, 0, 0] = True
            if t > 1:
                keep[t - 2] = False
            plans.append(PixelPlan(patches=tuple(np.flatnonzero(keep.reshape(-1)).tolist())))
        return plans


@dataclass
class Case:
    """One tiny model with a call of its own."""

    model: Any
    adapter: AutoAdapter
    row: dict[str, Tensor]
    mm: dict[str, Tensor]
    modality: str

    def short(self, plan: Plan | str) -> Compressed:
        return compress(self.adapter, Plan.parse(plan), {**self.row, **self.mm})


def case(name: str, modality: str = "image", pictures: int = 2) -> Case:
    model = tiny.make_model(name)
    if modality == "video":
        mm: Any = tiny.video_inputs(name, pictures)
        row = tiny.video_prompt(name, model, mm)
    else:
        mm = tiny.random_images(name, pictures, 0)
        row = tiny.prompt(name, model, mm)
    return Case(model, adapter_for(model), row, mm, modality)


def token_of_patches(c: Case) -> np.ndarray:
    """The visual token of each patch of the call, counted over all pictures, by plain loops."""
    out, first = [], 0
    for i, (t, h, w) in enumerate(c.mm[f"{c.modality}_grid_thw"].tolist()):
        sizes = c.mm.get(f"{c.modality}_merge_sizes")
        m = c.adapter.config.vision_config.spatial_merge_size if sizes is None else int(sizes[i])
        if c.adapter.model_type == "paddleocr_vl":
            for f in range(t):
                for r in range(h):
                    for q in range(w):
                        out.append(first + (f * (h // m) + r // m) * (w // m) + q // m)
        else:
            out += [first + k // (m * m) for k in range(t * h * w)]
        first += t * (h // m) * (w // m)
    return np.asarray(out)


@contextlib.contextmanager
def unseen_patches(c: Case, gone: np.ndarray) -> Iterator[None]:
    """While open, the tower (of full length) attends to no patch of gone (patches,) bool."""
    order = np.arange(gone.size)
    if hasattr(c.adapter.vision, "window_size"):
        from transformers.vision_utils import get_vision_window_index

        v = c.adapter.vision
        index, _ = get_vision_window_index(
            c.mm[f"{c.modality}_grid_thw"], v.spatial_merge_size, v.window_size, v.patch_size
        )
        unit = v.spatial_merge_size**2
        order = (index.numpy()[:, None] * unit + np.arange(unit)).reshape(-1)
    hidden = torch.as_tensor(gone[order])
    own, at = functional.scaled_dot_product_attention, 0

    def masked(q: Tensor, k: Tensor, v: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        nonlocal at
        here = hidden[at : at + k.shape[-2]]
        at = (at + k.shape[-2]) % hidden.numel()
        kwargs["attn_mask"] = torch.zeros(here.shape).masked_fill(here, -1e9)[None, None, None, :]
        return own(q, k, v, **kwargs)

    functional.scaled_dot_product_attention = masked
    try:
        yield
    finally:
        functional.scaled_dot_product_attention = own
        assert at == 0


@torch.no_grad()
def masked_features(c: Case, present: np.ndarray) -> tuple[list[Tensor], list[Tensor]]:
    """Projected features of all tokens, picture by picture, and DeepStack rows of all, from a tower
    of full length that hides the patches of tokens that present (tokens,) lacks.
    """
    with unseen_patches(c, ~present[token_of_patches(c)]):
        encoded = c.adapter.encode(c.mm, c.modality)
    deep = [torch.cat(x) for x in zip(*(p.deepstack or [] for p in encoded.pieces), strict=True)]
    return [p.payload for p in encoded.pieces], deep


@torch.no_grad()
def reference_logits(c: Case, short: Compressed, present: np.ndarray) -> Tensor:
    """Logits at kept positions of a full-length run: hidden patches in the tower, hidden columns in
    the language model.
    """
    features, deep = masked_features(c, present)
    result = short.rows[0]
    length = c.row["input_ids"].shape[1]

    def edit(out: Any) -> None:
        c.adapter.put(out, out, features)
        if deep:
            sizes = [f.shape[0] for f in features]
            out.deepstack_features = [list(d.split(sizes)) for d in deep]

    dropped = np.setdiff1d(np.arange(length), result.index)
    positions = {}
    if short.positions == "renumber":
        ids = torch.zeros(1, length, dtype=torch.long)
        ids[0, torch.as_tensor(result.index)] = torch.arange(len(result.index))
        positions = {"position_ids": ids}
    with hidden_columns(c.model, dropped), features_replaced(c.model, c.modality, edit):
        out = c.model(**c.row, **c.mm, **positions, use_cache=False).logits[0]
    return out[torch.as_tensor(result.index)]
