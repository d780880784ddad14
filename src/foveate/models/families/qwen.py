"""Qwen2.5-VL towers work in window order: encoder tokens are put back into pixel order before a
method sees them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from foveate.models import compat
from foveate.models.adapter import AutoAdapter, family
from foveate.models.compat_packed import kept_order
from foveate.models.encoded import Piece
from foveate.models.packed import raster_owner


@family("qwen2_5_vl", "qwen2_5_omni_thinker")
class WindowedAdapter(AutoAdapter):
    """Undoes the window permutation, which moves whole groups of merge² patches."""

    def reorder(self, tokens: Tensor, mm: Mapping[str, Any]) -> Tensor:
        grids = mm.get("image_grid_thw")
        if grids is None:
            grids = mm["video_grid_thw"]
        order = compat.window_order(self.config.vision_config, grids).to(tokens.device)
        if mm.get("kept_tokens") is not None:
            order = kept_order(order, mm["kept_tokens"])
        unit = tokens.shape[0] // order.shape[0]
        windows = tokens.unflatten(0, (-1, unit))
        pixels = torch.empty_like(windows)
        pixels[order] = windows
        return pixels.flatten(0, 1)


@family("paddleocr_vl")
class PaddleOcrAdapter(AutoAdapter):
    """Patches stand row by row; the projector gathers square blocks of them."""

    def pieces(self, out: Any, mm: Mapping[str, Any]) -> list[Piece]:
        pieces = super().pieces(out, mm)
        for piece, patches in zip(pieces, mm["image_grid_thw"].tolist(), strict=True):
            merge = patches[1] // piece.grid[1]
            piece.group = raster_owner(tuple(patches), merge).to(piece.features.device)
        return pieces
