"""Quantile intervals, ratios over blocks and sample sizes, against numpy, scipy and simulation."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from foveate.core.errors import InputError
from foveate.measure.paired import BinaryPairs, GradedPairs
from foveate.measure.power import POWER, blocks_needed, pairs_needed, trials_needed
from foveate.measure.quantiles import block_quantiles, design_effect, quantile
from foveate.measure.ratio import Ratio

scipy_stats = pytest.importorskip("scipy.stats")
values = st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=200)


@given(values, st.floats(0.01, 0.99))
def test_the_estimate_is_numpys_and_lies_inside(x: list[float], q: float) -> None:
    found = quantile(x, q)
    assert found.estimate == pytest.approx(float(np.quantile(x, q)), abs=1e-6)
    assert found.low <= found.estimate <= found.high


@pytest.mark.parametrize(("n", "q"), [(11, 0.5), (100, 0.5), (200, 0.95), (600, 0.99), (30, 0.2)])
def test_the_ranks_lie_between_those_that_keep_and_those_that_miss_each_tail(
    n: int, q: float
) -> None:
    found = quantile(np.arange(1.0, n + 1), q)
    below = scipy_stats.binom(n, q).cdf
    low, high = math.floor(found.low), math.ceil(found.high)
    assert below(low - 1) <= 0.025 < below(low)
    assert 1 - below(high - 1) <= 0.025 < 1 - below(high - 2)


def test_a_sample_that_is_too_small_leaves_the_end_open() -> None:
    # All of 100 values may lie below the p99 with probability .37.
    found = quantile(np.arange(100.0), 0.99)
    assert found.high == math.inf and 95.0 <= found.low <= 97.0
    assert quantile([3.0], 0.5).low == -math.inf
    assert quantile(np.arange(368.0), 0.99).high < math.inf  # .99 ** 368 < .025
    assert quantile(np.arange(367.0), 0.99).high == math.inf


@pytest.mark.parametrize("q", [0.5, 0.95, 0.99])
def test_coverage_does_not_depend_on_the_distribution(q: float) -> None:
    rng = np.random.default_rng(8)
    x = np.sort(rng.lognormal(0, 1.2, (1500, 600)), axis=1)
    truth = float(scipy_stats.lognorm.ppf(q, 1.2))
    hits = [truth in quantile(row, q) for row in x]
    assert 0.935 <= np.mean(hits) <= 0.975


def waited(rng: np.random.Generator, blocks: int, requests: int, busy: float) -> np.ndarray:
    """Latencies (blocks, requests) of one queue that is empty when a block begins: Poisson arrivals
    at rate 1, skewed work of mean `busy` (Lindley's recursion).
    """
    gap = rng.exponential(1, (blocks, requests))
    work = rng.lognormal(-0.125, 0.5, (blocks, requests)) * busy
    taken, wait = np.empty_like(work), np.zeros(blocks)
    for i in range(requests):
        taken[:, i] = wait + work[:, i]
        wait = np.maximum(0, taken[:, i] - gap[:, i])
    return taken


@pytest.mark.parametrize(("q", "naive"), [(0.5, 0.70), (0.95, 0.60)])
def test_blocks_widen_the_interval_of_requests_that_waited_in_one_queue(
    q: float, naive: float
) -> None:
    rng = np.random.default_rng(9)
    truth = float(np.quantile(waited(rng, 20_000, 60, 0.7), q))
    runs = [waited(rng, 16, 60, 0.7) for _ in range(400)]
    blocked = np.mean([truth in block_quantiles(list(x), (q,))[0] for x in runs])
    independent = np.mean([truth in quantile(x, q) for x in runs])
    assert blocked >= 0.90 and independent < naive


def test_a_slow_drift_is_no_design_effect_but_a_jump_in_every_block_is() -> None:
    sizes = [100] * 20
    assert design_effect(range(20, 60, 2), sizes) == 1.0
    assert design_effect([20, 60] * 10, sizes) > 15
    assert design_effect([20, 60, 20], sizes[:3]) == 1.0
    assert design_effect([0] * 20, sizes) == 1.0
    rng = np.random.default_rng(2)
    drawn = [design_effect(rng.binomial(100, 0.3, 20), sizes) for _ in range(300)]
    assert 1.0 <= np.mean(drawn) < 1.3
    with pytest.raises(InputError):
        design_effect([3], [2])


def test_blocks_of_any_size_and_empty_ones() -> None:
    found = block_quantiles([[], [1.0, 5.0], [], [3.0]], (0.5,))[0]
    assert found.estimate == 3.0 and found.low == -math.inf


@pytest.mark.parametrize("bad", [[], [math.nan], [math.inf, 1.0]])
def test_no_value_is_no_quantile(bad: list[float]) -> None:
    with pytest.raises(InputError):
        quantile(bad, 0.5)
    with pytest.raises(InputError):
        quantile([1.0], 1.0)


def test_ratio_is_the_geometric_mean_with_t_on_logarithms() -> None:
    a, b = [2.0, 2.4, 1.8, 2.2], [1.0, 1.1, 1.0, 0.9]
    ratio = Ratio.of(a, b)
    assert ratio.estimate == pytest.approx(scipy_stats.gmean(np.array(a) / np.array(b)))
    test = scipy_stats.ttest_rel(np.log(a), np.log(b))
    assert ratio.p_equal() == pytest.approx(test.pvalue)
    ends = test.confidence_interval(0.99)
    found = ratio.interval(0.99)
    assert (found.low, found.high) == pytest.approx((math.exp(ends.low), math.exp(ends.high)))
    above = scipy_stats.ttest_1samp(np.log(np.array(a) / b), math.log(1.5), alternative="greater")
    assert ratio.p_above(1.5) == pytest.approx(above.pvalue)
    assert ratio.p_above(1.5) + ratio.p_below(1.5) == pytest.approx(1.0)


def test_one_block_and_equal_blocks() -> None:
    one = Ratio.of([2.0], [1.0])
    assert (one.interval().low, one.interval().high) == (0.0, math.inf)
    assert one.p_above(1.0) == one.p_below(1.0) == one.p_equal() == 1.0
    equal = Ratio.of([1.0, 2.0, 3.0], [1.0, 2.0, 3.0])
    assert equal.p_above(1.0) == equal.p_below(1.0) == 0.5
    assert equal.p_above(0.9) == 0.0 and equal.p_below(0.9) == 1.0


@pytest.mark.parametrize(
    ("a", "b"),
    [([], []), ([1.0], [0.0]), ([math.nan], [1.0]), ([1.0, 2.0], [1.0]), ([-1.0], [1.0])],
)
def test_ratios_of_what_was_not_measured_are_refused(a: list[float], b: list[float]) -> None:
    with pytest.raises(InputError):
        Ratio.of(a, b)


def test_the_planned_pairs_decide_with_the_planned_probability() -> None:
    rng = np.random.default_rng(5)
    p = (0.045, 0.015)
    n = pairs_needed(0.03 - 0.01, math.sqrt(0.06 - 0.03**2), 0.05)
    assert n is not None
    drawn = rng.multinomial(n, [*p, 1 - sum(p)], size=1500)
    power = np.mean([BinaryPairs(n, int(b), int(c)).p_above(0.01) <= 0.05 for b, c, _ in drawn])
    assert POWER - 0.04 <= power <= POWER + 0.06


def test_with_no_discordant_pair_the_plan_is_the_score_test_itself() -> None:
    n = pairs_needed(0.01, 0.0, 0.05)
    assert n is not None and BinaryPairs(n + 3, 0, 0).p_below(0.01) <= 0.05
    assert BinaryPairs(n - 5, 0, 0).p_below(0.01) > 0.05


def test_the_planned_blocks_decide_with_the_planned_probability() -> None:
    n = blocks_needed(0.05, 0.08, 0.01)
    assert n is not None
    x = np.random.default_rng(6).normal(0.05, 0.08, (3000, n))
    t = x.mean(1) / (x.std(1, ddof=1) / math.sqrt(n))
    power = float((t >= scipy_stats.t.isf(0.01, n - 1)).mean())
    assert POWER - 0.03 <= power <= POWER + 0.05


@pytest.mark.parametrize(("rate", "bound"), [(0.0, 0.01), (0.02, 0.05), (0.08, 0.05)])
def test_the_planned_trials_decide_with_the_planned_probability(rate: float, bound: float) -> None:
    n = trials_needed(rate, bound, 0.01)
    assert n is not None
    seen = np.random.default_rng(7).binomial(n, rate, 3000)
    binom = scipy_stats.binom
    p = binom.cdf(seen, n, bound) if rate < bound else binom.sf(seen - 1, n, bound)
    assert POWER - 0.07 <= float((p <= 0.01).mean()) <= 1.0
    if rate == 0:  # exact
        assert (1 - bound) ** n <= 0.01 < (1 - bound) ** (n - 1)


def test_what_lies_on_the_bound_needs_no_finite_number() -> None:
    assert pairs_needed(0.0, 0.2, 0.05) is None and pairs_needed(1e-6, 0.2, 0.05) is None
    assert blocks_needed(0.0, 0.1, 0.01) is None and blocks_needed(1e-5, 0.1, 0.01) is None
    assert trials_needed(0.01, 0.01, 0.01) is None
    with pytest.raises(InputError):
        pairs_needed(0.1, 0.1, 0.7)
    with pytest.raises(InputError):
        trials_needed(0.1, 0.0, 0.01)


@given(st.floats(0.001, 0.5), st.floats(0.01, 1.0))
def test_a_wider_gap_never_needs_more(gap: float, sd: float) -> None:
    found = [pairs_needed(g, sd, 0.05) or 10**9 for g in (gap, 1.5 * gap, 3 * gap)]
    assert all(a >= b for a, b in pairwise(found))


def test_planning_spread_counts_what_was_not_seen() -> None:
    assert BinaryPairs(100, 0, 0).planning_sd == pytest.approx(math.sqrt(2 / 102))
    graded, binary = GradedPairs(100, 0.0, 0.0), BinaryPairs(100, 0, 0)
    assert graded.planning_sd == pytest.approx(binary.planning_sd, rel=0.01)
