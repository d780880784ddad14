"""Reductions: sorted, checked, and refused where they would put a wrong token into the sequence."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from foveate.core import PlanRng, Reduction, Segment
from foveate.core.errors import InputError


def test_pick_sorts_and_knows_the_identity() -> None:
    r = Reduction.pick([3, 1], 5)
    assert r.anchor.tolist() == [1, 3] and r.k == 2 and r.is_pick and not r.is_identity
    assert Reduction.pick(range(4), 4).is_identity
    assert Reduction.pick([], 4).k == 0


@pytest.mark.parametrize("indices", [[0, 0], [-1], [4], [2, 7]])
def test_pick_refuses_foreign_and_repeated_tokens(indices: list[int]) -> None:
    with pytest.raises(InputError):
        Reduction.pick(indices, 4)


@given(st.permutations(list(range(6))))
def test_of_sorts_by_anchor_and_rows_follow(order: list[int]) -> None:
    rows = np.arange(6)
    r = Reduction.of(order, rows, np.asarray(order), np.ones(6), 6)
    assert r.anchor.tolist() == list(range(6))
    dense = np.zeros((6, 6))
    dense[r.rows, r.cols] = r.weights
    assert np.array_equal(dense, np.eye(6))


@pytest.mark.parametrize(
    "bad",
    [
        {"rows": [0, 2]},
        {"cols": [0, 9]},
        {"weights": [1.0, np.nan]},
        {"rows": [0, 0]},
        {"anchor": [0, 9]},
    ],
)
def test_of_is_checked(bad: dict[str, list[float]]) -> None:
    parts = {"anchor": [0, 1], "rows": [0, 1], "cols": [0, 1], "weights": [1.0, 1.0], **bad}
    with pytest.raises(InputError):
        Reduction.of(parts["anchor"], parts["rows"], parts["cols"], parts["weights"], 4).check()


def test_special_rows_may_repeat_anchor_zero_only() -> None:
    twice = Reduction.of([0, 0, 2], [0, 1, 2], [4, 0, 2], [1, 1, 1], 4, "encoder")
    twice.check(specials=1)
    with pytest.raises(InputError, match="kept twice"):
        twice.check(specials=0)
    with pytest.raises(InputError, match="kept twice"):
        Reduction.of([0, 2, 2], [0, 1, 2], [0, 2, 3], [1, 1, 1], 4, "encoder").check(specials=1)


def test_randomness_depends_on_seed_ordinal_and_grid_alone() -> None:
    def segment(ordinal: int, grid: tuple[int, int, int], image: int = 0) -> Segment:
        return Segment(image, ordinal, "image", grid, np.zeros((4, 2)))

    draw = lambda seed, s: PlanRng(seed)(s).integers(0, 2**32, 4).tolist()  # noqa: E731
    base = draw(1, segment(0, (1, 2, 2)))
    assert base == draw(1, segment(0, (1, 2, 2), image=5))
    others = [
        draw(2, segment(0, (1, 2, 2))),
        draw(1, segment(1, (1, 2, 2))),
        draw(1, segment(0, (1, 1, 4))),
    ]
    assert all(o != base for o in others)
