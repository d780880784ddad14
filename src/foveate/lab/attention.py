"""How well CLS attention finds the evidence of an answer, layer by layer of the vision tower."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch

from .canvas import Box
from .evidence import evidence_kept, evidence_tokens
from .tasks import Sample, samples

if TYPE_CHECKING:
    from .reader import Reader


@torch.no_grad()
def cls_evidence(
    reader: Reader, families: Sequence[str], n: int = 60, keep: float = 0.25, seed: int = 0
) -> dict[str, list[float]]:
    """Share of evidence tokens among the `keep` share of tokens with the highest CLS attention, by
    family and layer.

    Attention is averaged over heads. A random choice would score `keep`. Of several pictures the
    one with the first evidence box counts.
    """
    tower = reader.model.model.vision_tower
    side = (
        reader.model.config.vision_config.image_size // reader.model.config.vision_config.patch_size
    )
    count = max(1, round(keep * side * side))
    before = tower.config._attn_implementation
    tower.set_attn_implementation("eager")
    found: dict[str, list[float]] = {}
    try:
        for family in families:
            tested = samples(family, "test", n, seed)
            shown = [s.images[s.box_images[0]] for s in tested]
            pixels = reader.processor.image_processor(shown, return_tensors="pt")
            layers = tower(
                pixels["pixel_values"].to(reader.device), output_attentions=True
            ).attentions
            masks = [evidence_tokens(_boxes(s), s.image.size, (side, side)) for s in tested]
            found[family] = []
            for weights in layers:
                order = (
                    weights[:, :, 0, 1:]
                    .mean(1)
                    .argsort(-1, descending=True)[:, :count]
                    .cpu()
                    .numpy()
                )
                kept = [evidence_kept(mask, row) for mask, row in zip(masks, order, strict=True)]
                found[family].append(float(np.mean(kept)))
    finally:
        tower.set_attn_implementation(before)
    return found


def _boxes(sample: Sample) -> list[Box]:
    """The evidence boxes in the picture of the first."""
    pairs = zip(sample.boxes, sample.box_images, strict=True)
    return [box for box, at in pairs if at == sample.box_images[0]]
