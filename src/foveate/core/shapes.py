"""The sizes of a vision-language model that decide what it costs, and what its tower works on.

Plain integers: `foveate.core.flops` counts with them, `foveate.models.shapes` reads them from a
config.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from foveate.core.errors import InputError

Entries = int | tuple[int, ...]
"""KV entries of one layer: one length, or one a KV head."""


def at_least(least: int, owner: str, **values: int) -> None:
    """InputError that names the first value below `least`."""
    for name, value in values.items():
        if value < least:
            raise InputError(f"{owner}: {name} = {value} is out of range: at least {least}")


@dataclass(frozen=True)
class MLPShape:
    """The feed-forward part of a layer, plain (two matrices) or gated (three).

    inner: width between the matrices. active: experts that each token passes through, 1 without
    routing. router: experts that the router scores, 0 without one. shared: total inner width of
    experts that every token passes through besides, 0 without; shared_gate: they have a gate of
    one output.
    """

    inner: int
    gated: bool = True
    active: int = 1
    router: int = 0
    shared: int = 0
    shared_gate: bool = False

    def __post_init__(self) -> None:
        at_least(1, "MLPShape", inner=self.inner, active=self.active)
        at_least(0, "MLPShape", router=self.router, shared=self.shared)
        if self.router and self.active > self.router:
            raise InputError(f"MLPShape: {self.active} of {self.router} experts cannot be active")

    def flops(self, hidden: int) -> int:
        """For one token of width `hidden`."""
        width = self.inner * self.active + self.shared
        one = (3 if self.gated else 2) * hidden * width
        return 2 * (one + hidden * self.router + (hidden if self.shared_gate else 0))


@dataclass(frozen=True)
class LayerShape:
    """One transformer layer: attention of `heads` over `kv_heads`, and the MLP.

    window: tokens that a query sees, itself included; None sees all.
    """

    heads: int
    kv_heads: int
    head_dim: int
    mlp: MLPShape
    window: int | None = None

    def __post_init__(self) -> None:
        at_least(1, "LayerShape", heads=self.heads, kv_heads=self.kv_heads, head_dim=self.head_dim)
        if self.heads % self.kv_heads:
            raise InputError(
                f"LayerShape: {self.heads} heads do not share {self.kv_heads} KV heads evenly"
            )
        if self.window is not None:
            at_least(1, "LayerShape", window=self.window)

    def projections(self, hidden: int) -> int:
        """FLOPs of the query, key, value and output projections of one token."""
        return 4 * hidden * self.head_dim * (self.heads + self.kv_heads)

    def pairs(self, pairs: int) -> int:
        """FLOPs of one query head over `pairs` pairs of query and key: scores, then values."""
        return 4 * self.head_dim * pairs

    def attention(self, rows: int, past: Entries = 0, causal: bool = False) -> int:
        """FLOPs of `rows` new tokens that attend to themselves and to `past` entries."""
        group = self.heads // self.kv_heads
        lengths = per_head(past, self.kv_heads)
        return sum(group * self.pairs(self._pairs(rows, p, causal)) for p in lengths)

    def _pairs(self, rows: int, past: int, causal: bool) -> int:
        if causal:
            return visible_pairs(rows, past, self.window)
        return rows * (self.held(past) + rows)

    def held(self, entries: int) -> int:
        """Of `entries` past ones, those a cache must hold: a window also covers the next token."""
        return entries if self.window is None else min(entries, self.window - 1)


@dataclass(frozen=True)
class TextShape:
    """The language model: width, layers from first to last, and the LM head's vocabulary."""

    hidden: int
    vocab: int
    layers: tuple[LayerShape, ...]

    def __post_init__(self) -> None:
        at_least(1, "TextShape", hidden=self.hidden, vocab=self.vocab, layers=len(self.layers))


@dataclass(frozen=True)
class VisionShape:
    """The vision tower and its projector.

    patch_inputs: numbers in one patch (channels x frames x height x width). layer, layers: the
    tower's blocks, all alike. projector: (inputs, outputs) of each linear layer that a projected
    token passes through, DeepStack's mergers included. merge: patches a projected token.
    pass_patches: patches of one encoder pass where they are all of one size, None for packed
    towers. special: special tokens of a pass, such as CLS; projects_special: they are projected
    too. window: side in patches of the windows that all blocks but `full` attend in.
    pooled: SigLIP's pooling head runs too: one query attends over each segment, and an MLP follows.
    joint: the pictures of one call are padded to the largest for the patch embedding, and then
    attend as one segment, under a mask.
    """

    hidden: int
    patch_inputs: int
    layer: LayerShape
    layers: int
    projector: tuple[tuple[int, int], ...]
    merge: int = 1
    pass_patches: int | None = None
    special: int = 0
    projects_special: bool = False
    window: int | None = None
    full: tuple[int, ...] = ()
    pooled: bool = False
    joint: bool = False

    def __post_init__(self) -> None:
        at_least(
            1,
            "VisionShape",
            hidden=self.hidden,
            patch_inputs=self.patch_inputs,
            layers=self.layers,
            merge=self.merge,
        )
        at_least(0, "VisionShape", special=self.special)
        if self.layer.window is not None:
            raise InputError("VisionShape: windows of a tower are 2-D, give them in `window`")
        for pair in self.projector:
            at_least(1, "VisionShape", inputs=pair[0], outputs=pair[1])

    def passes(self, count: int, patches: int | None = None) -> EncodeWork:
        """The work of `count` encoder passes (tiles, thumbnails, pictures) of equal size.

        patches: of a pass, where pictures were scaled to another size than the tower's own.
        """
        if self.pass_patches is None:
            raise InputError("VisionShape: a packed tower has no passes; use packed(grids)")
        each = self.pass_patches if patches is None else patches
        at_least(0, "VisionShape.passes", count=count, patches=each)
        tokens = each + (self.special if self.projects_special else 0)
        blocks = ((each + self.special,) * count,) * self.layers
        return EncodeWork(count * each, blocks, count * (tokens // self.merge))

    def packed(self, grids: Sequence[tuple[int, int, int]]) -> EncodeWork:
        """The work of packed pictures or videos of (frames, rows, columns) patches each.

        Each frame is a segment of its own; windows are cut from a frame's top left corner.
        """
        if self.pass_patches is not None:
            raise InputError("VisionShape: this tower has passes of one size; use passes(count)")
        for grid in grids:
            at_least(1, "VisionShape.packed", frames=grid[0], rows=grid[1], columns=grid[2])
        whole = tuple(h * w for t, h, w in grids for _ in range(t))
        patches = tokens = sum(whole)
        if self.joint and whole:
            patches = len(whole) * max(g[1] for g in grids) * max(g[2] for g in grids)
            whole = (tokens,)
        windows = whole
        if self.window is not None:
            windows = tuple(
                a * b
                for t, h, w in grids
                for _ in range(t)
                for a in _cut(h, self.window)
                for b in _cut(w, self.window)
            )
        blocks = tuple(
            whole if self.window is None or i in self.full else windows for i in range(self.layers)
        )
        return EncodeWork(patches, blocks, tokens // self.merge)


@dataclass(frozen=True)
class ModelShape:
    """A vision-language model. element_bytes: bytes of one number in the KV cache.

    vision: None for a model that is given no pictures.
    """

    vision: VisionShape | None
    text: TextShape
    element_bytes: int

    def __post_init__(self) -> None:
        at_least(1, "ModelShape", element_bytes=self.element_bytes)


@dataclass(frozen=True)
class EncodeWork:
    """What the vision tower works on.

    patches: rows of the patch embedding. blocks: for each block of the tower, the lengths of the
    segments that attend within themselves. projected: rows of the projector.
    """

    patches: int
    blocks: tuple[tuple[int, ...], ...]
    projected: int

    def __post_init__(self) -> None:
        at_least(0, "EncodeWork", patches=self.patches, projected=self.projected)
        at_least(0, "EncodeWork", tokens=min((n for b in self.blocks for n in b), default=0))

    def __add__(self, other: EncodeWork) -> EncodeWork:
        """Both calls of the same tower."""
        if len(self.blocks) != len(other.blocks):
            raise InputError(
                f"EncodeWork of towers with {len(self.blocks)} and {len(other.blocks)} blocks"
            )
        blocks = tuple(a + b for a, b in zip(self.blocks, other.blocks, strict=True))
        return EncodeWork(self.patches + other.patches, blocks, self.projected + other.projected)


def per_head(entries: Entries, kv_heads: int) -> tuple[int, ...]:
    """One length a KV head, from one length for all or from one each."""
    lengths = (entries,) * kv_heads if isinstance(entries, int) else entries
    if len(lengths) != kv_heads:
        raise InputError(f"lengths of {len(lengths)} KV heads for a layer of {kv_heads}")
    at_least(0, "KV entries", length=min(lengths))
    return lengths


def visible_pairs(rows: int, past: int, window: int | None) -> int:
    """The pairs of `rows` queries, of which query i (from 1) sees min(past + i, window) keys."""
    if window is None or past + rows <= window:
        return rows * past + rows * (rows + 1) // 2
    growing = max(0, window - past)
    return growing * past + growing * (growing + 1) // 2 + (rows - growing) * window


def _cut(length: int, side: int) -> list[int]:
    """`length` in pieces of `side`, the last one shorter."""
    return [min(side, length - start) for start in range(0, length, side)]
