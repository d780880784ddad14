"""LLaVA-NeXT and LLaVA-OneVision: a thumbnail and unpadded high-resolution rows, each row ended by
a newline token.

Where an encoder token went is found by sending token numbers, instead of features, through the
model's own packing.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from foveate.models.adapter import AutoAdapter, family
from foveate.models.encoded import Piece
from foveate.models.grids import square


@family("llava_next", "llava_onevision", "llava_next_video")
class AnyresAdapter(AutoAdapter):
    """Thumbnail first, then rows; a picture without tiles is the thumbnail and (OneVision) one
    newline.
    """

    tokenwise = True

    def project(self, encoder_tokens: Tensor) -> Tensor:
        projected: Tensor = self.base.multi_modal_projector(encoder_tokens)
        return projected

    def _tiles(self, mm: Mapping[str, Any], count: int) -> list[int]:
        """Encoder passes of each picture: all of the padded batch, or what the pinpoints say."""
        pixels = mm["pixel_values"]
        if pixels.ndim == 5 and pixels.shape[0] == count:
            from transformers.models.llava_next.modeling_llava_next import image_size_to_num_patches

            whole = self.config.vision_config.image_size
            each = [
                int(image_size_to_num_patches(size, self.config.image_grid_pinpoints, whole))
                for size in mm["image_sizes"]
            ]
            single = mm.get("batch_num_images")
            if single is not None:
                wanted = [n == 1 for n in torch.as_tensor(single).tolist() for _ in range(n)]
                each = [e if w else 1 for e, w in zip(each, wanted, strict=True)]
            return each
        return [1] * count

    def pieces(self, out: Any, mm: Mapping[str, Any]) -> list[Piece]:
        features = self.features(out)
        per_tile = self._tile_tokens(out)
        tiles = self._tiles(mm, len(features))
        pieces, first = [], 0
        for i, (f, count) in enumerate(zip(features, tiles, strict=True)):
            pieces += self._picture(i, f, count, first, per_tile, mm)
            first += count
        return pieces

    def _picture(
        self, i: int, f: Tensor, tiles: int, first: int, per_tile: int, mm: Mapping[str, Any]
    ) -> list[Piece]:
        place = torch.arange(per_tile, device=f.device)
        base = Piece(
            f[:per_tile],
            f[:per_tile],
            "thumbnail" if tiles > 1 else "image",
            (1, *square(per_tile)),
            source=place + first * per_tile,
            group=place,
            part=torch.full_like(place, first),
            picture=i,
        )
        rest = f[per_tile:]
        if tiles == 1:
            if rest.shape[0]:  # a lone newline belongs to the picture before it
                base.features = base.payload = f
                base.fixed = torch.arange(f.shape[0], device=f.device) >= per_tile
            return [base]
        packed = self._numbers(tiles, per_tile, mm["image_sizes"][i]).to(f.device)[per_tile:]
        fixed = packed < 0
        high = torch.arange(per_tile * tiles, device=f.device)[per_tile:]
        index = torch.full((per_tile * tiles,), -1, device=f.device)
        exact = bool((packed[~fixed] == packed[~fixed].round()).all())
        source: Tensor | None = high + first * per_tile
        if exact:
            index[packed[~fixed].long()] = torch.arange(int((~fixed).sum()), device=f.device)
        else:
            source = None  # shrunk by interpolation: a projected token mixes several encoder tokens
        width = int(fixed.nonzero()[0, 0])
        grid = (1, int(fixed.sum()), width)
        tile = high // per_tile + first
        group = index[per_tile:]
        return [
            base,
            Piece(
                rest,
                rest,
                "tile",
                grid,
                fixed=fixed,
                source=source,
                group=group if exact else None,
                part=tile if exact else None,
                picture=i,
            ),
        ]

    def _numbers(self, tiles: int, per_tile: int, size: Tensor) -> Tensor:
        """The packed layout (n,) in encoder token numbers of this picture, newlines as -1."""
        count = tiles * per_tile
        numbers = torch.arange(count, dtype=torch.float32).reshape(tiles, per_tile, 1)
        takes = inspect.signature(self.base.pack_image_features).parameters
        extra = {}
        if "vision_feature_select_strategy" in takes:
            extra["vision_feature_select_strategy"] = self.config.vision_feature_select_strategy
        if "vision_aspect_ratio" in takes:
            extra["vision_aspect_ratio"] = self.config.vision_aspect_ratio
        packed, _ = self.base.pack_image_features(
            [numbers], size[None].cpu(), image_newline=torch.tensor([-1.0]), **extra
        )
        layout: Tensor = packed[0][:, 0]
        return layout

    def video_pieces(self, out: Any, mm: Mapping[str, Any]) -> list[Piece]:
        """OneVision: frames pooled to half the side, and one newline at the end of the video."""
        pieces = []
        frames = int(mm["pixel_values_videos"].shape[1])
        for i, f in enumerate(self.features(out)):
            n = int(f.shape[0])
            tail = n % frames
            fixed = torch.arange(n, device=f.device) >= n - tail if tail else None
            grid = (frames, *square((n - tail) // frames))
            pieces.append(Piece(f, f, "video", grid, fixed=fixed, picture=i))
        return pieces
