"""Packed towers: pictures of any size as one run of patches, some of which may be left out.

A square of merge x merge patches becomes one visual token, so whole squares leave. The tower runs on
the rest with their own positions; what it gives is put back into rows of the full grid, of which the
missing ones are never read.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from foveate.core.errors import InputError, UnsupportedError
from foveate.core.views import Grid
from foveate.models.compat_packed import tower_facts, tower_hooks
from foveate.models.encoded import Piece

if TYPE_CHECKING:
    from foveate.models.adapter import AutoAdapter

# Towers whose positions, borders and windows are those of transformers.vision_utils.
_BLOCKED = (
    "qwen2_vl", "qwen2_5_vl", "qwen2_5_omni_thinker", "qwen3_vl", "qwen3_vl_moe",
    "qwen3_omni_moe_thinker", "qwen3_5", "glm4v", "glm46v", "glm_ocr", "glm4v_moe", "video_llama_3",
)  # fmt: skip
_RASTER = ("paddleocr_vl",)  # patches row by row: the projector gathers the squares
_PIXELS = {"image": "pixel_values", "video": "pixel_values_videos"}


def check_packed(adapter: AutoAdapter, name: str) -> None:
    """UnsupportedError unless patches can leave before this family's tower."""
    if adapter.model_type in (*_BLOCKED, *_RASTER):
        return
    raise UnsupportedError(
        f"{name} is not available on {adapter.model_type}: patches can leave before the tower only "
        "where it packs pictures of any size into one run of patches (Qwen2-VL to Qwen3.5, GLM-4V, "
        "PaddleOCR-VL, VideoLLaMA 3), and this one takes fixed or padded pictures; take downscale, or a "
        "token method such as divprune"
    )


class Packing:
    """What one call of a packed tower holds: pictures (or videos) and the squares of their patches."""

    def __init__(self, adapter: AutoAdapter, mm: Mapping[str, Any], modality: str) -> None:
        self.adapter, self.modality = adapter, modality
        self.raster = adapter.model_type in _RASTER
        grids, pixels = mm.get(f"{modality}_grid_thw"), mm.get(_PIXELS[modality])
        if grids is None or pixels is None:
            raise InputError(f"{modality} patches come with {modality}_grid_thw: pass both")
        self.pixels: Tensor = pixels
        self.patches: list[Grid] = [(int(t), int(h), int(w)) for t, h, w in grids.tolist()]
        if sum(t * h * w for t, h, w in self.patches) != pixels.shape[0]:
            raise InputError(
                f"{pixels.shape[0]} patches do not fill the grids {self.patches}: pass the processor's "
                "own output"
            )
        own = mm.get(f"{modality}_merge_sizes")
        size = int(getattr(adapter.config.vision_config, "spatial_merge_size", 1))
        self.merges = [size] * len(self.patches) if own is None else [int(m) for m in own]

    @property
    def grids(self) -> list[Grid]:
        """Grid of visual tokens (t, h, w) of each picture."""
        pairs = zip(self.patches, self.merges, strict=True)
        return [(t, h // m, w // m) for (t, h, w), m in pairs]

    @property
    def sizes(self) -> list[int]:
        return [t * h * w for t, h, w in self.grids]

    def owner(self, index: int) -> Tensor:
        """(patches,): the visual token of each patch of a picture, in the order of the patches."""
        (t, h, w), m = self.patches[index], self.merges[index]
        place = torch.arange(t * h * w, device=self.pixels.device)
        return raster_owner(self.patches[index], m) if self.raster else place // (m * m)

    def picture(self, index: int) -> np.ndarray:
        """(frames, H, W, colours) float32: a picture as the tower would get it, patches put together."""
        t, h, w = self.patches[index]
        m = 1 if self.raster else self.merges[index]
        start = sum(a * b * c for a, b, c in self.patches[:index])
        rows = self.pixels[start : start + t * h * w].detach().float().cpu().numpy()
        edge = int(self.adapter.config.vision_config.patch_size)
        x = rows.reshape(t, h // m, w // m, m, m, 3, -1, edge, edge)
        # (t, h, w, in h, in w, colour, frame, y, x) -> (t, frame, h, in h, y, w, in w, x, colour)
        x = x.transpose(0, 6, 1, 3, 7, 2, 4, 8, 5)
        return np.ascontiguousarray(x.reshape(-1, h * edge, w * edge, 3))


def raster_owner(patches: Grid, merge: int) -> Tensor:
    """(patches,): the visual token of each patch where patches of a grid (t, h, w) stand row by row."""
    t, h, w = patches
    frame, row, col = (x.flatten() for x in torch.meshgrid(
        torch.arange(t), torch.arange(h), torch.arange(w), indexing="ij"
    ))  # fmt: skip
    return (frame * (h // merge) + row // merge) * (w // merge) + col // merge


class KeptPatches:
    """A choice of visual tokens for one Packing, whose patches alone enter the tower.

    present: bool (n,) a picture; at least one token of each is there.
    """

    def __init__(self, packing: Packing, present: Sequence[np.ndarray]) -> None:
        self.packing = packing
        self.device = packing.pixels.device
        self.present = [torch.as_tensor(p, device=self.device) for p in present]
        self.tokens = torch.cat(self.present)
        self.owners = [packing.owner(i).to(self.device) for i in range(len(self.present))]
        pairs = zip(self.present, self.owners, strict=True)
        self.kept = torch.cat([p[owner] for p, owner in pairs])  # of all patches, in their order

    @property
    def identity(self) -> bool:
        return bool(self.tokens.all())

    def dropping(self) -> contextlib.AbstractContextManager[None]:
        """While open, the tower runs on the kept patches; nothing is touched where all are kept."""
        if self.identity:
            return contextlib.nullcontext()
        return tower_hooks(self.packing.adapter.vision, self._before, self._after)

    def narrow(self, pieces: Sequence[Piece]) -> None:
        """Tell each piece which of its tokens are there, and map them to the tower's own tokens."""
        if self.identity:
            return
        start = 0
        for piece, present, owner in zip(pieces, self.present, self.owners, strict=True):
            there = owner[present[owner]]
            piece.present = present
            piece.source = torch.arange(start, start + there.numel(), device=self.device)
            piece.group = (present.long().cumsum(0) - 1)[there]
            piece.part = torch.full_like(there, piece.picture)
            start += there.numel()

    # --- around the tower -----------------------------------------------------------------------
    def _before(self, values: dict[str, Any]) -> dict[str, Any]:
        first = next(iter(values))
        pixels, grids = values[first], values["grid_thw"]
        merges = values.get("merge_sizes")
        merge = 1 if self.packing.raster else merges if merges is not None else self._merge
        packed = pixels.shape[0] == self.kept.numel()
        facts = tower_facts(self.packing.adapter.vision, grids, merge, self.kept)
        left = pixels[self.kept] if packed else pixels[:, self.kept]
        return {**values, **facts, first: left, "grid_thw": self._grids(grids, merges)}

    @property
    def _merge(self) -> int:
        return self.packing.merges[0]

    def _grids(self, grids: Tensor, merges: Tensor | None) -> Tensor:
        """What of the grid the tower still reads beside the facts: one row for each run of patches
        that attend to one another, or (VideoLLaMA 3, which averages squares) squares as steps.
        """
        if merges is not None:
            left = [int(p.sum()) for p in self.present]
            rows = [[k, int(m), int(m)] for k, m in zip(left, merges, strict=True)]
            return grids.new_tensor(rows)
        steps = [g for g in grids.tolist() for _ in range(g[0])]
        ends = np.cumsum([0] + [h * w for _, h, w in steps])
        kept = self.kept.cpu().numpy()
        pairs = zip(ends[:-1], ends[1:], strict=True)
        there = [kept[a:b].any() for a, b in pairs]
        return grids.new_tensor(
            [[1, h, w] for (_, h, w), ok in zip(steps, there, strict=True) if ok]
        )

    def _after(self, out: Any) -> Any:
        """Rows of tokens and patches that are there, at their places in the full grid."""
        if torch.is_tensor(out.pooler_output):
            out.pooler_output = _spread(out.pooler_output, self.tokens)
        else:
            last = out.last_hidden_state
            there = self.kept if last.shape[0] == int(self.kept.sum()) else self.tokens
            out.last_hidden_state = _spread(last, there)
        if out.get("deepstack_features"):
            out.deepstack_features = [_spread(x, self.tokens) for x in out.deepstack_features]
        return out


def _spread(rows: Tensor, there: Tensor) -> Tensor:
    """rows (k, c) at the k places of there (n,), zeros elsewhere."""
    out = rows.new_zeros(there.shape[0], rows.shape[1])
    out[there] = rows
    return out


__all__ = ["KeptPatches", "Packing", "check_packed", "raster_owner"]
