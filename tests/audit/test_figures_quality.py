"""Scores by item, paired drops, loyalty, categories: small cases worked out by hand."""

from __future__ import annotations

from typing import Any

import pytest

from foveate.audit.figures import figures
from foveate.audit.figures_quality import drop_figure, p_of, pairs_of
from foveate.core.errors import InputError
from foveate.measure import holm, mcnemar_exact
from foveate.measure.paired import BinaryPairs, GradedPairs, sign_flip
from tests.audit.planted_rows import binary_scores, row

pytest.importorskip("scipy")


def quality(rows: list[Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    found = figures(rows, [], seed=0)
    return (
        {arm: figure["quality"] for arm, figure in found["arms"].items()},
        {arm: figure["quality"] for arm, figure in found["pairs"].items()},
    )


def pair(item: str, old: str, new: str, at: int, **more: Any) -> list[Any]:
    return [
        row("baseline", item, text=old, sequence=at, **more),
        row("small", item, text=new, sequence=at, **more),
    ]


def test_drop_of_binary_scores() -> None:
    rows = []
    for i in range(20):
        rows += pair(f"q{i}", "yes" if i < 15 else "no", "yes" if 3 <= i < 16 else "no", i)
    arms, drops = quality(rows)
    assert arms["baseline"]["all"]["score"] == 0.75 and arms["small"]["all"]["score"] == 0.65
    found = drops["small"]["all"]
    assert (found["n"], found["kind"]) == (20, "binary")
    assert (found["only_baseline"], found["only_candidate"], found["discordant"]) == (3, 1, 4)
    assert found["drop"]["estimate"] == pytest.approx(0.1)
    assert found["mcnemar_p"] == mcnemar_exact(3, 1)
    assert "permutation_p" not in found and found["equivalent_at_1pt"] is False


def test_graded_scores_use_the_permutation_test() -> None:
    rows = []
    for i in range(6):
        more = {"metric": "f1", "references": ("red green",)}
        rows += pair(f"q{i}", "red green", "red green" if i else "red", i, **more)
    _, drops = quality(rows)
    found = drops["small"]["all"]
    assert found["kind"] == "graded" and "mcnemar_p" not in found
    assert found["drop"]["estimate"] == pytest.approx((1 - 2 / 3) / 6)
    assert found["permutation_p"] == sign_flip([1 / 3]) == 1.0
    assert found["discordant"] == 1


def test_a_failed_request_scores_zero_and_says_so() -> None:
    rows = [*pair("a", "yes", "yes", 0), row(item="b", sequence=1)]
    rows.append(row("small", "b", sequence=1, error="timeout"))
    arms, drops = quality(rows)
    assert arms["small"]["all"] | {"low": 0, "high": 0} == {
        "n": 2, "score": 0.5, "low": 0, "high": 0, "metrics": ["exact"], "failed": 1, "unscored": 0,
    }  # fmt: skip
    assert drops["small"]["all"]["drop"]["estimate"] == 0.5
    assert drops["small"]["all"]["loyalty"] == 0.5


def test_the_item_is_the_unit_however_often_it_was_asked() -> None:
    rows = [row(item="a", sequence=i, text="yes") for i in range(8)]
    rows += [row("small", "a", sequence=i, text="yes" if i < 2 else "no") for i in range(8)]
    rows += pair("b", "yes", "yes", 100)
    arms, drops = quality(rows)
    assert arms["small"]["all"]["n"] == 2 and arms["small"]["all"]["score"] == pytest.approx(0.625)
    assert drops["small"]["all"]["n"] == 2
    assert drops["small"]["all"]["drop"]["estimate"] == pytest.approx(0.375)


def test_repeats_that_agree_stay_binary() -> None:
    rows = [r for at in range(3) for r in pair("a", "yes", "no", at)]
    found = quality(rows)[1]["small"]["all"]
    assert (found["kind"], found["n"], found["only_baseline"]) == ("binary", 1, 1)


def test_items_of_one_arm_only_are_left_out_and_counted() -> None:
    rows = [*pair("a", "yes", "yes", 0), row(item="b", sequence=1), row(item="c", sequence=2)]
    rows.append(row("small", "d", sequence=3, text="no"))
    found = quality(rows)[1]["small"]["all"]
    assert (found["n"], found["unpaired"]) == (1, 3)


def test_categories_stand_beside_all() -> None:
    rows = []
    for i in range(10):
        rows += pair(f"q{i}", "yes", "yes" if i % 2 else "no", i, category=("chart", "all")[i % 2])
    arms, drops = quality(rows)
    assert list(arms["small"]) == ["all", "category all", "chart"]
    assert drops["small"]["chart"]["drop"]["estimate"] == 1.0
    assert drops["small"]["category all"]["drop"]["estimate"] == 0.0
    assert drops["small"]["all"]["drop"]["estimate"] == 0.5


def test_holm_goes_over_all_arms_and_categories() -> None:
    rows = []
    for i in range(40):
        category = ("chart", "photo")[i % 2]
        rows += pair(f"q{i}", "yes", "no" if i % 4 == 0 else "yes", i, category=category)
        rows.append(row("tiny", f"q{i}", sequence=i, text="no", category=category))
    drops = quality(rows)[1]
    flat = [drops[arm][c] for arm in drops for c in drops[arm]]
    assert len(flat) == 6
    assert [f["p_holm"] for f in flat] == holm([f["mcnemar_p"] for f in flat])


def test_an_item_with_two_categories_is_refused() -> None:
    with pytest.raises(InputError, match="'a' has two categories"):
        quality([row(item="a", category="x"), row("small", "a", category="y")][:1]
                + [row(item="a", category="y", sequence=1)])  # fmt: skip


def test_a_judges_score_counts_and_a_missing_one_is_left_out() -> None:
    more: dict[str, Any] = {"metric": "judge", "references": ()}
    rows = [
        row(item="a", judged=0.75, **more), row("small", "a", judged=0.25, **more),
        row(item="b", sequence=1, judged=1.0, **more), row("small", "b", sequence=1, **more),
    ]  # fmt: skip
    arms, drops = quality(rows)
    assert arms["small"]["all"]["n"] == 1 and arms["small"]["all"]["unscored"] == 1
    assert drops["small"]["all"]["n"] == 1 and drops["small"]["all"]["unpaired"] == 1
    assert drops["small"]["all"]["drop"]["estimate"] == pytest.approx(0.5)


def test_loyalty_is_agreement_with_the_baseline() -> None:
    more: dict[str, Any] = {"metric": "loyalty", "references": ()}
    rows = [*pair("a", "Two", "2", 0, **more), *pair("b", "cat", "dog", 1, **more)]
    arms, drops = quality(rows)
    assert arms["baseline"]["all"]["score"] == 1.0 and arms["small"]["all"]["score"] == 0.5
    assert drops["small"]["all"]["drop"]["estimate"] == 0.5
    assert drops["small"]["all"]["loyalty"] == 0.5


def test_a_baseline_that_does_not_repeat_itself_is_not_held_against_the_candidate() -> None:
    more: dict[str, Any] = {"metric": "loyalty", "references": ()}
    texts = ["cat", "cat", "dog", "dog"]
    rows = [row(item="a", sequence=i, text=t, **more) for i, t in enumerate(texts)]
    rows += [row("small", "a", sequence=i, text=t, **more) for i, t in enumerate(texts)]
    arms, drops = quality(rows)
    # Of the 6 pairs of the baseline's answers 2 agree; of the 16 across, 8.
    assert arms["baseline"]["all"]["score"] == pytest.approx(1 / 3)
    assert arms["small"]["all"]["score"] == pytest.approx(1 / 2)
    assert drops["small"]["all"]["drop"]["estimate"] == pytest.approx(-1 / 6)


def test_failures_agree_with_nothing() -> None:
    more: dict[str, Any] = {"metric": "loyalty", "references": ()}
    rows = [row(item="a", error="http", **more), row("small", "a", error="http", **more)]
    arms, drops = quality(rows)
    assert arms["baseline"]["all"]["score"] == arms["small"]["all"]["score"] == 0.0
    assert drops["small"]["all"]["loyalty"] == 0.0


def test_equivalence_needs_enough_pairs() -> None:
    few = drop_figure(*binary_scores(200, 2, 2), seed=0)
    many = drop_figure(*binary_scores(4000, 40, 40), seed=0)
    assert not few["equivalent_at_1pt"] and many["equivalent_at_1pt"]
    assert many["tost_p"] <= 0.05 < few["tost_p"]


def test_the_pairs_behind_a_figure_come_back() -> None:
    binary = drop_figure(*binary_scores(50, 7, 3), seed=0)
    assert pairs_of(binary) == BinaryPairs(50, 7, 3) and p_of(binary) == mcnemar_exact(7, 3)
    graded = drop_figure([1.0, 0.5, 0.25], [0.5, 0.5, 0.0], seed=0)
    again = pairs_of(graded)
    assert isinstance(again, GradedPairs)
    assert (again.n, again.mean) == (3, pytest.approx(0.25))
    assert again.interval().high == graded["drop"]["high"]
    assert p_of(graded) == graded["permutation_p"]


def test_an_item_whose_every_request_failed_is_wrong_under_a_judge_too() -> None:
    more: dict[str, Any] = {"metric": "judge", "references": ()}
    rows = [row(item="a", judged=1.0, **more), row("small", "a", error="http", **more),
            row(item="b", sequence=1, judged=1.0, **more),
            row("small", "b", sequence=1, judged=1.0, **more)]  # fmt: skip
    arms, drops = quality(rows)
    assert arms["small"]["all"]["n"] == 2 and arms["small"]["all"]["score"] == 0.5
    assert drops["small"]["all"]["drop"]["estimate"] == pytest.approx(0.5)
