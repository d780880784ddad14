"""How one picture's run of visual tokens is made up, in the order in which a model places them.

The same functions run where vLLM counts placeholders, before anything is encoded, and where it
encodes; so both sides agree on what is kept. No torch: sizes and index arithmetic on the host.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from foveate.core.choice import counts_for
from foveate.core.errors import InputError, StateError, UnsupportedError
from foveate.core.plan import Plan
from foveate.core.views import Grid, Kind

Size = tuple[int, int]  # (height, width)


@dataclass(frozen=True)
class Span:
    """One segment of a picture: `length` placeholders, of which those in `fixed` carry layout. image:
    those of a video that is read as pictures are numbered, and each has a budget of its own.

    source (m,): encoder tokens of the picture, flattened over its passes; group (m,): encoder token
    -> token among those that are not fixed, -1 none; part (m,): pass. None where the encoder's tokens
    do not map to projected ones.
    """

    kind: Kind
    grid: Grid
    length: int
    fixed: np.ndarray | None = None
    source: np.ndarray | None = None
    group: np.ndarray | None = None
    part: np.ndarray | None = None
    image: int = 0

    @property
    def n(self) -> int:
        """Tokens a method may choose among."""
        return self.length - (0 if self.fixed is None else int(self.fixed.sum()))

    @property
    def free(self) -> np.ndarray:
        """Indices of those tokens."""
        if self.fixed is None:
            return np.arange(self.length)
        return np.flatnonzero(~self.fixed)


@dataclass(frozen=True)
class Layout:
    """A picture's spans, how many encoder tokens it has, and over how many passes (0: packed)."""

    spans: tuple[Span, ...]
    encoder_tokens: int = 0
    passes: int = 0

    @property
    def length(self) -> int:
        return sum(s.length for s in self.spans)

    def kept(self, plan: Plan) -> tuple[int, ...]:
        """Placeholders that stay of each span; those that carry layout all stay, and so do pictures
        under a method that compares the frames of videos.
        """
        method = plan.stage("tokens")
        if method is None or (method.video_only and not any(s.grid[0] > 1 for s in self.spans)):
            return tuple(s.length for s in self.spans)
        counts = counts_for(method, [(s.image, s.grid, s.n) for s in self.spans])
        pairs = zip(counts.per_segment, self.spans, strict=True)
        return tuple(k + s.length - s.n for k, s in pairs)

    def check(self, plan: Plan) -> None:
        """UnsupportedError where the plan's method would have to choose among tokens of which it
        cannot see what it reads. Better said now than while the picture is encoded for many requests.
        """
        method = plan.stage("tokens")
        if method is None or all(n.what == "question" for n in method.needs):
            return
        for span, kept in zip(self.spans, self.kept(plan), strict=True):
            if span.source is None and 0 < kept < span.length:
                raise UnsupportedError(
                    f"{method.name} reads the vision encoder's own tokens, but the {span.n} tokens of "
                    f"this {span.kind} are pooled or interpolated from them; send a picture with fewer "
                    "tiles, or choose a method that reads projected tokens alone, such as divprune"
                )


def shorten(tokens: Sequence[int], placeholder: int, layout: Layout, plan: Plan) -> list[int]:
    """A picture's part of the prompt with as many placeholders a span as the plan keeps; all other
    tokens (markers, newlines of text) stay.
    """
    layout.check(plan)
    have = sum(t == placeholder for t in tokens)
    if have != layout.length:
        raise InputError(f"{have} placeholders for a picture of {layout.length} visual tokens")
    kept = layout.kept(plan)
    owner = np.repeat(np.arange(len(kept)), [s.length for s in layout.spans])
    left, out, seen = list(kept), [], 0
    for token in tokens:
        if token == placeholder:
            span = int(owner[seen])
            seen += 1
            if left[span] == 0:
                continue
            left[span] -= 1
        out.append(token)
    return out


def square(n: int) -> tuple[int, int]:
    """(h, w) of n tokens: square if n is one, else a line."""
    side = int(np.sqrt(n) + 0.5)
    return (side, side) if side * side == n else (1, n)


def merged(h: int, w: int, step: int) -> np.ndarray:
    """(h * w,): which token each patch of a raster becomes where step x step patches become one."""
    rows, cols = np.arange(h) // step, np.arange(w) // step
    return (rows[:, None] * (w // step) + cols[None, :]).reshape(-1)


def passes(count: int, tokens: int, patches: int, kinds: Sequence[Kind]) -> Layout:
    """`count` encoder passes of `patches` patches, each a span of `tokens` tokens on a square grid;
    patches map to tokens one to one or by square blocks, else not at all.
    """
    group: np.ndarray | None = None
    if patches == tokens:
        group = np.arange(tokens)
    else:
        (side, rows), (small, lines) = square(patches), square(tokens)
        if side == rows and small == lines and small and side % small == 0:
            group = merged(side, side, side // small)
    spans = []
    for i in range(count):
        source = None if group is None else np.arange(patches) + i * patches
        part = None if group is None else np.full(patches, i)
        grid = (1, *square(tokens))
        spans.append(Span(kinds[i], grid, tokens, source=source, group=group, part=part))
    return Layout(tuple(spans), count * patches, count)


def pictured(layout: Layout) -> Layout:
    """A video that is read as pictures: each span is one of its own."""
    spans = tuple(replace(s, image=i) for i, s in enumerate(layout.spans))
    return replace(layout, spans=spans)


def interleaved(
    tokens: Sequence[int], placeholder: int, between: Sequence[int], layout: Layout, plan: Plan
) -> list[int]:
    """Ids of a video with words between its frames: how many tokens each frame keeps is not known yet,
    so all stand first and the words behind them, in a run that the model fills as it should be.

    tokens: the unpruned video's part of the prompt; between: the same with one placeholder a frame.
    """
    before = [None, *tokens]
    runs = [t for t, last in zip(tokens, before, strict=False) if t != placeholder or last != t]
    if runs != list(between):
        raise StateError(
            "this version of vLLM writes other words between a video's frames than the plug-in knows"
        )
    kept = shorten(tokens, placeholder, layout, plan)
    return sorted(kept, key=lambda t: t != placeholder)


def packed(grid: Grid, merge: int, kind: Kind = "image") -> Layout:
    """A packed tower's picture: grid (t, h, w) in patches, consecutive groups of merge² patches."""
    t, h, w = grid
    place = np.arange(t * h * w)
    small = (t, h // merge, w // merge)
    span = Span(
        "video" if t > 1 else kind,
        small,
        small[0] * small[1] * small[2],
        source=place,
        group=place // (merge * merge),
        part=np.zeros_like(place),
    )
    return Layout((span,), place.size)


def best_resolution(size: Size, candidates: Sequence[Size]) -> Size:
    """The (height, width) among the candidates that shows most of a picture of `size`, then the one
    that wastes least, then the first.
    """
    height, width = size
    best, most, least = candidates[0], -1, -1
    for h, w in candidates:
        scale = min(w / width, h / height)
        shown = min(int(width * scale) * int(height * scale), width * height)
        waste = h * w - shown
        if shown > most or (shown == most and waste < least):
            best, most, least = (h, w), shown, waste
    return best


def unpadded(size: Size, plane: Size) -> tuple[slice, slice]:
    """Rows and columns of a plane of patches that a picture of `size` fills, centred."""
    (height, width), (rows, cols) = size, plane
    if width / height > cols / rows:
        new = int(round(height * (cols / width), 7))
        pad = (rows - new) // 2
        return slice(pad, rows - pad), slice(0, cols)
    new = int(round(width * (rows / height), 7))
    pad = (cols - new) // 2
    return slice(0, rows), slice(pad, cols - pad)


def anyres(
    size: Size, candidates: Sequence[Size], tile: int, side: int, passes: int, most: int | None
) -> Layout:
    """A thumbnail of side x side patches, then the picture's tiles as one plane, cropped to the picture
    and each row ended by a newline. `tile`: edge of a tile in pixels. A plane of more than `most`
    tiles is shrunk by interpolation, whose tokens belong to no single patch. passes: encoder passes,
    which may be padded.
    """
    high, wide = (x // tile for x in best_resolution(size, candidates))
    per = side * side
    place = np.arange(per)
    whole = Span(
        "thumbnail", (1, side, side), per, source=place, group=place, part=np.zeros_like(place)
    )
    rows, cols = unpadded(size, (high * side, wide * side))
    h, w = rows.stop - rows.start, cols.stop - cols.start
    count = high * wide
    source = np.arange(per, per * (1 + count))
    group: np.ndarray | None = None
    ratio = np.sqrt(h * w / (most * side**2)) if most else 0.0
    if ratio > 1.1:
        h, w = int(h // ratio), int(w // ratio)
    else:
        plane = np.arange(count * per).reshape(high, wide, side, side).transpose(0, 2, 1, 3)
        inside = plane.reshape(high * side, wide * side)[rows, cols].reshape(-1)
        group = np.full(count * per, -1)
        group[inside] = np.arange(inside.size)
    fixed = np.zeros((h, w + 1), dtype=bool)
    fixed[:, w] = True
    tiles = Span(
        "tile",
        (1, h, w),
        h * (w + 1),
        fixed=fixed.reshape(-1),
        source=None if group is None else source,
        group=group,
        part=None if group is None else source // per,
    )
    return Layout((whole, tiles), passes * per, passes)
