"""LLaVA-1.5 and Pixtral: one projected token per patch, so a method may merge encoder tokens and
project afterwards.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from foveate.models.adapter import AutoAdapter, family
from foveate.models.encoded import Piece


@family("llava")
class LlavaAdapter(AutoAdapter):
    """Tiles of a square tower, or (Pixtral) one packed run of rows whose size `image_sizes` gives."""

    tokenwise = True

    def pieces(self, out: Any, mm: Mapping[str, Any]) -> list[Piece]:
        features = self.features(out)
        if self.config.vision_config.model_type != "pixtral":
            return self.tiled(features, self._tile_tokens(out))
        return sized_pieces(features, mm["image_sizes"], self.config.vision_config.patch_size)

    def project(self, encoder_tokens: Tensor) -> Tensor:
        projected: Tensor = self.base.multi_modal_projector(encoder_tokens)
        return projected


@family("mistral3")
class Mistral3Adapter(AutoAdapter):
    """A Pixtral tower whose projector merges square blocks of patches."""

    def pieces(self, out: Any, mm: Mapping[str, Any]) -> list[Piece]:
        patch = self.config.vision_config.patch_size
        return sized_pieces(self.features(out), mm["image_sizes"], patch)


def sized_pieces(features: list[Tensor], sizes: Any, patch: int) -> list[Piece]:
    """Pieces of a tower that packs pictures of (height, width) pixels, with merge inferred from the
    counts.
    """
    pieces, start = [], 0
    for i, (f, (height, width)) in enumerate(
        zip(features, torch.as_tensor(sizes).tolist(), strict=True)
    ):
        h, w = height // patch, width // patch
        merge = round((h * w / f.shape[0]) ** 0.5)
        small_h, small_w = h // merge, w // merge
        rows = torch.arange(h, device=f.device) // merge
        cols = torch.arange(w, device=f.device) // merge
        group = rows[:, None] * small_w + cols[None, :]
        inside = (rows[:, None] < small_h) & (cols[None, :] < small_w)
        source = torch.arange(h * w, device=f.device)
        pieces.append(
            Piece(
                f,
                f,
                "image",
                (1, small_h, small_w),
                source=source + start,
                group=torch.where(inside, group, -1).flatten(),
                part=torch.full_like(source, i),
                picture=i,
            )
        )
        start += h * w
    return pieces
