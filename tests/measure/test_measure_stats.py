"""Statistics against closed forms, published values and properties that must hold for any data."""

from __future__ import annotations

import math
import sys
from statistics import NormalDist

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from foveate.core.errors import InputError, MissingExtraError
from foveate.measure import holm, mcnemar_exact, paired_bootstrap, wilson

pytest.importorskip("scipy")
probability = st.floats(0, 1, allow_nan=False)


@given(st.integers(1, 5000), st.data(), st.floats(0.5, 0.999))
def test_wilson_is_the_score_interval(n: int, data: st.DataObject, confidence: float) -> None:
    k = data.draw(st.integers(0, n))
    z, p = NormalDist().inv_cdf(0.5 + confidence / 2), k / n
    middle = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    found = wilson(k, n, confidence)
    assert found.low == pytest.approx(middle - half, abs=1e-9)
    assert found.high == pytest.approx(middle + half, abs=1e-9)
    assert found.estimate == p


def test_wilson_known_values() -> None:
    found = wilson(81, 263)  # a textbook case: 0.2553 to 0.3662
    assert (round(found.low, 4), round(found.high, 4)) == (0.2553, 0.3662)
    none = wilson(0, 10)
    assert none.low == 0.0 and round(none.high, 4) == 0.2775
    assert 0.5 in wilson(5, 10) and 0.99 not in wilson(5, 10)


@pytest.mark.parametrize(("k", "n", "level"), [(1, 0, 0.9), (-1, 3, 0.9), (4, 3, 0.9), (1, 3, 1.0)])
def test_wilson_refuses_what_is_no_proportion(k: int, n: int, level: float) -> None:
    with pytest.raises(InputError):
        wilson(k, n, level)


@given(st.integers(0, 60), st.integers(0, 60))
def test_mcnemar_is_the_exact_two_sided_coin(b: int, c: int) -> None:
    n, low = b + c, min(b, c)
    tail = sum(math.comb(n, i) for i in range(low + 1)) / 2**n
    assert mcnemar_exact(b, c) == pytest.approx(min(1.0, 2 * tail), rel=1e-9)
    assert mcnemar_exact(b, c) == mcnemar_exact(c, b)


def test_mcnemar_known_values() -> None:
    assert mcnemar_exact(0, 0) == 1.0
    assert mcnemar_exact(0, 5) == 0.0625
    assert round(mcnemar_exact(3, 12), 4) == 0.0352
    with pytest.raises(InputError):
        mcnemar_exact(-1, 2)


values = st.lists(st.tuples(st.floats(-9, 9), st.floats(-9, 9)), min_size=2, max_size=25)


@settings(max_examples=25, deadline=None)
@given(values, st.integers(0, 99))
def test_bootstrap_is_repeatable_and_antisymmetric(
    pairs: list[tuple[float, float]], seed: int
) -> None:
    a, b = [x for x, _ in pairs], [y for _, y in pairs]
    one = paired_bootstrap(a, b, resamples=199, seed=seed)
    assert one == paired_bootstrap(a, b, resamples=199, seed=seed)
    back = paired_bootstrap(b, a, resamples=199, seed=seed)
    assert back.low == pytest.approx(-one.high, abs=1e-9)
    assert back.high == pytest.approx(-one.low, abs=1e-9)
    spread = np.subtract(a, b)
    assert spread.min() - 1e-9 <= one.low <= one.high <= spread.max() + 1e-9


def test_bootstrap_of_a_constant_difference_is_a_point() -> None:
    found = paired_bootstrap([3.0, 5.0, 7.0], [2.0, 4.0, 6.0])
    assert (found.low, found.estimate, found.high) == (1.0, 1.0, 1.0)


def test_bootstrap_pairs_are_kept_together() -> None:
    rng = np.random.default_rng(3)
    base = rng.normal(0, 100, 200)
    found = paired_bootstrap(base + rng.normal(1, 0.1, 200), base)
    # Drawn apart, the interval would be about 40 wide.
    assert found.high - found.low < 0.05 and 0.95 < found.estimate < 1.05


def test_bootstrap_covers_the_truth_about_as_often_as_it_says() -> None:
    rng = np.random.default_rng(0)
    hits = 0
    for trial in range(200):
        x = rng.normal(0.3, 1, 40)
        hits += 0.3 in paired_bootstrap(x, np.zeros(40), confidence=0.9, resamples=299, seed=trial)
    assert 0.82 * 200 <= hits <= 0.95 * 200


def test_bootstrap_takes_other_statistics() -> None:
    found = paired_bootstrap([1.0, 2.0, 100.0], [0.0, 0.0, 0.0], statistic=np.median)
    assert found.estimate == 2.0


@pytest.mark.parametrize(
    ("a", "b"), [([1.0], [2.0]), ([1.0, 2.0], [1.0]), ([1.0, float("nan")], [0.0, 0.0])]
)
def test_bootstrap_refuses(a: list[float], b: list[float]) -> None:
    with pytest.raises(InputError):
        paired_bootstrap(a, b)
    with pytest.raises(InputError, match="resamples"):
        paired_bootstrap([1.0, 2.0], [0.0, 0.0], resamples=10)


def test_holm_known_values() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([]) == [] and holm([0.2]) == [0.2]
    for bad in (-0.1, 1.1, float("nan")):
        with pytest.raises(InputError):
            holm([0.5, bad])


@given(st.lists(probability, min_size=1, max_size=20), st.randoms())
def test_holm_rejects_as_the_step_down_procedure(p: list[float], random: object) -> None:
    found = holm(p)
    order = sorted(range(len(p)), key=lambda i: p[i])
    for alpha in (0.01, 0.05, 0.2):
        rejected = set()
        for rank, i in enumerate(order):
            if (len(p) - rank) * p[i] > alpha:
                break
            rejected.add(i)
        assert {i for i, q in enumerate(found) if q <= alpha} == rejected
    shuffled = list(range(len(p)))
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    assert holm([p[i] for i in shuffled]) == [found[i] for i in shuffled]


def test_without_scipy_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "scipy.stats", None)
    with pytest.raises(MissingExtraError, match=r"foveate\[hf\]"):
        wilson(1, 2)
