"""Towers whose pictures have sizes of their own: LFM2-VL, Gemma 4, MiniCPM-V 4.6, Molmo 2, Ovis 2."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from foveate.core.views import Kind
from foveate.models.adapter import AutoAdapter, family
from foveate.models.encoded import Piece
from foveate.models.grids import by_run


def grouped(f: Tensor, x: Tensor, y: Tensor, source: Tensor, i: int) -> Piece:
    """A piece whose patches at (x, y) fall into square blocks, one token each; no map if counts do
    not fit.
    """
    n = int(f.shape[0])
    width, height = int(x.max()) + 1, int(y.max()) + 1
    merge = math.isqrt(max(1, width * height // n))
    w, h = width // merge, height // merge
    if w * h != n:
        return Piece(f, f, "image", (1, 1, n), picture=i)
    inside = (x // merge < w) & (y // merge < h)
    group = torch.where(inside, (y // merge) * w + x // merge, -1)
    return Piece(
        f,
        f,
        "image",
        (1, h, w),
        source=source,
        group=group,
        part=torch.full_like(source, i),
        picture=i,
    )


@family("lfm2_vl")
class Lfm2VlAdapter(AutoAdapter):
    """Pictures are padded to the longest of the batch; `spatial_shapes` gives rows and columns of
    patches.
    """

    def pieces(self, out: Any, mm: Mapping[str, Any]) -> list[Piece]:
        padded = int(mm["pixel_values"].shape[1])
        pieces = []
        shapes = mm["spatial_shapes"].tolist()
        for i, (f, (h, w)) in enumerate(zip(self.features(out), shapes, strict=True)):
            place = torch.arange(h * w, device=f.device)
            pieces.append(grouped(f, place % w, place // w, place + i * padded, i))
        return pieces


@family("gemma4")
class Gemma4Adapter(AutoAdapter):
    """`image_position_ids` gives each patch's (x, y), -1 where it is padding; square blocks are
    pooled.
    """

    def pieces(self, out: Any, mm: Mapping[str, Any]) -> list[Piece]:
        positions = mm["image_position_ids"]
        pieces = []
        for i, (f, xy) in enumerate(zip(self.features(out), positions, strict=True)):
            real = (xy >= 0).all(-1).nonzero()[:, 0]
            x, y = xy[real, 0], xy[real, 1]
            pieces.append(grouped(f, x, y, real + i * positions.shape[1], i))
        return pieces

    def video_pieces(self, out: Any, mm: Mapping[str, Any]) -> list[Piece]:
        """Frames of equal size follow one another; encoder tokens are not mapped over time."""
        frames = torch.as_tensor(mm["num_frames_per_video"]).tolist()
        pieces, first = [], 0
        for i, (f, t) in enumerate(zip(self.features(out), frames, strict=True)):
            xy = mm["video_position_ids"][first]
            x, y = xy[(xy >= 0).all(-1)].unbind(-1)
            n = int(f.shape[0])
            frame = grouped(f[: n // t], x, y, torch.arange(x.shape[0], device=f.device), i)
            pieces.append(Piece(f, f, "video", (t, *frame.grid[1:]), picture=i))
            first += t
        return pieces


@family("minicpmv4_6", "minicpmv4_7")
class MiniCpmAdapter(AutoAdapter):
    """A merger in mid-tower: grids follow from the target sizes, encoder tokens are not mapped."""

    def pieces(self, out: Any, mm: Mapping[str, Any]) -> list[Piece]:
        return self._sized(out, mm["target_sizes"], "image")

    def video_pieces(self, out: Any, mm: Mapping[str, Any]) -> list[Piece]:
        """Every frame is encoded and placed as a segment of its own."""
        return self._sized(out, mm["target_sizes_videos"], "video")

    def _sized(self, out: Any, target: Any, kind: Kind) -> list[Piece]:
        sizes = torch.as_tensor(target).reshape(-1, 2).tolist()
        pieces = []
        for i, (f, (h, w)) in enumerate(zip(self.features(out), sizes, strict=True)):
            n = int(f.shape[0])
            scale = math.isqrt(max(1, h * w // n))
            fits = (h // scale) * (w // scale) == n
            grid = (1, h // scale, w // scale) if fits else (1, 1, n)
            pieces.append(Piece(f, f, kind, grid, picture=i))
        return pieces


@family("got_ocr2")
class GotOcrAdapter(AutoAdapter):
    """Strided convolutions with overlap make the tokens: no patch belongs to one token alone."""

    def _tile_tokens(self, out: Any) -> int:
        return 0


@family("molmo2")
class Molmo2Adapter(AutoAdapter):
    """Attention pooling over crops of two resolutions: tokens of a picture have no common grid. In
    the decoder those of all pictures see each other both ways.
    """

    def cuttable(self, inputs: Mapping[str, Any]) -> bool:
        return False

    def pieces(self, out: Any, mm: Mapping[str, Any]) -> list[Piece]:
        return [
            Piece(f, f, "image", (1, 1, int(f.shape[0])), picture=i)
            for i, f in enumerate(self.features(out))
        ]

    def video_pieces(self, out: Any, mm: Mapping[str, Any]) -> list[Piece]:
        grids = torch.as_tensor(mm["video_grids"]).tolist()
        return [
            Piece(f, f, "video", (int(t), int(h), int(w)), picture=i)
            for i, (f, (t, h, w)) in enumerate(zip(self.features(out), grids, strict=True))
        ]

    def token_id(self, modality: str) -> int | None:
        """Videos are written with the picture placeholder; a prompt holds one kind or the other."""
        return super().token_id("image")


@family("ovis2")
class Ovis2Adapter(AutoAdapter):
    """The tower stacks blocks of patches before the visual vocabulary, so passes are longer than
    its output.
    """

    def _tile_tokens(self, out: Any) -> int:
        config = self.config.vision_config
        return int((config.image_size // config.patch_size) ** 2)


def joined_runs(ids: Tensor, token: int | None, runs: Sequence[int]) -> list[int]:
    """Runs of placeholders with one token between them, a tile's marker, counted as one run.

    Between two pictures stand at least an end and a begin marker.
    """
    here = [i for i, x in enumerate(ids.tolist()) if x == token]
    number, joined, last = 0, {}, None
    count = -1
    for at in here:
        if last is None or at > last + 1:
            count += 1
            number += last is not None and at > last + 2
            joined[count] = number
        last = at
    return [joined[r] for r in runs]


@family("internvl", "aya_vision", "cohere2_vision")
class TiledAdapter(AutoAdapter):
    """Tiles of one picture stand in one run of placeholders, or with one marker between them."""

    def pieces(self, out: Any, mm: Mapping[str, Any]) -> list[Piece]:
        return self.tiled(self.features(out), self._tile_tokens(out), kind="tile")

    def pictures(self, pieces: Any, runs: Any, ids: Tensor) -> list[int]:
        return list(by_run(joined_runs(ids, self.token_id("image"), runs)))


@family("gemma3n")
class Gemma3nAdapter(AutoAdapter):
    """A convolutional tower: no attention, no tokens before the pool."""

    def _tile_tokens(self, out: Any) -> int:
        return 0
