"""The controls: random, uniform and pool do what their names say."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from foveate.core import Counts, PlanRng, arrays
from foveate.core.errors import InputError, UnsupportedError
from foveate.encode.tokens.pool import Pool, pooled_size, windows
from foveate.encode.tokens.random import Random
from foveate.encode.tokens.uniform import Uniform, frame_points
from tests.methods.synthetic import segment

RNG = PlanRng(3)


@given(h=st.integers(1, 30), w=st.integers(1, 30), share=st.floats(0, 1))
@settings(max_examples=300, deadline=None)
def test_uniform_points_are_distinct_and_even(h: int, w: int, share: float) -> None:
    k = max(1, round(h * w * share))
    points = frame_points(h, w, k)
    assert points.size == k == np.unique(points).size
    assert points.min() >= 0 and points.max() < h * w
    # No row has twice the tokens of another, and used rows are at even distances.
    used, per_row = np.unique(points // w, return_counts=True)
    assert per_row.max() - per_row.min() <= 1
    if used.size > 1:
        assert np.ptp(np.diff(used)) <= 1


def test_uniform_of_a_quarter_is_every_second_row_and_column() -> None:
    assert frame_points(4, 4, 4).tolist() == [5, 7, 13, 15]


def test_uniform_gives_single_frames_to_tiny_budgets() -> None:
    item = segment(Uniform, (8, 2, 2))
    kept = Uniform(per_image=2).select([item], Counts(2, (2,)), None, RNG)[0]
    assert (kept.anchor // 4).tolist() == [2, 6]


def test_random_depends_on_seed_and_segment_alone() -> None:
    items = [segment(Random, (1, 6, 6), ordinal=i, image=i) for i in range(2)]
    method = Random(keep=Fraction(1, 3))
    out = method.select(items, Counts(24, (12, 12)), None, RNG)
    assert out[0].anchor.tolist() != out[1].anchor.tolist()
    alone = method.select(items[1:], Counts(12, (12,)), None, RNG)[0]
    assert alone.anchor.tolist() == out[1].anchor.tolist()
    drawn = RNG(items[0]).permutation(36)[:12]
    assert out[0].anchor.tolist() == sorted(drawn.tolist())


@pytest.mark.parametrize(
    ("h", "w", "k", "size"),
    [
        (14, 14, 49, (7, 7)),
        (14, 14, 50, (7, 7)),
        (14, 14, 47, (6, 7)),
        (24, 24, 1, (1, 1)),
        (10, 20, 50, (5, 10)),
        (3, 40, 20, (1, 20)),
        (2, 2, 4, (2, 2)),
        (1, 9, 4, (1, 4)),
    ],
)
def test_pool_keeps_the_aspect(h: int, w: int, k: int, size: tuple[int, int]) -> None:
    got = pooled_size(h, w, k)
    assert got == size or got == size[::-1]


@given(n=st.integers(1, 60), share=st.floats(0, 1))
@settings(deadline=None)
def test_pool_windows_cover_everything_as_adaptive_pooling_does(n: int, share: float) -> None:
    torch = pytest.importorskip("torch")
    parts = max(1, round(n * share))
    got = windows(n, parts)
    assert set().union(*(range(a, b) for a, b in got)) == set(range(n))
    x = np.random.default_rng(n).standard_normal(n).astype(np.float32)
    expected = torch.nn.functional.adaptive_avg_pool1d(torch.from_numpy(x)[None, None], parts)
    assert np.allclose([x[a:b].mean() for a, b in got], expected.numpy().ravel(), atol=1e-5)


def test_pool_is_average_pooling_of_each_frame() -> None:
    torch = pytest.importorskip("torch")
    item = segment(Pool, (3, 7, 9))
    method = Pool(per_image=40)
    k = method.count(item.grid, 40)
    assert k == 3 * 3 * 4
    reduction = method.select([item], Counts(k, (k,)), None, RNG)[0]
    frames = torch.from_numpy(item.features).reshape(3, 7, 9, -1).permute(0, 3, 1, 2)
    expected = torch.nn.functional.adaptive_avg_pool2d(frames, (3, 4)).permute(0, 2, 3, 1)
    got = arrays.apply(reduction, item.features)
    assert np.allclose(got, expected.reshape(k, -1).numpy(), atol=1e-5)
    # Anchors stand in the middle of their windows.
    assert reduction.anchor[:4].tolist() == [9 + 1, 9 + 3, 9 + 5, 9 + 7]


def test_pool_refuses_a_count_that_no_rectangle_gives() -> None:
    item = segment(Pool, (1, 7, 7))
    with pytest.raises(InputError, match="nearest count is 16"):
        Pool(per_image=17).select([item], Counts(17, (17,)), None, RNG)


@pytest.mark.parametrize("method", [Uniform, Pool])
def test_methods_of_the_grid_refuse_tokens_without_one(method: type) -> None:
    item = replace(segment(method, (1, 4, 4)), grid=(1, 3, 5))
    with pytest.raises(UnsupportedError, match="grid"):
        method(per_image=4).select([item], Counts(4, (4,)), None, RNG)
