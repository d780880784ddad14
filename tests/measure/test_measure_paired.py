"""Paired comparisons against plain references: a likelihood maximised by search, enumeration, scipy
and statsmodels; and properties that hold for any data.
"""

from __future__ import annotations

import itertools
import math
from statistics import NormalDist

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from foveate.core.errors import InputError
from foveate.measure import wilson
from foveate.measure.paired import (
    BinaryPairs,
    GradedPairs,
    newcombe,
    pair_up,
    sign_flip,
    tost,
)

scipy_stats = pytest.importorskip("scipy.stats")
counts = st.tuples(st.integers(0, 60), st.integers(0, 60), st.integers(1, 400))


def score_z(b: int, c: int, n: int, margin: float) -> float:
    """Tango's statistic with the constrained likelihood maximised by a search."""
    from scipy.optimize import minimize_scalar

    def lost(p: float) -> float:
        parts = ((b, p + margin), (c, p), (n - b - c, 1 - 2 * p - margin))
        return -sum(k * math.log(x) for k, x in parts if k)

    low, high = max(0.0, -margin) + 1e-13, (1 - margin) / 2 - 1e-13
    p = minimize_scalar(lost, bounds=(low, high), method="bounded", options={"xatol": 1e-13}).x
    return (b - c - n * margin) / math.sqrt(n * (2 * p + margin * (1 - margin)))


@pytest.mark.parametrize("margin", [-0.3, -0.01, 0.004, 0.01, 0.2])
@pytest.mark.parametrize(("b", "c", "n"), [(12, 3, 100), (90, 30, 2000), (1, 6, 40), (5, 5, 11)])
def test_the_score_statistic_is_that_of_the_constrained_likelihood(
    b: int, c: int, n: int, margin: float
) -> None:
    assert BinaryPairs(n, b, c).z(margin) == pytest.approx(score_z(b, c, n, margin), abs=1e-4)


@given(counts, st.floats(0.5, 0.99))
def test_the_interval_holds_what_the_test_does_not_reject(
    data: tuple[int, int, int], confidence: float
) -> None:
    b, c, more = data
    pairs = BinaryPairs(b + c + more, b, c)
    found = pairs.interval(confidence)
    assert -1 <= found.low <= pairs.drop <= found.high <= 1
    z = NormalDist().inv_cdf(0.5 + confidence / 2)
    assert pairs.z(found.low) == pytest.approx(z, abs=1e-5)
    assert pairs.z(found.high) == pytest.approx(-z, abs=1e-5)
    # Which side is called first must not matter.
    other = BinaryPairs(pairs.n, c, b).interval(confidence)
    assert (-other.high, -other.low) == pytest.approx((found.low, found.high), abs=1e-9)


def test_without_discordant_pairs_the_interval_is_z2_over_n_plus_z2() -> None:
    z2 = NormalDist().inv_cdf(0.975) ** 2
    found = BinaryPairs(60, 0, 0).interval()
    assert (-found.low, found.high) == pytest.approx((z2 / (60 + z2),) * 2)


def test_at_margin_zero_the_score_test_is_mcnemars() -> None:
    assert BinaryPairs(200, 15, 6).z(0.0) == pytest.approx(9 / math.sqrt(21))
    assert BinaryPairs(200, 0, 0).z(0.0) == 0.0


@pytest.mark.parametrize(("b", "c"), [(0, 0), (3, 0), (0, 5), (5, 5)])
def test_extremes_stay_inside_the_range(b: int, c: int) -> None:
    found = BinaryPairs(max(1, b + c), b, c).interval(0.999)
    assert -1 <= found.low <= found.high <= 1


@pytest.mark.parametrize("p", [0.01, 0.06, 0.2])
def test_coverage_of_the_score_interval_with_rare_discordance(p: float) -> None:
    rng = np.random.default_rng(3)
    drawn = rng.multinomial(300, [0.75 * p, 0.25 * p, 1 - p], size=1500)
    seen: dict[tuple[int, int], bool] = {}
    for b, c, _ in drawn:
        if (b, c) not in seen:
            seen[b, c] = p / 2 in BinaryPairs(300, int(b), int(c)).interval()
    # 3 discordant pairs in the mean are too coarse for exactly 95 %.
    assert 0.93 <= np.mean([seen[b, c] for b, c, _ in drawn]) <= 0.99


def test_graded_pairs_are_t_with_two_pseudo_pairs() -> None:
    d = np.array([0.2, 0.0, -0.1, 0.5, 0.0, 0.25])
    pairs = GradedPairs(6, float(d.mean()), float(d.std(ddof=1)))
    plain = np.concatenate([d, [1.0, -1.0]])
    assert pairs.p_above(0.05) == pytest.approx(
        scipy_stats.ttest_1samp(plain, 0.05, alternative="greater").pvalue
    )
    assert pairs.p_below(0.05) == pytest.approx(
        scipy_stats.ttest_1samp(plain, 0.05, alternative="less").pvalue
    )
    ends = scipy_stats.ttest_1samp(plain, 0).confidence_interval(0.95)
    assert (pairs.interval().low, pairs.interval().high) == pytest.approx((ends.low, ends.high))
    assert pairs.interval().estimate == pytest.approx(d.mean())


def test_graded_interval_is_not_of_width_zero_where_nothing_differs() -> None:
    narrow, wide = GradedPairs(1000, 0.0, 0.0).interval(), GradedPairs(10, 0.0, 0.0).interval()
    assert 0 < narrow.high < 0.005 and wide.high > 0.2


@pytest.mark.parametrize("n", [40, 400])
def test_coverage_of_the_graded_interval(n: int) -> None:
    rng = np.random.default_rng(n)
    hits = []
    for _ in range(1000):
        # Most items unchanged, a few fall by up to 1: skewed, as compressed models fail.
        d = np.where(rng.random(n) < 0.1, rng.beta(1, 2, n), 0.0)
        hits.append(0.1 / 3 in GradedPairs(n, float(d.mean()), float(d.std(ddof=1))).interval())
    assert 0.93 <= np.mean(hits) <= 1.0


def test_pair_up_tells_binary_from_graded() -> None:
    assert pair_up([1, 1, 0, 1], [1, 0, 1, 1]) == BinaryPairs(4, 1, 1)
    graded = pair_up([1, 0.5], [0, 0.5])
    assert isinstance(graded, GradedPairs)
    assert (graded.n, graded.mean, graded.sd) == (2, 0.5, pytest.approx(math.sqrt(0.5)))
    assert pair_up([0.5], [0.25]) == GradedPairs(1, 0.25, 0.0)


@pytest.mark.parametrize(
    ("first", "second"), [([], []), ([1], [1, 0]), ([1.2], [0]), ([math.nan], [0]), ([-0.1], [0])]
)
def test_pair_up_refuses_what_are_no_scores(first: list[float], second: list[float]) -> None:
    with pytest.raises(InputError):
        pair_up(first, second)


def test_impossible_counts_and_margins_are_refused() -> None:
    for bad in ((0, 0, 0), (5, 3, 3), (5, -1, 0)):
        with pytest.raises(InputError):
            BinaryPairs(*bad)
    for n, mean, sd in ((0, 0.0, 0.0), (3, math.nan, 0.0), (3, 0.0, -1.0), (3, 2.0, 0.0)):
        with pytest.raises(InputError):
            GradedPairs(n, mean, sd)
    with pytest.raises(InputError):
        BinaryPairs(5, 1, 1).z(1.0)
    with pytest.raises(InputError):
        tost(BinaryPairs(5, 1, 1), 0.0)


def test_tost_is_the_larger_of_two_one_sided_p() -> None:
    even = BinaryPairs(20_000, 200, 200)
    assert tost(even, 0.01) == pytest.approx(NormalDist().cdf(even.z(0.01)))
    assert tost(even, 0.01) < 1e-6 < 0.5 < tost(BinaryPairs(20_000, 900, 200), 0.01)
    # Equivalence at 5 % is the 90 % interval inside the margin.
    for b in range(0, 60, 5):
        pairs = BinaryPairs(1000, b, 10)
        inside = pairs.interval(0.9)
        assert (tost(pairs, 0.01) < 0.05) == (inside.low > -0.01 and inside.high < 0.01)


@given(st.lists(st.sampled_from([-0.5, -0.25, 0.0, 0.1, 0.3, 1.0]), max_size=9))
def test_sign_flip_counts_every_pattern(d: list[float]) -> None:
    own = [x for x in d if x]
    sums = [abs(math.fsum(s * x for s, x in zip(signs, own, strict=True)))
            for signs in itertools.product((-1, 1), repeat=len(own))]  # fmt: skip
    expected = np.mean([s >= abs(math.fsum(own)) - 1e-9 for s in sums])
    assert sign_flip(d) == pytest.approx(expected)


@pytest.mark.parametrize("n", [30, 90, 400])
def test_sign_flip_agrees_with_scipy(n: int) -> None:
    d = np.random.default_rng(n).normal(1.8 / math.sqrt(n), 1.0, n)
    reference = scipy_stats.permutation_test(
        (d,), lambda x, axis: np.mean(x, axis=axis), permutation_type="samples",
        vectorized=True, n_resamples=9999, batch=2000, rng=np.random.default_rng(1),
    ).pvalue  # fmt: skip
    found = sign_flip(d, seed=4)
    assert found == pytest.approx(reference, abs=4 * math.sqrt(found / 9999) + 0.001)
    assert found == sign_flip(d, seed=4) == sign_flip(-d, seed=4)


def test_sign_flip_of_one_heavy_difference_among_many_is_not_normal() -> None:
    d = np.full(600, 1e-6)
    d[::2] *= -1
    d[0] = 1.0
    assert sign_flip(d) > 0.4  # the normal approximation would say .32
    assert sign_flip([]) == sign_flip([0.0, 0.0]) == sign_flip([0.4]) == 1.0
    assert sign_flip([1e-200, 1e-200, 1e-200]) == 0.25
    with pytest.raises(InputError):
        sign_flip([math.nan])


@settings(max_examples=60)
@given(st.integers(1, 80), st.integers(1, 80), st.data())
def test_newcombe_agrees_with_statsmodels(n: int, m: int, data: st.DataObject) -> None:
    proportion = pytest.importorskip("statsmodels.stats.proportion")
    a, b = data.draw(st.integers(0, n)), data.draw(st.integers(0, m))
    low, high = proportion.confint_proportions_2indep(b, m, a, n, method="newcomb")
    found = newcombe(wilson(a, n), wilson(b, m))
    assert (found.low, found.high) == pytest.approx((low, high), abs=1e-9)
    assert found.estimate == pytest.approx(b / m - a / n)
    with pytest.raises(InputError, match="different confidence"):
        newcombe(wilson(a, n), wilson(b, m, 0.9))


@pytest.mark.parametrize(("k", "n"), [(0, 40), (7, 40), (40, 40)])
def test_a_design_effect_counts_fewer_trials(k: int, n: int) -> None:
    wide, few = wilson(2 * k, 2 * n, design_effect=2.0), wilson(k, n)
    assert (wide.low, wide.high) == pytest.approx((few.low, few.high), abs=1e-12)
    near = wilson(k, n, design_effect=1 + 1e-12)
    assert (near.low, near.high) == pytest.approx((few.low, few.high), abs=1e-9)
    with pytest.raises(InputError):
        wilson(k, n, design_effect=0.5)


def test_a_sum_that_no_drawn_pattern_reaches_has_a_p_below_one_in_the_number_drawn() -> None:
    assert sign_flip([0.9] * 60) < 1e-6
    some = sign_flip([0.9] * 40 + [-0.9] * 30)
    assert 0.1 < some < 0.5  # where patterns reach it they decide
