"""HybridKV against plain loops over its formulas, written apart from the package."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from foveate.core import registry
from foveate.core.language import Pages
from foveate.memory.hybridkv import reach_of
from tests.memory.test_reference import attention, shared
from tests.memory.views import PlainView, prompt_view

LAYERS, PAGE = 3, 4


def views(**settings: Any) -> list[PlainView]:
    found = [prompt_view(40 + i, layers=LAYERS, tail=7, **settings) for i in range(LAYERS)]
    for i, view in enumerate(found):
        view.q[:2] *= 3.0 + i  # the first KV head looks at few places
    return found


def word_weights(view: PlainView) -> np.ndarray:
    """Attention (Hkv, n) of the question's words, averaged over words and query heads."""
    a = attention(view)
    words = [i for i in range(view.n) if view.question[i]]
    assert 1 < len(words) < view.n
    each = a.shape[0] // len(view.keys)
    out = np.zeros((len(view.keys), view.n))
    for h in range(len(view.keys)):
        for g in range(each):
            for i in words:
                out[h] += a[h * each + g, i] / each / len(words)
    return out


def needed(weights: Any, theta: float) -> int:
    total, left = float(sum(weights)), sorted((float(x) for x in weights), reverse=True)
    held = 0.0
    for count, x in enumerate(left, 1):
        held += x
        if held >= theta * total - 1e-12:
            return count
    return len(left)


@pytest.mark.parametrize(("mean", "ratio"), [(14, 1), (18, 1), (18, 2)])
def test_budgets_and_choices(mean: int, ratio: int) -> None:
    every, share = views(), 0.35
    n, theta = every[0].n, 0.9
    policy = registry.build("hybridkv", entries=mean, share="7/20", page=PAGE, ratio=ratio)
    stats = [policy.observe(i, v) for i, v in enumerate(every)]
    weights = [word_weights(v) for v in every]
    reach = [[needed(w, theta) for w in layer] for layer in weights]
    assert [list(s.reach) for s in stats] == reach
    static = [[m <= int(share * n) for m in layer] for layer in reach]
    flat = [s for layer in static for s in layer]
    still, moving = sum(flat), len(flat) - sum(flat)
    assert still >= 2 and moving >= 2, "both kinds are to be seen"

    budget = mean * len(flat)
    each = budget * ratio / (still + ratio * moving)
    each = min(each, (budget - still) / moving)
    newest = n - (n - 1) // PAGE * PAGE
    pages = int(each - newest) // PAGE
    assert pages >= 1
    dynamic = newest + pages * PAGE
    left = budget - dynamic * moving
    parts = iter(shared([m for r, s in zip(reach, static, strict=True)
                         for m, x in zip(r, s, strict=True) if x], left, 1, n))  # fmt: skip
    want = [[next(parts) if s else dynamic for s in layer] for layer in static]
    counts = policy.allocate(stats, [[n, n]] * LAYERS, budget)
    assert counts == want

    for i, view in enumerate(every):
        answers = policy.select(i, view, counts[i], stats[i])
        for h, r in enumerate(answers):
            if not static[i][h]:
                assert r == Pages(PAGE, pages) and r.resident(n) == counts[i][h]
                continue
            order = sorted(range(n - 1), key=lambda j: (view.modality[j] > 0, -weights[i][h, j], j))
            assert r.anchor.tolist() == sorted([n - 1, *order[: counts[i][h] - 1]])


def test_reach() -> None:
    assert reach_of([0.5, 0.1, 0.4], 0.9) == 2  # type: ignore[arg-type]
    assert reach_of([0.5, 0.1, 0.4], 0.91) == 3  # type: ignore[arg-type]
    assert reach_of([1.0, 0.0], 0.9) == 1 and reach_of([0.0, 0.0], 0.9) == 2  # type: ignore[arg-type]


def test_what_static_heads_cannot_use_is_more_pages() -> None:
    """Static heads that need little of a large budget are full; the rest is pages of the others."""
    policy = registry.build("hybridkv", entries=20, page=PAGE, share="1/2", ratio="1/2")
    stats = [SimpleNamespace(reach=(2, 20))]
    assert policy.allocate(stats, [[26, 26]], 40) == [[26, 2 + 3 * PAGE]]
    assert policy.allocate(stats, [[26, 26]], 52) == [[26, 26]]


def test_a_share_without_a_page_is_pruned() -> None:
    policy = registry.build("hybridkv", entries=5, page=16, share="0")
    view = prompt_view(3)
    stats = policy.observe(0, view)
    (r, _) = policy.select(0, view, policy.allocate([stats], [[view.n] * 2], 10)[0], stats)
    assert not isinstance(r, Pages) and r.k == 5


@pytest.mark.parametrize("group", [1, 3])
def test_retrieval(group: int) -> None:
    g = torch.Generator().manual_seed(4)
    query, keys = torch.randn(2, group, 8, generator=g), torch.randn(2, 6, PAGE, 8, generator=g)
    keys[1, 5] = keys[1, 2]  # pages that are alike tie to the lowest
    policy = registry.build("hybridkv", keep="1/2", page=PAGE)
    view = SimpleNamespace(mean=keys.mean(2), spec=Pages(PAGE, 3), heads=(0, 1))
    found = policy.retrieve(0, query, view)
    for h in range(2):
        score = np.zeros(6)
        for j in range(group):
            dots = [
                float(query[h, j] @ sum(keys[h, p, e] for e in range(PAGE)) / PAGE) / math.sqrt(8)
                for p in range(6)
            ]
            weights = [math.exp(x - max(dots)) for x in dots]
            score += np.asarray(weights) / sum(weights) / group
        order = sorted(range(6), key=lambda p: (-round(score[p], 6), p))
        assert found[h].tolist() == order[:3]
