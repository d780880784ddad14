"""Attention has a heavy tail: next to a first token that takes nearly all of it, the others are still
ranked by what they get.
"""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from foveate.core import registry
from foveate.core.language import Pages
from tests.memory.test_reference import attention
from tests.memory.views import PlainView, prompt_view

WINDOW, COUNT = 4, 24


def sink_view(depth: float = 19.0) -> PlainView:
    """A prompt whose first token takes all but about e^-depth of every query's attention."""
    view = prompt_view(31, grids=((1, 5, 8),), lead=3, tail=9, layers=1)
    side = torch.zeros(8)
    side[0] = depth**0.5 * 8**0.25
    view.q, view.k = view.q / 2, view.k.clone()
    view.q[..., 0], view.k[:, 1:, 0] = side[0], 0.0
    view.k[:, 0] = side
    view.keys = list(view.k)
    return view


def votes(a: np.ndarray, width: int, most: bool) -> np.ndarray:
    """Pooled attention (H / 2, n - w) of the last queries; pairs of heads share keys."""
    n = a.shape[1]
    rows = a[:, n - WINDOW :, : n - WINDOW].sum(1).reshape(-1, 2, n - WINDOW).mean(1)
    wide = np.pad(rows, ((0, 0), (width // 2, width // 2)))
    parts = np.stack([wide[:, i : i + rows.shape[1]] for i in range(width)])
    return np.asarray(parts.max(0) if most else parts.sum(0) / width)


def expected(name: str, view: PlainView, a: np.ndarray) -> np.ndarray:
    """Scores (2, m) of the first m entries, by the method's formula."""
    pairs = a.reshape(2, 2, view.n, view.n)
    if name in ("snapkv", "pyramidkv"):
        return votes(a, 5, False)
    if name in ("adakv", "sparsemm"):
        return votes(a, 7, True)
    if name == "vl-cache":
        return np.asarray(pairs[:, :, view.n - WINDOW :].sum((1, 2)))
    if name == "prefixkv":
        return np.tile(a.sum(1).mean(0), (2, 1))
    if name == "look-m":
        return np.asarray(pairs.sum((1, 2)))
    return np.asarray(pairs[:, :, view.question].mean((1, 2)))


@pytest.mark.parametrize(
    "name",
    ["snapkv", "pyramidkv", "adakv", "sparsemm", "vl-cache", "prefixkv", "look-m", "hybridkv"],
)
def test_what_is_left_out_scores_no_higher(name: str, tmp_path: Path) -> None:
    view = sink_view()
    a = attention(view)
    assert 0 < a[:, -1, 1:].max() < 1e-5, "no token is to be near the first"
    settings: dict[str, Any] = {"entries": COUNT}
    if name in ("snapkv", "pyramidkv", "adakv", "sparsemm", "vl-cache"):
        settings["window"] = WINDOW
    if name == "sparsemm":
        path = tmp_path / "heads.json"
        path.write_text(json.dumps({"scores": [[1.0] * 4]}))
        settings["heads"] = str(path)
    if name == "hybridkv":
        settings["share"] = "1"  # every head is pruned
    if name == "look-m":
        view.modality[:] = 0
        settings["merge"] = "off"
    policy = registry.build(name, **settings)
    stats = policy.observe(0, view)
    counts = policy.allocate([stats], [[view.n] * 2], 2 * COUNT)[0]
    found = policy.select(0, view, counts, stats)
    assert any(r.k < view.n for r in found)
    for r, score in zip(found, expected(name, view, a), strict=True):
        # What stays whatever it scores: the first tokens and the last ones.
        free = np.arange(4, min(len(score), view.n - COUNT // 2))
        if name == "hybridkv":  # text goes first
            free = free[view.modality[free] > 0]
        inside = np.isin(free, r.anchor)
        assert inside.any() and not inside.all()
        assert score[free[inside]].min() >= score[free[~inside]].max() * (1 - 1e-4)


@pytest.mark.parametrize("normalize", [False, True])
def test_a_head_that_looks_at_its_window_alone(normalize: bool) -> None:
    """Its votes are all 0: their share of nothing was once a number that is none."""
    policy = registry.build("adakv", entries=COUNT, window=WINDOW, normalize=normalize)
    votes = torch.rand(2, 40, generator=torch.Generator().manual_seed(0))
    votes[0] = 0.0
    room = [40 + WINDOW] * 2
    first, second = policy.allocate([votes], [room], 2 * COUNT)[0]
    base = COUNT - WINDOW
    assert (first, second) == (WINDOW + base // 5, WINDOW + base * 2 * 4 // 5 + base // 5)


def test_a_page_far_from_the_best_is_ranked_too() -> None:
    g = torch.Generator().manual_seed(2)
    query = torch.full((1, 1, 4), 5.0)
    mean = torch.randn(1, 12, 4, generator=g) / 4
    mean[0, 7] = 4.0  # softmax: all but e^-38 lies here
    policy = registry.build("hybridkv", keep="1/2", page=4)
    found = policy.retrieve(0, query, SimpleNamespace(mean=mean, spec=Pages(4, 5), heads=(0,)))
    order = sorted(range(12), key=lambda p: -float(mean[0, p].double().sum()))
    assert found[0].tolist() == order[:5]
