"""What a method sees and what it answers: segments, encoder views, questions, reductions. Arrays
are numpy or torch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from foveate.core.errors import InputError

Array = Any  # a numpy or torch array; core imports neither's type
Grid = tuple[int, int, int]  # (t, h, w)
Kind = Literal["image", "tile", "thumbnail", "video"]
Space = Literal["projected", "encoder", "hidden", "cache"]


@dataclass(frozen=True)
class Need:
    """What a method asks the engine for. `layer` counts encoder blocks, negative from the end (-1
    the last).

    `what`: "features" (encoder output before the projector), "cls" (attention of the CLS query),
    "received" (mean attention a token gets), "saliency" (cls where the tower has a CLS token, else
    received), "keys", "query" (projections of one layer), "question" (the words of the turn),
    "clip" (the user's text tower: an embedding of the question, and the patches of block `layer` in
    its space, `EncoderView.joint`).
    """

    what: str
    layer: int = -1
    per_head: bool = False


@dataclass(frozen=True)
class Attention:
    """One encoder layer's attention facts, float32, over the m patch tokens of a segment.

    cls (m,) or (H, m) if asked per head; received (m,) or (H, m); keys (m, H, a); query (s, H, a)
    of
    the special tokens. Keys and queries are those the layer's attention uses.
    """

    cls: Array | None = None
    received: Array | None = None
    keys: Array | None = None
    query: Array | None = None

    @property
    def saliency(self) -> Array:
        """CLS attention where there is a CLS token, else received attention."""
        if self.cls is not None:
            return self.cls
        if self.received is None:
            raise InputError("no attention was captured for this layer; ask for it in `needs`")
        return self.received


@dataclass(frozen=True)
class EncoderView:
    """The vision encoder's own tokens of a segment.

    features (m, c) at the layer the projector reads; special (s, c) such as the CLS token of each
    tile;
    group (m,): encoder token -> projected token, -1 where none; part (m,): encoder pass (tile);
    at: layer -> Attention. `tokenwise`: the projector maps each token alone, so a method may answer
    in encoder space (then group is a permutation). joint (m, e): the encoder's tokens in the space of
    the text tower that the user supplied, None without one.
    """

    features: Array | None
    special: Array | None
    group: Array
    part: Array
    at: Mapping[int, Attention] = field(default_factory=dict)
    tokenwise: bool = False
    hidden: Mapping[int, Array] = field(default_factory=dict)
    joint: Array | None = None


@dataclass(frozen=True)
class Segment:
    """The visual tokens of one image, tile, thumbnail or video; features (n, d) after the
    projector.

    fixed (n,) marks tokens that carry layout (newlines): the engine strips them before a method
    sees
    the segment. For a video `time_s` (t,) holds the time stamp of each temporal grid row, None where
    it is not known.
    """

    image: int
    ordinal: int
    kind: Kind
    grid: Grid
    features: Array
    fixed: Array | None = None
    time_s: Array | None = None
    encoder: EncoderView | None = None

    @property
    def n(self) -> int:
        return int(self.features.shape[0])


@dataclass(frozen=True)
class Question:
    """One turn's words without template: ids (q,), embeddings (q, d); clip (e,) if the user
    supplied a tower, or (s, e) where its text tower took the words in s parts.
    """

    turn: int
    ids: Array
    embeddings: Array
    clip: Array | None = None


@dataclass(frozen=True)
class Reduction:
    """out = W x with a sparse W: a pick, a merge, or both. Build with `Reduction.pick` or
    `Reduction.of`.

    anchor (k,) int64, nondecreasing: the token whose position and DeepStack row a kept token takes.
    rows, cols, weights (nnz,): W in coordinate form, None for a plain pick. cols j < n is token j,
    n + i is special token i (encoder space only). Arrays are numpy: choices are small and live on
    the host.
    """

    anchor: np.ndarray
    n: int
    space: Space = "projected"
    rows: np.ndarray | None = None
    cols: np.ndarray | None = None
    weights: np.ndarray | None = None

    @property
    def k(self) -> int:
        return int(self.anchor.shape[0])

    @property
    def is_pick(self) -> bool:
        return self.rows is None

    @property
    def is_identity(self) -> bool:
        return self.is_pick and self.k == self.n and bool((self.anchor == np.arange(self.n)).all())

    @staticmethod
    def pick(indices: Any, n: int, space: Space = "projected") -> Reduction:
        """Keep tokens unchanged. Indices are sorted; a repeated or foreign index is an error."""
        anchor = np.sort(np.asarray(indices, dtype=np.int64).reshape(-1))
        out = Reduction(anchor, n, space)
        out.check(specials=0)
        return out

    @staticmethod
    def of(
        anchor: Any,
        rows: Any,
        cols: Any,
        weights: Any,
        n: int,
        space: Space = "projected",
    ) -> Reduction:
        """A weighted reduction; kept tokens are sorted stably by anchor and `rows` follow."""
        a = np.asarray(anchor, dtype=np.int64).reshape(-1)
        order = np.argsort(a, kind="stable")
        place = np.empty_like(order)
        place[order] = np.arange(order.shape[0])
        r = np.asarray(rows, dtype=np.int64).reshape(-1)
        if r.size and (r.min() < 0 or r.max() >= a.size):
            raise InputError(f"rows must lie in [0, {a.size}); got [{r.min()}, {r.max()}]")
        return Reduction(
            a[order],
            n,
            space,
            place[r],
            np.asarray(cols, dtype=np.int64).reshape(-1),
            np.asarray(weights, dtype=np.float32).reshape(-1),
        )

    def check(self, specials: int = 0) -> None:
        """Raise InputError unless this is a legal reduction of n tokens and `specials` special
        ones.
        """
        a = self.anchor
        if a.size and (a[0] < 0 or a[-1] >= self.n):
            raise InputError(f"anchors must lie in [0, {self.n}); got [{a[0]}, {a[-1]}]")
        step = np.diff(a)
        if (step < 0).any():
            raise InputError("anchors must not decrease; build the reduction with Reduction.of")
        repeated = a[1:][step == 0]
        if repeated.size and (repeated.max() > 0 or self.is_pick or specials == 0):
            raise InputError(f"token {int(repeated.max())} was kept twice")
        if self.rows is None or self.cols is None or self.weights is None:
            if not (self.rows is None and self.cols is None and self.weights is None):
                raise InputError("rows, cols and weights come together")
            return
        if not self.rows.shape == self.cols.shape == self.weights.shape:
            raise InputError("rows, cols and weights must have one length")
        if self.rows.size and (self.rows.min() < 0 or self.rows.max() >= self.k):
            raise InputError(f"rows must lie in [0, {self.k})")
        if self.cols.size and (self.cols.min() < 0 or self.cols.max() >= self.n + specials):
            raise InputError(f"cols must lie in [0, {self.n + specials})")
        if np.unique(self.rows).size != self.k:
            raise InputError("every kept token needs at least one source")
        if not np.isfinite(self.weights).all():
            raise InputError("weights must be finite")


@dataclass(frozen=True)
class Box:
    """A rectangle in pixels: left and top inside, right and bottom outside."""

    left: int
    top: int
    right: int
    bottom: int


@dataclass(frozen=True)
class PixelPlan:
    """What is looked at at all. None = unchanged. size (h, w); tiles and frames are indices to
    keep; patches (k,) are the visual tokens, rising in the order of the grid, whose patches enter the
    tower.
    """

    size: tuple[int, int] | None = None
    tiles: tuple[int, ...] | None = None
    patches: tuple[int, ...] | None = None
    frames: tuple[int, ...] | None = None

    @property
    def is_identity(self) -> bool:
        return self == PixelPlan()


@dataclass(frozen=True)
class Pixels:
    """One picture or video before preprocessing: array (t, H, W, 3) uint8, size (h, w) as the tower
    would see it.

    tiles: boxes in the picture of each encoder pass, in order, the whole picture last or first as
    the family has it (`thumbnail` is its index). tokens(plan) says how many visual tokens a plan
    gives. `resizes`: the family changes its token count with the picture's size.
    Methods that act on patches see what the tower would get instead: array float32, resized and
    normalised, and the `grid` (t, h, w) of its visual tokens, each of which is a block of equal
    size of the array. `span`: what lies between black and white in each colour of the array, None
    where the normalisation is not known.
    """

    image: int
    array: np.ndarray
    size: tuple[int, int]
    tokens: Callable[[PixelPlan], int]
    tiles: tuple[Box, ...] | None = None
    thumbnail: int | None = None
    grid: Grid | None = None
    span: tuple[float, float, float] | None = (255.0, 255.0, 255.0)
    time_s: np.ndarray | None = None
    resizes: bool = False


@dataclass(frozen=True)
class BlockView:
    """Inside the tower, after one block's attention input: hidden (m, c), keys (m, H, a), size (m,)
    merged patches a token.

    protected (m,) bool marks tokens that must stay alone (CLS). keys is None where the method did
    not ask
    for them; attention.cls or .received (m,), mean over heads, is given on request (`TowerMethod.reads`).
    """

    layer: int
    hidden: Array
    keys: Array | None
    size: Array
    protected: Array
    grid: Grid
    attention: Attention | None = None
