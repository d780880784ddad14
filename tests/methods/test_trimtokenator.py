"""TrimTokenator and its form for many images: stages, invariants, Pareto ranking."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from foveate.core import Counts, PlanRng, Segment
from foveate.core.errors import InputError
from foveate.encode.tokens.trimtokenator import TrimTokenator, closeness
from foveate.encode.tokens.trimtokenator_lc import (
    TrimTokenatorLC,
    crowding,
    diversity,
    fronts,
    pareto_order,
)
from tests.methods.synthetic import question, segment

pytestmark = pytest.mark.claim("C1")

RNG = PlanRng(0)


def test_closeness_is_minus_the_mean_squared_distance() -> None:
    item, ask = segment(TrimTokenator, (1, 4, 5)), question()
    expected = [-np.mean([((x - w) ** 2).sum() for w in ask.embeddings]) for x in item.features]
    assert np.allclose(closeness(item.features, ask.embeddings), expected, rtol=1e-5)


@pytest.mark.parametrize("share", [0.5, 0.8, 1.0])
def test_text_first_then_the_least_alike(share: float) -> None:
    item, ask, k = segment(TrimTokenator, (1, 5, 6)), question(), 7
    score = closeness(item.features, ask.embeddings)
    near = sorted(sorted(range(30), key=lambda i: -score[i])[: int(share * 30 + 0.5)])
    u = item.features / np.linalg.norm(item.features, axis=1, keepdims=True)
    s = u @ u.T
    chosen = [min(near, key=lambda i: sum(s[i, j] for j in near if j != i))]
    while len(chosen) < k:
        free = [i for i in near if i not in chosen]
        chosen.append(min(free, key=lambda i: sum(s[i, j] for j in chosen)))
    kept = TrimTokenator(per_image=k, share=share).select([item], Counts(k, (k,)), ask, RNG)[0]
    assert kept.anchor.tolist() == sorted(chosen)


def test_diversity_is_the_mean_over_pairs() -> None:
    x = segment(TrimTokenatorLC, (1, 3, 4)).features
    u = x / np.linalg.norm(x, axis=1, keepdims=True)
    pairs = [1 - u[i] @ u[j] for i in range(12) for j in range(12) if i != j]
    assert diversity(x)[0] / 2**20 == pytest.approx(np.mean(pairs), abs=1e-5)
    assert diversity(x[:1])[0] == 0


@given(st.lists(st.tuples(st.integers(0, 6), st.integers(0, 6)), min_size=1, max_size=40))
@settings(max_examples=200, deadline=None)
def test_fronts_are_the_non_dominated_sort(points: list[tuple[int, int]]) -> None:
    left = dict(enumerate(points))
    expected, number = {}, 0
    while left:
        best = [
            i
            for i, (a, b) in left.items()
            if not any(c >= a and d >= b and (c > a or d > b) for c, d in left.values())
        ]
        for i in best:
            expected[i] = number
            del left[i]
        number += 1
    first, second = np.array([p[0] for p in points]), np.array([p[1] for p in points])
    assert fronts(first, second).tolist() == [expected[i] for i in range(len(points))]
    order = pareto_order(first, second)
    assert sorted(order.tolist()) == list(range(len(points)))
    assert (np.diff(fronts(first, second)[order]) >= 0).all()


def test_crowding_prefers_the_ends_and_the_lonely() -> None:
    far = crowding(np.array([0, 1, 2, 10]), np.array([10, 9, 8, 0]))
    assert np.isinf(far[[0, 3]]).all() and far[2] > far[1]


def request(kappa_images: int = 3) -> list[Segment]:
    return [
        segment(TrimTokenatorLC, (1, 5, 5), image=i, ordinal=i, seed=i) for i in range(kappa_images)
    ]


def kept_of(items: list[Segment], total: int, **settings: float) -> list[int]:
    method = TrimTokenatorLC(per_request=total, **settings)
    share = tuple(total // len(items) for _ in items)
    out = method.select(items, Counts(total, share, False), question(), RNG)
    assert sum(r.k for r in out) == total
    return [r.k for r in out]


def test_a_copied_image_gets_almost_nothing() -> None:
    items = request()
    items[1] = replace(items[0], image=1, ordinal=1)
    kept = kept_of(items, 18)
    assert min(kept) >= 1
    assert kept[0] + kept[1] <= kept[2] + 6


def test_a_constant_image_gets_its_least() -> None:
    items = request()
    items[1] = replace(items[1], features=np.ones_like(items[1].features))
    assert kept_of(items, 18)[1] == 1


def test_every_image_keeps_a_token_even_at_the_floor() -> None:
    assert kept_of(request(), 3) == [1, 1, 1]


def test_fewer_tokens_than_images_are_refused() -> None:
    method = TrimTokenatorLC(per_request=2)
    with pytest.raises(InputError, match="3 images"):
        method.select(request(), Counts(2, (1, 1, 0), False), question(), RNG)


def test_the_text_decides_at_the_end() -> None:
    items = request(2)
    ask = question()
    near = replace(ask, embeddings=items[0].features[[7, 11, 13]])
    method = TrimTokenatorLC(per_request=8)
    out = method.select(items, Counts(8, (4, 4), False), near, RNG)
    plain = method.select(items, Counts(8, (4, 4), False), ask, RNG)
    hits = len({7, 11, 13} & set(out[0].anchor.tolist()))
    assert hits >= len({7, 11, 13} & set(plain[0].anchor.tolist())) and hits >= 1
