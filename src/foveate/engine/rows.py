"""Where each segment's tokens stand: placeholders of a batch matched to the encoder's pieces, row
by row.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from foveate.core.errors import InputError
from foveate.core.views import Need, Segment
from foveate.models.adapter import AutoAdapter
from foveate.models.encoded import Encoded, Piece, encoder_view


@dataclass
class Placed:
    """One piece in its row: `at` (n,) are the sequence positions of its tokens, `modality` its kind
    of input.
    """

    piece: Piece
    modality: str
    at: np.ndarray
    image: int = 0

    @property
    def free(self) -> np.ndarray:
        """Indices of the tokens a method may choose among: not fixed, and seen by the tower."""
        there = np.ones(self.piece.n, dtype=bool)
        if self.piece.fixed is not None:
            there &= ~self.piece.fixed.cpu().numpy()
        if self.piece.present is not None:
            there &= self.piece.present.cpu().numpy()
        return np.flatnonzero(there)

    @property
    def fixed(self) -> int:
        """Tokens that carry layout."""
        return 0 if self.piece.fixed is None else int(self.piece.fixed.sum())

    def cells(self, chosen: np.ndarray) -> np.ndarray:
        """Places in the grid of tokens that are numbered among the free ones."""
        free = self.free
        if self.piece.fixed is None:
            return free[chosen]
        fixed = self.piece.fixed.cpu().numpy()
        return (np.cumsum(~fixed) - 1)[free[chosen]]


def place(
    adapter: AutoAdapter,
    ids: Tensor,
    mask: Tensor,
    encoded: Sequence[Encoded],
    types: Tensor | None = None,
) -> list[list[Placed]]:
    """Pieces of every row in the order of their placeholders; InputError if counts do not match."""
    host = ids.cpu()
    rows: list[list[Placed]] = [[] for _ in range(ids.shape[0])]
    for found in encoded:
        here = adapter.spots(found.modality, ids, types).cpu() & (mask.cpu() != 0)
        spots = here.nonzero().numpy()
        have = sum(p.n for p in found.pieces)
        if len(spots) != have:
            raise InputError(
                f"the text has {len(spots)} {found.modality} placeholders but the encoder gave {have} "
                "visual tokens; a placeholder typed into the question, or truncation of the prompt, "
                "does this: pass the processor's own output"
            )
        start = 0
        by_row: dict[int, list[Placed]] = {}
        for piece in found.pieces:
            part = spots[start : start + piece.n]
            start += piece.n
            if part.shape[0] and part[0, 0] != part[-1, 0]:
                raise InputError("one picture's placeholders lie in two rows of the batch")
            row = int(part[0, 0]) if part.shape[0] else 0
            by_row.setdefault(row, []).append(Placed(piece, found.modality, part[:, 1]))
        for row, members in by_row.items():
            _number(adapter, members, host[row], here[row])
            rows[row] += members
    for members in rows:
        members.sort(key=lambda p: int(p.at[0]) if p.at.size else -1)
        numbers: dict[tuple[str, int], int] = {}
        for p in members:
            p.image = numbers.setdefault((p.modality, p.image), len(numbers))
    return rows


def _number(adapter: AutoAdapter, members: list[Placed], ids: Tensor, here: Tensor) -> None:
    before = torch.cat([torch.zeros_like(here[:1]), here[:-1]])
    starts = (here & ~before).long().cumsum(0) - 1
    runs = [int(starts[p.at[0]]) if p.at.size else -1 for p in members]
    pictures = adapter.pictures([p.piece for p in members], runs, ids)
    for p, picture in zip(members, pictures, strict=True):
        p.image = picture


def segments(
    rows: Sequence[Placed], encoded: Mapping[str, Encoded], needs: frozenset[Need]
) -> list[Segment]:
    """The typed views a token method sees, fixed tokens stripped."""
    out = []
    for ordinal, p in enumerate(rows):
        piece = p.piece
        features, free = piece.features, p.free
        if free.size != piece.n:
            features = features[torch.as_tensor(free, device=features.device)]
        wants = any(n.what not in ("question", "clip") for n in needs)
        view = encoder_view(encoded[p.modality], piece, needs) if wants else None
        out.append(
            Segment(
                image=p.image,
                ordinal=ordinal,
                kind=piece.kind,
                grid=piece.grid,
                features=features,
                time_s=piece.time_s,
                encoder=view,
            )
        )
    return out
