"""Synthetic requests: segments, encoder views and questions that meet any method's needs,
without a model.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np

from foveate.core import Attention, EncoderView, Question, Segment, TokenMethod
from foveate.core.views import Kind

Make = Callable[[np.ndarray], Any]
DIM, WIDTH, HEADS, HEAD_DIM, JOINT = 12, 8, 3, 4, 8
DEEP = -2


def features_of(style: str, n: int, dim: int, rng: np.random.Generator) -> np.ndarray:
    """(n, dim): "random", "constant" (one row n times) or "repeated" (few distinct integer
    rows).
    """
    if style == "constant":
        return np.repeat(rng.standard_normal((1, dim)), n, axis=0).astype(np.float32)
    if style == "repeated":
        rows = rng.integers(-2, 3, (max(1, n // 3), dim))
        return rows[rng.integers(0, len(rows), n)].astype(np.float32)
    return rng.standard_normal((n, dim)).astype(np.float32)


def _attention(style: str, m: int, cls: bool, rng: np.random.Generator, make: Make) -> Attention:
    weights = (
        rng.dirichlet(np.full(m, 0.3), HEADS) if style != "constant" else np.full((HEADS, m), 1 / m)
    )
    if style == "repeated":
        weights = np.round(weights * 8) / 8
    received = np.roll(weights, 1, axis=1).mean(0)
    return Attention(
        make(weights.mean(0).astype(np.float32)) if cls else None,
        make(received.astype(np.float32)),
        make(features_of(style, m, HEADS * HEAD_DIM, rng).reshape(m, HEADS, HEAD_DIM)),
        make(rng.standard_normal((1, HEADS, HEAD_DIM)).astype(np.float32)) if cls else None,
    )


def segment(
    method: type[TokenMethod],
    grid: tuple[int, int, int],
    *,
    image: int = 0,
    ordinal: int = 0,
    style: str = "random",
    tower: str = "cls",
    make: Make = np.asarray,
    kind: Kind | None = None,
    seed: int = 0,
) -> Segment:
    """One segment; `tower`: "cls" (token by token, CLS), "plain" (token by token), "merger"
    (four to one), "none".
    """
    n = grid[0] * grid[1] * grid[2]
    text = f"{method.name} {grid} {style} {seed}"
    rng = np.random.default_rng(zlib.crc32(text.encode()))
    features = features_of(style, n, DIM, rng)
    view = None
    if tower != "none":
        group = np.arange(n) if tower != "merger" else rng.permutation(np.repeat(np.arange(n), 4))
        m, cls = group.size, tower == "cls"
        layers = sorted({need.layer for need in method.needs})
        at = {layer: _attention(style, m, cls, rng, make) for layer in layers}
        hidden = {layer: make(features_of(style, m, WIDTH, rng)) for layer in layers}
        special = make(rng.standard_normal((1, WIDTH)).astype(np.float32)) if cls else None
        part = np.zeros(m, dtype=np.int64)
        own = make(features_of(style, m, WIDTH, rng))
        joint = make(features_of(style, m, JOINT, rng))
        view = EncoderView(
            own, special, make(group), make(part), at, tower != "merger", hidden, joint
        )
    times = np.arange(grid[0]) / 2 if grid[0] > 1 else None
    chosen: Kind = kind or ("video" if grid[0] > 1 else "image")
    return Segment(image, ordinal, chosen, grid, make(features), None, times, view)


def question(make: Make = np.asarray, words: int = 5) -> Question:
    rng = np.random.default_rng(99)
    embeddings = rng.standard_normal((words, DIM)).astype(np.float32)
    clip = rng.standard_normal(JOINT).astype(np.float32)
    return Question(0, make(np.arange(words)), make(embeddings), make(clip))


def as_tensors(item: Any, make: Make) -> Any:
    """The same segment with its arrays made anew by `make`."""
    view = item.encoder
    if view is not None:
        at = {
            layer: Attention(
                *(None if a is None else make(a) for a in (x.cls, x.received, x.keys, x.query))
            )
            for layer, x in view.at.items()
        }
        hidden = {layer: make(x) for layer, x in view.hidden.items()}
        special = None if view.special is None else make(view.special)
        view = replace(
            view,
            features=make(view.features),
            special=special,
            group=make(view.group),
            part=make(view.part),
            at=at,
            hidden=hidden,
            joint=None if view.joint is None else make(view.joint),
        )
    return replace(item, features=make(item.features), encoder=view)
