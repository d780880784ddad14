"""What the vision tower worked on for one request: before any stage of a plan, after its pixel stage
and after its tower stage.

Read from what the run left: grids, encoder passes, patches that did not enter, tokens by block.
Where that does not tell, UnsupportedError says why; nothing is estimated.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from math import isqrt
from typing import TYPE_CHECKING, Any

import numpy as np

from foveate.core.errors import UnsupportedError
from foveate.core.shapes import EncodeWork, VisionShape
from foveate.engine.rows import Placed
from foveate.models.adapter import MODALITIES

if TYPE_CHECKING:
    from foveate.engine.engine import Run


def encode_works(shape: VisionShape, run: Run, index: int) -> tuple[EncodeWork | None, ...]:
    """(without a plan, after the pixel stage, after the tower stage) of request `index`.

    None three times where nothing was encoded: no pictures, or all features came from a cache.
    """
    row = run.short.rows[index]
    if not row.placed or row.cached == len(row.segments):
        return None, None, None
    if row.cached:
        raise UnsupportedError("features of some of its pictures came from the cache")
    looked = bool(run.look.changed)
    entered = _entered(shape, row.placed, looked)
    whole = entered
    if any(p.piece.present is not None for p in row.placed):
        whole = shape.packed([_patches(shape, p) for p in row.placed])
    elif looked:
        whole = _before(shape, run, index)
    tower = run.short.tower
    return whole, entered, entered if tower is None else _cut(entered, run, row.placed)


def _patches(shape: VisionShape, placed: Placed) -> tuple[int, int, int]:
    """A packed picture's grid of patches."""
    side, (t, h, w) = isqrt(shape.merge), placed.piece.grid
    if t * h * w != placed.piece.n - placed.fixed:
        raise UnsupportedError("its tower does not give one token to each cell of a picture's grid")
    return t, h * side, w * side


def _entered(shape: VisionShape, placed: Sequence[Placed], looked: bool) -> EncodeWork:
    """After the pixel stage."""
    if shape.pass_patches is None:
        if all(p.piece.present is None for p in placed):
            return shape.packed([_patches(shape, p) for p in placed])
        parts = [_present(shape, p) for p in placed]
        whole = tuple(n for frames, _ in parts for n in frames)
        windows = tuple(n for _, cut in parts for n in cut)
        blocks = tuple(
            whole if shape.window is None or i in shape.full else windows
            for i in range(shape.layers)
        )
        return EncodeWork(sum(whole), blocks, sum(whole) // shape.merge)
    count, sizes = 0, {shape.pass_patches}
    for modality in MODALITIES:
        passes = [x for p in placed if p.modality == modality for x in _passes(p)]
        count += len({part for part, _ in passes})
        if looked and passes and not any(p.fixed for p in placed):
            sizes = {n for _, n in passes}
    if len(sizes) > 1:
        raise UnsupportedError("its pictures entered the tower at several sizes")
    return shape.passes(count, sizes.pop())


def _passes(placed: Placed) -> list[tuple[int, int]]:
    """(encoder pass, patches of it) of one segment."""
    part = placed.piece.part
    if part is None:
        raise UnsupportedError("this family does not say which encoder pass a token came from")
    ids, counts = part.unique(return_counts=True)
    return list(zip(ids.tolist(), counts.tolist(), strict=True))


def _present(shape: VisionShape, placed: Placed) -> tuple[list[int], list[int]]:
    """Patches that entered, by frame and by window, of a picture that some patches of left."""
    t, h, w = placed.piece.grid
    mask = placed.piece.present
    there = np.ones((t, h, w), bool) if mask is None else mask.cpu().numpy().reshape(t, h, w)
    frames = [int(f.sum()) * shape.merge for f in there]
    if shape.window is None:
        return [n for n in frames if n], []
    side = shape.window // isqrt(shape.merge)
    rows, columns = [*range(0, h, side), h], [*range(0, w, side), w]
    cut = [
        int(f[a:b, c:d].sum()) * shape.merge
        for f in there
        for a, b in pairwise(rows)
        for c, d in pairwise(columns)
    ]
    return [n for n in frames if n], [n for n in cut if n]


def _before(shape: VisionShape, run: Run, index: int) -> EncodeWork:
    """Of the pictures as they came, where the pixel stage resized them or left tiles out."""
    row, look = run.short.rows[index], run.look
    tokens = row.visual_in + look.dropped[index]
    if run.members[index].videos or any(p.fixed for p in row.placed):
        raise UnsupportedError(
            "what its pictures or videos were before the pixel stage is not kept"
        )
    if shape.pass_patches is not None:
        each = shape.passes(1).projected
        if tokens % each:
            raise UnsupportedError(f"{tokens} visual tokens are no whole passes of {each}")
        return shape.passes(tokens // each)
    edge = int(look.adapter.config.vision_config.patch_size)
    sizes = [look.resolution.seen((p.height, p.width)) for p in run.members[index].pictures]
    work = shape.packed([(1, h // edge, w // edge) for h, w in sizes])
    if work.projected != tokens:
        raise UnsupportedError("the size of its pictures before the pixel stage is not known")
    return work


def _cut(work: EncodeWork, run: Run, placed: Sequence[Placed]) -> EncodeWork:
    """`work` with the tokens that each block of the tower had."""
    tower: Any = run.short.tower
    met = [m for m in MODALITIES if any(p.modality == m for r in run.short.rows for p in r.placed)]
    lengths: list[tuple[int, ...]] = []
    for modality in met:
        mine = [p for p in placed if p.modality == modality]
        runs = tower.encodes[met.index(modality)]
        owner = np.concatenate([np.full(r.passes, i) for i, r in enumerate(runs)])
        for part in sorted({part for p in mine for part, _ in _passes(p)}):
            at = runs[owner[part]]
            special = at.front + at.back
            last = [at.now - special] * (len(work.blocks) - len(at.counts))
            lengths.append(tuple(n + special for n in [*at.counts, *last]))
    return replace(work, blocks=tuple(zip(*lengths, strict=True)))
