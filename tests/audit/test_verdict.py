"""Verdicts from figures: accepted, refused, undecided, what is needed, and Holm's direction."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest

from foveate.audit.bounds import Bounds, Speedup
from foveate.audit.verdict import EXIT_CODES, Verdict, judge_arms, worst
from foveate.core.errors import InputError
from foveate.measure.paired import BinaryPairs
from tests.audit.planted_rows import binary_scores, figures_of, speed_figure

pytest.importorskip("scipy")
POINT = Bounds(max_quality_drop=0.01)


def judged(n: int, lost: int, won: int, bounds: Bounds = POINT) -> Verdict:
    return judge_arms(figures_of({"small": {"all": binary_scores(n, lost, won)}}), bounds)["small"]


def test_a_clear_drop_is_refused_and_the_reason_says_how_much() -> None:
    verdict = judged(2000, 90, 30)
    assert verdict.decision == "refused" and verdict.needed is None
    (reason,) = verdict.reasons
    assert reason.startswith(
        "quality: 3.0 points below the baseline (95 % interval: drop of 2.0 to 4.1"
    )
    assert "90 right only on the baseline, 30 only here" in reason
    assert "breaks the bound of 1.0 points" in reason and "max_quality_drop" in reason


def test_no_drop_with_enough_pairs_is_accepted() -> None:
    verdict = judged(4000, 20, 20)
    assert verdict.decision == "accepted" and verdict.needed is None
    assert verdict.reasons[0].endswith("the bound of 1.0 points holds.")


def test_too_few_pairs_are_undecided_and_the_number_needed_would_decide() -> None:
    verdict = judged(300, 3, 3)
    assert verdict.decision == "undecided"
    assert verdict.needed is not None
    n = verdict.needed["pairs"]
    assert n is not None and n > 300
    assert f"about {n:,} items would decide it" in verdict.reasons[0]
    again = judged(n, round(3 * n / 300), round(3 * n / 300))
    assert again.decision == "accepted"


def test_a_drop_beyond_the_bound_that_may_be_chance_is_undecided() -> None:
    verdict = judged(300, 9, 2)  # 2.3 points
    assert verdict.decision == "undecided" and verdict.needed is not None
    n = verdict.needed["pairs"]
    assert n is not None and "may still be chance" in verdict.reasons[0]
    assert judged(n, round(9 * n / 300), round(2 * n / 300)).decision == "refused"


def test_a_drop_on_the_bound_cannot_be_decided() -> None:
    verdict = judged(1000, 30, 20)
    assert verdict.decision == "undecided" and verdict.needed == {"pairs": None}
    assert (
        "cannot be decided: the observed drop lies on the bound of 1.0 points" in verdict.reasons[0]
    )


def test_a_few_pairs_never_refuse_what_a_coin_may_do() -> None:
    # The score test alone would refuse 4 to 0 at 95 %; the exact test says .0625.
    figures = figures_of({"small": {"all": binary_scores(50, 4, 0)}})
    assert BinaryPairs(50, 4, 0).p_above(0.01) < 0.05
    assert judge_arms(figures, POINT)["small"].decision == "undecided"
    assert judged(50, 8, 0).decision == "refused"  # 1 in 256


def test_an_improvement_beyond_doubt_is_accepted() -> None:
    verdict = judged(500, 0, 50)
    assert verdict.decision == "accepted" and "10.0 points above the baseline" in verdict.reasons[0]


def test_a_category_refuses_by_the_general_bound_but_need_not_be_shown_to_hold() -> None:
    groups = {"all": binary_scores(4000, 50, 20), "chart": binary_scores(200, 30, 0),
              "photo": binary_scores(30, 0, 0)}  # fmt: skip
    verdict = judge_arms(figures_of({"small": groups}), POINT)["small"]
    assert verdict.decision == "refused"
    assert [r.split(":")[0] for r in verdict.reasons] == ["quality of chart", "quality"]
    outcomes = {t.subject: (t.outcome, t.required) for t in verdict.tests}
    assert outcomes == {"all": ("open", True), "chart": ("broken", False), "photo": ("open", False)}
    del groups["chart"]
    groups["all"] = binary_scores(4000, 20, 20)
    assert judge_arms(figures_of({"small": groups}), POINT)["small"].decision == "accepted"


def test_a_category_with_its_own_bound_must_be_shown_to_hold() -> None:
    bounds = Bounds(max_quality_drop=0.01, max_quality_drop_by_category={"chart": 0.05})
    groups = {"all": binary_scores(4000, 20, 20), "chart": binary_scores(50, 3, 3)}
    verdict = judge_arms(figures_of({"small": groups}), bounds)["small"]
    assert verdict.decision == "undecided" and verdict.needed is not None
    chart = next(t for t in verdict.tests if t.subject == "chart")
    assert chart.needed is not None
    # The workload is 80 times as large as its charts.
    assert verdict.needed["pairs"] == 80 * chart.needed
    groups["chart"] = binary_scores(1000, 20, 20)
    assert judge_arms(figures_of({"small": groups}), bounds)["small"].decision == "accepted"


def test_a_looser_bound_of_a_category_replaces_the_general_one() -> None:
    groups = {"all": binary_scores(4000, 20, 20), "chart": binary_scores(1000, 35, 5)}
    loose = Bounds(max_quality_drop=0.01, max_quality_drop_by_category={"chart": 0.05})
    assert judge_arms(figures_of({"small": groups}), POINT)["small"].decision == "refused"
    assert judge_arms(figures_of({"small": groups}), loose)["small"].decision == "accepted"


def test_a_bounded_category_that_was_not_asked_leaves_it_open() -> None:
    bounds = Bounds(max_quality_drop_by_category={"chart": 0.05})
    verdict = judge_arms(figures_of({"small": {"all": binary_scores(10, 0, 0)}}), bounds)["small"]
    assert verdict.decision == "undecided" and verdict.needed == {"pairs": None}
    assert "quality of chart: not measured" in verdict.reasons[0]


def test_one_item_is_undecided_with_a_number() -> None:
    for lost, won in ((0, 0), (1, 0), (0, 1)):
        verdict = judged(1, lost, won)
        assert verdict.decision == "undecided" and verdict.needed is not None
        assert (verdict.needed["pairs"] or 0) > 1


def speed_verdict(n: int, ratio: float, sd: float, least: float, **more: Any) -> Verdict:
    figure = {"closed:4": {"e2e": speed_figure(n, math.log(ratio), sd)}}
    figures = figures_of({"small": {}}, {"small": figure})
    bounds = Bounds(min_speedup=(Speedup("e2e", "closed:4", least),), **more)
    return judge_arms(figures, bounds)["small"]


@pytest.mark.parametrize(
    ("n", "ratio", "sd", "least", "decision"),
    [
        (12, 1.5, 0.1, 1.2, "accepted"),
        (12, 1.0, 0.1, 1.2, "refused"),
        (12, 1.25, 0.1, 1.2, "undecided"),
        (12, 1.0, 0.1, 1.0, "undecided"),
        (12, 0.7, 0.1, 1.0, "refused"),
        (1, 3.0, 0.0, 1.2, "undecided"),
        (2, 1.0, 0.0, 1.0, "undecided"),
    ],
)
def test_speed(n: int, ratio: float, sd: float, least: float, decision: str) -> None:
    assert speed_verdict(n, ratio, sd, least).decision == decision


def test_more_blocks_decide_speed() -> None:
    verdict = speed_verdict(8, 1.26, 0.1, 1.2)
    assert verdict.needed is not None
    n = verdict.needed["blocks"]
    assert n is not None and speed_verdict(n, 1.26, 0.1, 1.2).decision == "accepted"
    assert "1.260 times the baseline's speed" in verdict.reasons[0]
    assert f"about {n} blocks would decide it" in verdict.reasons[0]
    one = speed_verdict(1, 1.5, 0.0, 1.2)
    assert one.needed == {"blocks": 6} and "run at least 6" in one.reasons[0]
    assert speed_verdict(8, 1.2, 0.1, 1.2).needed == {"blocks": None}


def test_a_metric_that_was_not_measured_is_undecided_and_says_why() -> None:
    bounds = Bounds(min_speedup=(Speedup("tpot", None, 1.0),))
    figures = figures_of({"small": {}}, {"small": {"closed:4": {}}})
    verdict = judge_arms(figures, bounds)["small"]
    assert verdict.decision == "undecided" and verdict.needed == {"blocks": None}
    assert "tpot at closed:4: not measured" in verdict.reasons[0]
    assert "counts them" in verdict.reasons[0]


@pytest.mark.parametrize(
    ("failed", "n", "bound", "decision"),
    [(0, 1000, 0.01, "accepted"), (0, 100, 0.01, "undecided"), (40, 1000, 0.01, "refused"),
     (10, 1000, 0.01, "undecided"), (0, 5, 0.0, "accepted"), (1, 1000, 0.0, "refused")],
)  # fmt: skip
def test_errors(failed: int, n: int, bound: float, decision: str) -> None:
    figures = figures_of({"small": {}}, errors={"small": {"open:5": (failed, n)}})
    verdict = judge_arms(figures, Bounds(max_error_rate=bound))["small"]
    assert verdict.decision == decision
    if (failed, n) == (0, 100):
        assert verdict.needed == {"requests": 459}  # ln .01 / ln .99
    if failed == 10:
        assert verdict.needed == {"requests": None} and "lies on the bound" in verdict.reasons[0]


def test_failures_in_bursts_are_less_evidence() -> None:
    bounds, counts = Bounds(max_error_rate=0.01), {"small": {"open:5": (20, 1000)}}
    single = judge_arms(figures_of({"small": {}}, errors=counts), bounds)["small"]
    bursts = judge_arms(figures_of({"small": {}}, errors=counts, effect=8.0), bounds)["small"]
    assert (single.decision, bursts.decision) == ("refused", "undecided")
    # scipy's binomial where the counts are whole.
    from scipy.stats import binom

    assert single.tests[0].p_refuse == pytest.approx(binom.sf(19, 1000, 0.01))
    assert single.tests[0].p_accept == pytest.approx(binom.cdf(20, 1000, 0.01))
    assert (bursts.needed or {})["requests"] == pytest.approx(8 * 1221, rel=0.5)


def test_a_load_that_was_not_run_is_an_error() -> None:
    figures = figures_of({"small": {}}, {"small": {"closed:4": {}}})
    with pytest.raises(InputError, match="closed:8: that load is not run"):
        judge_arms(figures, Bounds(min_speedup=(Speedup("e2e", "closed:8", 1.0),)))
    with pytest.raises(InputError, match="no candidate"):
        judge_arms(figures_of({}), POINT)


def test_refusals_are_adjusted_over_arms_and_categories() -> None:
    # 2.8 % one-sided beyond the bound: enough alone, not one among eight.
    scores = binary_scores(2000, 62, 24)
    p = BinaryPairs(2000, 62, 24).p_above(0.01)
    assert 0.02 < p < 0.05
    alone = judge_arms(figures_of({"a": {"all": scores}}), POINT)
    assert alone["a"].decision == "refused"
    clean = {f"b{i}": {"all": binary_scores(2000, 20, 20)} for i in range(7)}
    among = judge_arms(figures_of({"a": {"all": scores}, **clean}), POINT)
    assert among["a"].decision == "undecided"
    assert among["a"].tests[0].p_refuse == pytest.approx(8 * p)


def test_acceptance_is_adjusted_over_arms_but_not_over_what_must_hold_at_once() -> None:
    scores = binary_scores(1200, 14, 12)
    p = BinaryPairs(1200, 14, 12).p_below(0.01)
    assert 0.02 < p < 0.05
    bounds = Bounds(max_quality_drop=0.01, max_quality_drop_by_category={"x": 0.01, "y": 0.01})
    groups = {"all": scores, "x": scores, "y": scores}
    assert judge_arms(figures_of({"a": groups}), bounds)["a"].decision == "accepted"
    pair = judge_arms(figures_of({"a": {"all": scores}, "b": {"all": scores}}), POINT)
    assert [v.decision for v in pair.values()] == ["undecided", "undecided"]
    # Holm steps down: after a clear acceptance the other is on its own.
    clear = {"a": {"all": scores}, "b": {"all": binary_scores(9000, 20, 20)}}
    stepped = judge_arms(figures_of(clear), POINT)
    assert [v.decision for v in stepped.values()] == ["accepted", "accepted"]


def test_refused_beats_open_bounds_and_names_both() -> None:
    figures = figures_of(
        {"small": {"all": binary_scores(2000, 200, 20)}},
        {"small": {"closed:4": {"e2e": speed_figure(6, 0.2, 0.3)}}},
    )
    bounds = Bounds(max_quality_drop=0.01, min_speedup=(Speedup("e2e", None, 1.2),))
    verdict = judge_arms(figures, bounds)["small"]
    assert verdict.decision == "refused" and verdict.needed is None
    assert [r.split(":")[0] for r in verdict.reasons] == ["quality", "e2e at closed"]


def test_graded_scores_are_judged_too() -> None:
    n = 1500
    old = [1.0, 0.75, 0.5] * (n // 3)
    worse = [max(0.0, s - 0.25 * (i % 4 == 0)) for i, s in enumerate(old)]
    even = [
        s + 0.25 * ((i % 20 == 1) - (i % 20 == 11)) if s == 0.5 else s for i, s in enumerate(old)
    ]
    refused = judge_arms(figures_of({"a": {"all": (old, worse)}}), POINT)["a"]
    assert refused.decision == "refused" and "with another score" in refused.reasons[0]
    assert judge_arms(figures_of({"a": {"all": (old, even)}}), POINT)["a"].decision == "accepted"


def test_a_verdict_is_json_and_depends_on_figures_alone() -> None:
    figures = figures_of(
        {"small": {"all": binary_scores(300, 3, 3)}},
        {"small": {"closed:4": {"e2e": speed_figure(6, 0.2, 0.3)}}},
        {"small": {"closed:4": (3, 300)}},
    )
    bounds = Bounds(
        max_quality_drop=0.01, max_error_rate=0.02, min_speedup=(Speedup("e2e", None, 1.0),)
    )
    verdict = judge_arms(figures, bounds)["small"]
    assert set(verdict.needed or {}) == {"pairs", "blocks", "requests"}
    text = json.dumps(verdict.as_dict(), allow_nan=False)
    read = json.loads(json.dumps(figures, allow_nan=False))
    assert json.dumps(judge_arms(read, bounds)["small"].as_dict(), allow_nan=False) == text


def test_the_decision_over_several_arms() -> None:
    assert worst(["accepted", "undecided", "refused"]) == "refused"
    assert worst(["accepted", "undecided"]) == "undecided"
    assert worst(["refused", "accepted"], any_=True) == "accepted"
    assert [EXIT_CODES[d] for d in ("accepted", "refused", "undecided")] == [0, 3, 4]
    with pytest.raises(InputError):
        worst([])
