"""How many floating-point operations a vision-language model spends, from sizes and counts alone.

A multiply-add counts 2, as in `torch.utils.flop_counter`: linear layers, convolutions and the two
products of attention. Norms, softmax, activations, rotary embeddings and look-ups are not counted;
they are linear in tokens and width.

Attention is counted over full length, rows x keys, as a kernel with a mask counts it.
`causal=True` gives a second, separate figure: only the pairs of a query and a key that a causal
mask (and a sliding window) leaves. Bidirectional attention within pictures is not in that figure.

Nothing is padded here: counts are those of one request alone. Lengths are given per layer, so that
tokens dropped inside the model, and KV caches of unequal length by layer and KV head, are counted
as they are.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import TypeVar

from foveate.core.errors import InputError
from foveate.core.shapes import (
    EncodeWork,
    Entries,
    LayerShape,
    MLPShape,
    ModelShape,
    TextShape,
    VisionShape,
    at_least,
    per_head,
    visible_pairs,
)

__all__ = [
    "EncodeWork",
    "Entries",
    "Flops",
    "LayerShape",
    "MLPShape",
    "ModelShape",
    "TextShape",
    "VisionShape",
    "decode",
    "decode_seen",
    "encode",
    "kv_bytes",
    "kv_entries",
    "prefill",
    "score_left_multiply",
    "score_rows",
]

T = TypeVar("T")


@dataclass(frozen=True)
class Flops:
    """FLOPs by part of the model; `total` is their sum."""

    embedding: int = 0
    projections: int = 0
    attention: int = 0
    mlp: int = 0
    projector: int = 0
    head: int = 0

    @property
    def total(self) -> int:
        return sum(getattr(self, f.name) for f in fields(self))

    def __add__(self, other: Flops) -> Flops:
        parts = {f.name: getattr(self, f.name) + getattr(other, f.name) for f in fields(self)}
        return Flops(**parts)


def encode(shape: VisionShape, work: EncodeWork) -> Flops:
    """Patch embedding, blocks and projector of one call of the tower."""
    if len(work.blocks) != shape.layers:
        raise InputError(
            f"encode: segments of {len(work.blocks)} blocks for a tower of {shape.layers}"
        )
    rows = sum(sum(block) for block in work.blocks)
    attention = sum(shape.layer.attention(n) for block in work.blocks for n in block)
    out = _pooling(shape, work.blocks[-1]) if shape.pooled else Flops()
    return out + Flops(
        embedding=2 * work.patches * shape.patch_inputs * shape.hidden,
        projections=rows * shape.layer.projections(shape.hidden),
        attention=attention,
        mlp=rows * shape.layer.mlp.flops(shape.hidden),
        projector=2 * work.projected * sum(a * b for a, b in shape.projector),
    )


def prefill(
    shape: TextShape,
    rows: Sequence[int],
    *,
    past: Sequence[Entries] | None = None,
    head_rows: int = 1,
    causal: bool = False,
) -> Flops:
    """One forward pass over `rows` tokens, given for each layer.

    past: entries of the KV cache that were there before (a prefix, an earlier turn), by layer.
    head_rows: rows that the LM head is applied to; generation needs the last only.
    """
    lengths = _by_layer(shape, rows, "rows")
    before: Sequence[Entries] = (0,) * len(shape.layers)
    if past is not None:
        before = _by_layer(shape, past, "past")
    at_least(0, "prefill", rows=min(lengths), head_rows=head_rows)
    if head_rows > lengths[-1]:
        raise InputError(f"prefill: the LM head takes {head_rows} of {lengths[-1]} rows")
    layers = list(zip(shape.layers, lengths, before, strict=True))
    return Flops(
        projections=sum(n * layer.projections(shape.hidden) for layer, n, _ in layers),
        attention=sum(layer.attention(n, p, causal) for layer, n, p in layers),
        mlp=sum(n * layer.mlp.flops(shape.hidden) for layer, n, _ in layers),
        head=2 * head_rows * shape.hidden * shape.vocab,
    )


def decode(shape: TextShape, kv: Sequence[Entries], steps: int) -> Flops:
    """`steps` forward passes of one token each; `kv`: entries by layer before the first of them.

    Every step adds one entry to every KV head and attends to it too. A generation of n tokens takes
    n - 1 steps, for prefill gives the first.
    """
    before = _by_layer(shape, kv, "kv")
    at_least(0, "decode", steps=steps)
    once = prefill(shape, (1,) * len(shape.layers))
    attention = 0
    for layer, entries in zip(shape.layers, before, strict=True):
        group = layer.heads // layer.kv_heads
        for past in per_head(entries, layer.kv_heads):
            # One query a step: what a causal mask leaves is all it attends to.
            attention += group * layer.pairs(visible_pairs(steps, past, layer.window))
    return Flops(
        projections=steps * once.projections,
        attention=attention,
        mlp=steps * once.mlp,
        head=steps * once.head,
    )


def decode_seen(shape: TextShape, seen: Sequence[Sequence[int]]) -> Flops:
    """Forward passes of one token each, of which pass i attends to seen[layer][i] entries of every KV
    head, its own included: where entries leave between steps.
    """
    steps = len(_by_layer(shape, seen, "seen")[0])
    at_least(1, "decode_seen", entries=min(min(n, default=1) for n in seen))
    if any(len(n) != steps for n in seen):
        raise InputError("decode_seen: layers of different numbers of steps")
    bare = decode(shape, (0,) * len(shape.layers), steps)
    attention = sum(
        layer.heads
        * layer.pairs(sum(n if layer.window is None else min(n, layer.window) for n in ns))
        for layer, ns in zip(shape.layers, seen, strict=True)
    )
    return replace(bare, attention=attention)


def score_rows(layer: LayerShape, rows: int, keys: int) -> int:
    """FLOPs of attention scores of `rows` queries over `keys` keys, in all heads, without values.

    The cost of what a method reads besides the forward pass: one row an encoder pass for CLS
    attention, all rows for received attention, the last row or the question's for a text score.
    """
    at_least(0, "score_rows", rows=rows, keys=keys)
    return 2 * layer.heads * layer.head_dim * rows * keys


def score_left_multiply(layer: LayerShape, tokens: int) -> int:
    """FLOPs of one product s @ attention, s (heads, tokens), with the attention recomputed."""
    return score_rows(layer, tokens, tokens) + 2 * layer.heads * tokens * tokens


def kv_entries(shape: TextShape, kv: Sequence[Entries], steps: int = 0) -> tuple[int, ...]:
    """Entries that each layer's cache holds, summed over its KV heads, `steps` steps after `kv`.

    A layer with a sliding window holds what the next token can still see.
    """
    before = _by_layer(shape, kv, "kv")
    at_least(0, "kv_entries", steps=steps)
    return tuple(
        sum(layer.held(p + steps) for p in per_head(entries, layer.kv_heads))
        for layer, entries in zip(shape.layers, before, strict=True)
    )


def kv_bytes(
    shape: TextShape, kv: Sequence[Entries], element_bytes: int, steps: int = 0
) -> tuple[int, ...]:
    """Bytes of keys and values that each layer's cache holds, uncompressed."""
    at_least(1, "kv_bytes", element_bytes=element_bytes)
    entries = kv_entries(shape, kv, steps)
    return tuple(
        2 * n * layer.head_dim * element_bytes
        for n, layer in zip(entries, shape.layers, strict=True)
    )


def _pooling(shape: VisionShape, segments: Sequence[int]) -> Flops:
    """SigLIP's head: one learned query a segment, keys and values of all its tokens."""
    square = 2 * shape.hidden * shape.hidden
    return Flops(
        projections=sum(square * (2 + 2 * n) for n in segments),
        attention=sum(4 * shape.hidden * n for n in segments),
        mlp=len(segments) * shape.layer.mlp.flops(shape.hidden),
    )


def _by_layer(shape: TextShape, values: Sequence[T], name: str) -> Sequence[T]:
    if len(values) != len(shape.layers):
        raise InputError(f"{name} of {len(values)} layers for a model of {len(shape.layers)}")
    return values
