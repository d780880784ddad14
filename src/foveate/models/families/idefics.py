"""Idefics2, Idefics3 and SmolVLM: features come one entry a prompt row; a picture is tiles and then
the whole picture.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from foveate.models.adapter import AutoAdapter, family
from foveate.models.encoded import Piece
from foveate.models.grids import block_group, square


@family("idefics3", "smolvlm")
class IdeficsAdapter(AutoAdapter):
    """Tiles of equal length; markers stand between them as text.

    Tiles belong to one picture until the marker of the global picture has passed: `global_marker`
    from the tokenizer, else the token before the row's last run.
    """

    global_marker: int | None = None

    def tile_length(self, out: Any) -> int:
        patches = self._tile_tokens(out)
        return patches // int(self.config.scale_factor) ** 2

    def pieces(self, out: Any, mm: Mapping[str, Any]) -> list[Piece]:
        length, patches = self.tile_length(out), self._tile_tokens(out)
        pieces = []
        tile = 0
        for row in self.features(out):
            for f in row.split(length):
                group = block_group(patches, length, f.device)
                source = torch.arange(patches, device=f.device) + tile * patches
                mapped = group is not None
                pieces.append(
                    Piece(
                        f,
                        f,
                        "tile",
                        (1, *square(length)),
                        source=source if mapped else None,
                        group=group,
                        part=torch.full_like(source, tile) if mapped else None,
                        picture=tile,
                    )
                )
                tile += 1
        return pieces

    def pictures(self, pieces: Sequence[Piece], runs: Sequence[int], ids: Tensor) -> list[int]:
        flat = ids.tolist()
        starts = _run_starts(flat, self.token_id("image"))
        # A picture always ends with its global view, so the last run shows that view's marker.
        marker = self.global_marker if self.global_marker is not None else flat[starts[-1] - 1]
        picture, numbers = 0, []
        for piece, run in zip(pieces, runs, strict=True):
            numbers.append(picture)
            begin = starts[run]
            if begin > 0 and flat[begin - 1] == marker:
                piece.kind = "thumbnail"
                picture += 1
        return numbers


@family("idefics2")
class Idefics2Adapter(IdeficsAdapter):
    """A perceiver gives a fixed number of latents a tile; encoder tokens map to none of them."""

    def tile_length(self, out: Any) -> int:
        return int(self.config.perceiver_config.resampler_n_latents)


def _run_starts(ids: list[int], token: int | None) -> list[int]:
    return [i for i, x in enumerate(ids) if x == token and (i == 0 or ids[i - 1] != token)]
