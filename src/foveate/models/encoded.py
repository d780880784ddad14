"""What the encoder gave for a batch: pieces in the model's own order, and the encoder's tokens
behind each.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from foveate.core.errors import UnsupportedError
from foveate.core.views import Attention, EncoderView, Grid, Kind, Need
from foveate.models.compat import Capture


@dataclass
class Piece:
    """One segment's features before they are placed in a row.

    features (n, d) projected, fixed tokens included; payload (n, p) is what the model takes back
    (equal
    to features unless the model projects later). fixed (n,) bool. source (m,): indices into the
    encoder's
    flattened tokens; group (m,): encoder token -> index among the tokens that are not fixed, -1
    none;
    part (m,): encoder pass. deepstack: one (n, d) tensor a layer. picture: index of the picture in
    the
    batch, or -1 where only the runs of placeholders tell. present (n,) bool: tokens whose patches
    entered the tower, None = all; rows of the others mean nothing, and `group` counts present ones.
    """

    features: Tensor
    payload: Tensor
    kind: Kind
    grid: Grid
    fixed: Tensor | None = None
    source: Tensor | None = None
    group: Tensor | None = None
    part: Tensor | None = None
    deepstack: list[Tensor] | None = None
    picture: int = -1
    time_s: Tensor | None = None
    present: Tensor | None = None

    @property
    def n(self) -> int:
        return int(self.features.shape[0])


@dataclass
class EncoderTokens:
    """The encoder's tokens of a batch, flattened over passes, special tokens apart.

    hidden[block]: (M, c) output of a block; special[block]: (passes, s, c). queries: tokens that
    attend in
    one pass (for means), None where a pass is a whole picture.
    """

    blocks: int
    hidden: dict[int, Tensor] = field(default_factory=dict)
    special: dict[int, Tensor] = field(default_factory=dict)
    attention: dict[int, Attention] = field(default_factory=dict)
    queries: int | None = None
    feature_block: int = -1

    def drop_unless_covering(self, pieces: list[Piece]) -> None:
        """Forget blocks whose tokens are not the tower's patches (a merger has already acted on
        them).
        """
        sources = [p.source for p in pieces if p.source is not None and p.source.numel()]
        need = max((int(s.max()) + 1 for s in sources), default=0)
        self.hidden = {b: h for b, h in self.hidden.items() if h.shape[0] >= need}


@dataclass
class Encoded:
    """Features of all pictures (or videos) of a batch, in placeholder order."""

    modality: str
    out: Any
    pieces: list[Piece]
    tokens: EncoderTokens
    tokenwise: bool


def block_index(layer: int, blocks: int) -> int:
    """A Need's layer as a block index; UnsupportedError if the tower has no such block."""
    index = layer if layer >= 0 else blocks + layer
    if not 0 <= index < blocks:
        raise UnsupportedError(
            f"the method reads encoder block {layer}, this tower has {blocks}; "
            "choose a method that reads another block or only features"
        )
    return index


def joined(parts: list[Tensor]) -> Tensor:
    """torch.cat along the first axis, without a copy where there is one part."""
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def gathered(x: Tensor, index: Tensor, dim: int = 0) -> Tensor:
    """x[index] along `dim`; a view where the indices are one run, as those of most pictures are."""
    n = int(index.shape[0])
    if n and int(index[-1]) - int(index[0]) == n - 1 and bool((index[1:] > index[:-1]).all()):
        return x.narrow(dim, int(index[0]), n)
    return x.index_select(dim, index)


def flatten_hidden(hidden: Tensor, front: int, back: int) -> tuple[Tensor, Tensor | None]:
    """(B, S, c), (1, M, c), (M, c) or (B, h, w, c) to patches (M, c) and specials (B, s, c)."""
    if hidden.ndim == 4:
        hidden = hidden.flatten(1, 2)
    if hidden.ndim == 2:
        return hidden, None
    stop = hidden.shape[1] - back
    special = torch.cat([hidden[:, :front], hidden[:, stop:]], 1) if front or back else None
    return hidden[:, front:stop].flatten(0, 1), special


def flatten_capture(capture: Capture, front: int, back: int) -> Attention | None:
    """Join the calls of one attention module: cls and received (H, M), keys (M, H, a)."""
    if not (capture.received or capture.keys or capture.cls):
        return None

    def patches(calls: list[Tensor], dim: int) -> Tensor:
        trimmed = [c.narrow(dim, front, c.shape[dim] - front - back) for c in calls]
        return joined([c.movedim(dim, 1).flatten(0, 1) for c in trimmed])  # (B*T, …)

    received = patches(capture.received, 2).T if capture.received else None
    cls = patches(capture.cls, 2).T if capture.cls else None
    keys = patches(capture.keys, 1) if capture.keys else None
    query = torch.cat(capture.query) if capture.query else None
    return Attention(cls=cls, received=received, keys=keys, query=query)


def _at(
    found: Attention, need: set[Need], source: Tensor, parts: Tensor, queries: int
) -> Attention:
    per_head = any(n.per_head for n in need)

    def heads(x: Tensor | None, scale: float = 1.0) -> Tensor | None:
        if x is None:
            return None
        x = gathered(x, source, 1)
        return (x if per_head else x.mean(0)) * scale

    keys = gathered(found.keys, source) if found.keys is not None else None
    query = found.query[parts] if found.query is not None else None
    return Attention(
        cls=heads(found.cls),
        received=heads(found.received, 1.0 / queries),
        keys=keys,
        query=query.flatten(0, 1) if query is not None else None,
    )


def encoder_view(encoded: Encoded, piece: Piece, needs: frozenset[Need]) -> EncoderView | None:
    """The encoder's side of one piece, or None if the family does not map encoder tokens to
    projected ones.
    """
    if piece.source is None or piece.group is None or piece.part is None:
        return None
    tokens, source = encoded.tokens, piece.source
    parts = torch.unique(piece.part)
    local = torch.searchsorted(parts, piece.part)
    hidden = {layer: gathered(h, source) for layer, h in tokens.hidden.items()}
    special = tokens.special.get(tokens.feature_block)
    layers: dict[int, set[Need]] = {}
    for need in needs:
        if need.what in ("cls", "received", "saliency", "keys", "query"):
            layers.setdefault(need.layer, set()).add(need)
    queries = tokens.queries or int(source.shape[0])
    at = {
        layer: _at(
            tokens.attention[block_index(layer, tokens.blocks)], need, source, parts, queries
        )
        for layer, need in layers.items()
        if block_index(layer, tokens.blocks) in tokens.attention
    }
    return EncoderView(
        features=hidden.get(tokens.feature_block),
        special=special[parts].flatten(0, 1) if special is not None else None,
        group=piece.group,
        part=local,
        at=at,
        tokenwise=encoded.tokenwise,
        hidden={
            n.layer: hidden[block_index(n.layer, tokens.blocks)]
            for n in needs
            if n.what == "features" and block_index(n.layer, tokens.blocks) in hidden
        },
    )
