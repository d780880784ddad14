"""Budgets and counts: exact fractions, one rounding rule, largest remainder with bounds."""

from __future__ import annotations

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from foveate.core import Budget, Schedule, largest_remainder, resolve
from foveate.core.errors import SettingError

sizes = st.lists(st.lists(st.integers(0, 60), min_size=1, max_size=4), min_size=1, max_size=5)
ratios = st.fractions(min_value=Fraction(1, 100), max_value=1)


@given(st.integers(0, 200), st.lists(st.integers(0, 50), min_size=1, max_size=8), st.integers(0, 3))
def test_largest_remainder_keeps_sum_bounds_and_proportion(
    total: int, caps: list[int], floor: int
) -> None:
    parts = largest_remainder(total, caps, floor=floor, caps=caps)
    low = [min(floor, c) for c in caps]
    assert sum(parts) == min(max(total, sum(low)), sum(caps))
    assert all(a <= p <= c for a, p, c in zip(low, parts, caps, strict=True))


@given(st.integers(0, 100), st.lists(st.integers(1, 50), min_size=1, max_size=8))
def test_unbounded_parts_are_within_one_of_their_share(total: int, weights: list[int]) -> None:
    parts = largest_remainder(total, weights)
    assert sum(parts) == total
    for part, weight in zip(parts, weights, strict=True):
        assert abs(part - Fraction(total * weight, sum(weights))) < 1


def test_ties_go_to_the_lower_index() -> None:
    assert largest_remainder(2, [1, 1, 1]) == [1, 1, 0]
    assert largest_remainder(5, [1, 1, 1, 1]) == [2, 1, 1, 1]
    assert largest_remainder(3, [0, 0]) == [2, 1]
    assert largest_remainder(4, []) == []


@pytest.mark.parametrize(
    ("n", "keep", "k"),
    [
        (576, "1/4", 144),
        (576, "1/9", 64),
        (10, "1/4", 3),
        (9, "1/2", 5),
        (3, "1/100", 1),
        (1, "1/2", 1),
        (7, "1", 7),
        (0, "1/2", 0),
        (6, "1/4", 2),
        (5, "1/2", 3),
    ],
)
def test_one_image_rounds_half_up_and_keeps_at_least_one(n: int, keep: str, k: int) -> None:
    assert resolve(Budget(keep=Fraction(keep)), [[n]]).total == k


@given(sizes, ratios)
def test_a_ratio_holds_for_every_image_and_never_exceeds_a_segment(
    images: list[list[int]], keep: Fraction
) -> None:
    counts = resolve(Budget(keep=keep), images)
    flat = [n for image in images for n in image]
    assert all(0 <= k <= n for k, n in zip(counts.per_segment, flat, strict=True))
    at = 0
    for image in images:
        got = sum(counts.per_segment[at : at + len(image)])
        at += len(image)
        n = sum(image)
        want = 0 if n == 0 else min(n, max(1, int(keep * n + Fraction(1, 2))))
        assert got == want


@given(sizes, st.integers(1, 300))
def test_a_request_budget_is_spent_exactly_with_one_token_an_image(
    images: list[list[int]], k: int
) -> None:
    counts = resolve(Budget(per_request=k), images)
    total, filled = sum(map(sum, images)), sum(1 for i in images if sum(i))
    assert counts.total == sum(counts.per_segment) == min(total, max(k, filled))
    at = 0
    for image in images:
        got = sum(counts.per_segment[at : at + len(image)])
        at += len(image)
        assert got >= (1 if sum(image) else 0)


@pytest.mark.parametrize(
    "kwargs",
    [
        {},
        {"keep": Fraction(1, 2), "per_image": 3},
        {"keep": Fraction(0)},
        {"keep": Fraction(3, 2)},
        {"keep": Fraction(-1, 2)},
        {"per_image": 0},
        {"per_request": -4},
    ],
)
def test_bad_budgets_name_the_field(kwargs: dict[str, object]) -> None:
    with pytest.raises(SettingError) as error:
        Budget(**kwargs)  # type: ignore[arg-type]
    named = list(kwargs) or ["keep"]
    assert any(n in str(error.value) for n in named)


def test_schedules_never_grow() -> None:
    stairs = Schedule.steps(4, [(2, Fraction(1, 2)), (3, Fraction(0))])
    assert stairs.counts(9) == (9, 9, 5, 0) and stairs.mean_keep == Fraction(5, 8)
    with pytest.raises(SettingError, match="grows at layer 1"):
        Schedule((Fraction(1, 2), Fraction(3, 4)))
    with pytest.raises(SettingError, match="outside the model"):
        Schedule.steps(4, [(4, Fraction(1, 2))])
