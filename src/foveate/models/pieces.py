"""The two common layouts of encoder output: one piece an encoder pass, or one a packed grid."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from foveate.core.errors import UnsupportedError
from foveate.core.views import Kind
from foveate.models.encoded import Piece
from foveate.models.grids import block_group, square


def tiled_pieces(features: Sequence[Tensor], patches: int, kind: Kind) -> list[Piece]:
    """One piece an encoder pass of `patches` tokens; n == patches maps one to one, else square
    blocks.
    """
    out = []
    for i, f in enumerate(features):
        n = int(f.shape[0])
        group = block_group(patches, n, f.device)
        source = None
        if group is not None:
            source = torch.arange(patches, device=f.device) + i * patches
        part = torch.full_like(source, i) if source is not None else None
        grid = (1, *square(n))
        out.append(Piece(f, f, kind, grid, source=source, group=group, part=part, picture=i))
    return out


def packed_pieces(
    model_type: str, features: Sequence[Tensor], grids: Tensor, kind: Kind
) -> list[Piece]:
    """Pieces of a packed tower: grid (t, h, w) in patches, consecutive groups of merge² patches."""
    out, start = [], 0
    for i, (f, grid) in enumerate(zip(features, grids.tolist(), strict=True)):
        t, h, w = grid
        patches, n = t * h * w, int(f.shape[0])
        merge = math.isqrt(patches // n)
        if merge * merge * n != patches or h % merge or w % merge:
            raise UnsupportedError(
                f"{model_type}: {n} tokens for a grid of {t}x{h}x{w} patches is no square merge"
            )
        place = torch.arange(patches, device=f.device)
        out.append(
            Piece(
                f,
                f,
                "video" if t > 1 else kind,
                (t, h // merge, w // merge),
                source=place + start,
                group=place // (merge * merge),
                part=torch.full_like(place, i),
                picture=i,
            )
        )
        start += patches
    return out
