"""What the feature cache keeps of one picture: the encoder's tensors under flat names and a small
description, the same in memory and in a file. Entries of several pictures join into one batch.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers.utils import ModelOutput

from foveate.core.views import Attention
from foveate.models.encoded import Encoded, EncoderTokens, Piece, joined

_PIECE = ("fixed", "source", "group", "part", "time_s")
_ATTENTION = {"cls": 1, "received": 1, "keys": 0, "query": 0}  # axis of the tokens or passes
_REBUILT = frozenset(
    {"last_hidden_state", "pooler_output", "hidden_states", "attentions", "deepstack_features"}
)


@dataclass(frozen=True)
class Entry:
    """Tensors by flat name, and what JSON can say of them."""

    tensors: dict[str, Tensor]
    meta: dict[str, Any]

    @property
    def nbytes(self) -> int:
        return sum(t.nbytes for t in self.tensors.values())

    def to(self, device: torch.device) -> Entry:
        return Entry({k: t.to(device) for k, t in self.tensors.items()}, self.meta)


def pack(encoded: Encoded) -> Entry | None:
    """Copy what the engine needs of `encoded`; None if its output object holds what is unknown here.

    The tower's intermediate states inside the output object are left out: nothing reads them after
    encoding.
    """
    out, tokens = encoded.out, encoded.tokens
    extras = {k: v for k, v in out.items() if k not in _REBUILT}
    if not all(torch.is_tensor(v) for v in extras.values()):
        return None
    found: dict[str, Tensor] = {f"extra.{k}": v for k, v in extras.items()}
    pieces = []
    for i, p in enumerate(encoded.pieces):
        found[f"piece.{i}.features"] = p.features
        if p.payload is not p.features:
            found[f"piece.{i}.payload"] = p.payload
        for name in _PIECE:
            value = getattr(p, name)
            if value is not None:
                found[f"piece.{i}.{name}"] = value
        for j, layer in enumerate(p.deepstack or ()):
            found[f"piece.{i}.deepstack.{j}"] = layer
        layers = None if p.deepstack is None else len(p.deepstack)
        pieces.append(
            {"kind": p.kind, "grid": list(p.grid), "picture": p.picture, "layers": layers}
        )
    found |= {f"hidden.{b}": h for b, h in tokens.hidden.items()}
    found |= {f"special.{b}": s for b, s in tokens.special.items()}
    for block, facts in tokens.attention.items():
        for name in _ATTENTION:
            value = getattr(facts, name)
            if value is not None:
                found[f"attention.{block}.{name}"] = value
    size = sizes(encoded)
    meta = {
        "modality": encoded.modality,
        "tokenwise": encoded.tokenwise,
        "out": f"{type(out).__module__}:{type(out).__qualname__}",
        "pooled": "tensor" if torch.is_tensor(out.get("pooler_output")) else "list",
        "deepstack": len(out.get("deepstack_features") or ()),
        "pieces": pieces,
        "blocks": tokens.blocks,
        "queries": tokens.queries,
        "feature_block": tokens.feature_block,
        "captured": sorted(tokens.attention),
        "tokens": None if size is None else size[0],
        "passes": None if size is None else size[1],
    }
    # Outside inference mode, so that a later run with gradients may use the copies.
    with torch.inference_mode(False), torch.no_grad():
        return Entry({k: t.detach().clone().contiguous() for k, t in found.items()}, meta)


def sizes(encoded: Encoded) -> tuple[int, int] | None:
    """(encoder tokens, passes) behind all pieces; None if the captured facts disagree on them."""
    tokens = encoded.tokens
    counts = {int(h.shape[0]) for h in tokens.hidden.values()}
    for facts in tokens.attention.values():
        for name in ("cls", "received", "keys"):
            value = getattr(facts, name)
            if value is not None:
                counts.add(int(value.shape[_ATTENTION[name]]))
    if len(counts) > 1:
        return None
    need = _stop([p.source for p in encoded.pieces])
    count = counts.pop() if counts else need
    if count < need:
        return None
    passes = {int(s.shape[0]) for s in tokens.special.values()}
    passes |= {int(a.query.shape[0]) for a in tokens.attention.values() if a.query is not None}
    if len(passes) > 1:
        return None
    return count, max(passes.pop() if passes else 0, _stop([p.part for p in encoded.pieces]))


def _stop(indices: Sequence[Tensor | None]) -> int:
    return max((int(x.max()) + 1 for x in indices if x is not None and x.numel()), default=0)


def unpack(entry: Entry) -> Encoded:
    """The Encoded of one entry. Tensors are the entry's own: read, never written."""
    meta, t = entry.meta, entry.tensors
    pieces = []
    for i, facts in enumerate(meta["pieces"]):
        features = t[f"piece.{i}.features"]
        layers = facts["layers"]
        deepstack = None
        if layers is not None:
            deepstack = [t[f"piece.{i}.deepstack.{j}"] for j in range(layers)]
        a, b, c = facts["grid"]
        pieces.append(
            Piece(
                features,
                t.get(f"piece.{i}.payload", features),
                facts["kind"],
                (a, b, c),
                **{name: t.get(f"piece.{i}.{name}") for name in _PIECE},
                deepstack=deepstack,
                picture=facts["picture"],
            )
        )
    tokens = EncoderTokens(
        blocks=meta["blocks"],
        hidden=_blocks(t, "hidden."),
        special=_blocks(t, "special."),
        attention={
            b: Attention(**{name: t.get(f"attention.{b}.{name}") for name in _ATTENTION})
            for b in meta["captured"]
        },
        queries=meta["queries"],
        feature_block=meta["feature_block"],
    )
    return Encoded(meta["modality"], _output(entry), pieces, tokens, meta["tokenwise"])


def _blocks(tensors: Mapping[str, Tensor], start: str) -> dict[int, Tensor]:
    return {int(k[len(start) :]): v for k, v in tensors.items() if k.startswith(start)}


def _output(entry: Entry) -> Any:
    """An output object that repack() fills: containers of the right kind, without features."""
    module, _, name = entry.meta["out"].partition(":")
    # A file names this class, and nothing but an output class of transformers may come of that.
    kind = None
    if module.startswith("transformers."):
        kind = getattr(importlib.import_module(module), name, None)
    if not (isinstance(kind, type) and issubclass(kind, ModelOutput)):
        raise ValueError(f"{entry.meta['out']} is no output class of transformers")
    fields: dict[str, Any] = {
        k[len("extra.") :]: v for k, v in entry.tensors.items() if k.startswith("extra.")
    }
    fields["pooler_output"] = torch.empty(0) if entry.meta["pooled"] == "tensor" else []
    if entry.meta["deepstack"]:
        fields["deepstack_features"] = [[] for _ in range(entry.meta["deepstack"])]
    return kind(**fields)


def cut(encoded: Encoded, count: int) -> list[Encoded] | None:
    """One Encoded a piece, for towers that treat pictures apart; None if it has no `count` pieces,
    or the encoder's facts cannot be divided among them.
    """
    tokens, size = encoded.tokens, sizes(encoded)
    if len(encoded.pieces) != count or size is None:
        return None
    facts = bool(tokens.hidden or tokens.special or tokens.attention)
    parts = []
    for p in encoded.pieces:
        if p.source is None or p.part is None or not p.source.numel():
            if facts:
                return None
            a = b = first = last = 0
        else:
            a, b = int(p.source.min()), int(p.source.max()) + 1
            first, last = int(p.part.min()), int(p.part.max()) + 1
        stop = max((int(s.shape[0]) for s in tokens.special.values()), default=last)
        if last > stop:
            return None
        attention = {}
        for block, at in tokens.attention.items():
            if at.query is not None and last > at.query.shape[0]:
                return None
            attention[block] = Attention(
                cls=None if at.cls is None else at.cls[:, a:b],
                received=None if at.received is None else at.received[:, a:b],
                keys=None if at.keys is None else at.keys[a:b],
                query=None if at.query is None else at.query[first:last],
            )
        mine = EncoderTokens(
            tokens.blocks,
            {k: h[a:b] for k, h in tokens.hidden.items()},
            {k: s[first:last] for k, s in tokens.special.items()},
            attention,
            tokens.queries,
            tokens.feature_block,
        )
        picture = min(0, p.picture)
        piece = _moved(p, -a, -first, picture - p.picture)
        parts.append(Encoded(encoded.modality, encoded.out, [piece], mine, encoded.tokenwise))
    return parts


def _moved(p: Piece, tokens: int, passes: int, pictures: int) -> Piece:
    return Piece(
        p.features,
        p.payload,
        p.kind,
        p.grid,
        fixed=p.fixed,
        source=None if p.source is None else p.source + tokens,
        group=p.group,
        part=None if p.part is None else p.part + passes,
        deepstack=p.deepstack,
        picture=p.picture if p.picture < 0 else p.picture + pictures,
        time_s=p.time_s,
    )


def join(entries: Sequence[Entry]) -> Encoded | None:
    """One Encoded of pictures that were encoded apart; None if their facts are of unequal kinds."""
    if len(entries) == 1:
        return unpack(entries[0])
    parts = [unpack(e) for e in entries]
    first = parts[0]
    same = ("modality", "tokenwise", "out", "pooled", "deepstack", "blocks", "feature_block")
    for e in entries:
        if any(e.meta[k] != entries[0].meta[k] for k in same) or e.meta["tokens"] is None:
            return None
        if _shape_of(e) != _shape_of(entries[0]):
            return None
        for k, v in e.tensors.items():
            # What the output object holds beside the pictures' features must be theirs in common.
            if k.startswith("extra.") and not torch.equal(v, entries[0].tensors[k]):
                return None
    queries = {e.meta["queries"] for e in entries} - {None}
    if len(queries) > 1:
        return None
    pieces: list[Piece] = []
    tokens = passes = pictures = 0
    for entry, part in zip(entries, parts, strict=True):
        pieces += [_moved(p, tokens, passes, pictures) for p in part.pieces]
        tokens += entry.meta["tokens"]
        passes += entry.meta["passes"]
        pictures += max((p.picture for p in part.pieces), default=-1) + 1
    every = [p.tokens for p in parts]
    attention = {}
    for block in first.tokens.attention:
        facts = {}
        for name, axis in _ATTENTION.items():
            values = [getattr(t.attention[block], name) for t in every]
            facts[name] = None if values[0] is None else torch.cat(values, axis)
        attention[block] = Attention(**facts)
    merged = EncoderTokens(
        first.tokens.blocks,
        {b: joined([t.hidden[b] for t in every]) for b in first.tokens.hidden},
        {b: joined([t.special[b] for t in every]) for b in first.tokens.special},
        attention,
        queries.pop() if queries else None,
        first.tokens.feature_block,
    )
    return Encoded(first.modality, first.out, pieces, merged, first.tokenwise)


def _shape_of(entry: Entry) -> set[str]:
    """Names of everything that is not a piece's own."""
    return {k for k in entry.tensors if not k.startswith("piece.")}


__all__ = ["Entry", "cut", "join", "pack", "sizes", "unpack"]
