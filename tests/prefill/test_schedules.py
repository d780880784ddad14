"""Schedules, P-Sigmoid and G-Search: against plain loops, and what they refuse."""

from __future__ import annotations

import itertools
import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from foveate.core import Plan
from foveate.core.errors import InputError, SettingError
from foveate.core.schedule import Schedule
from foveate.prefill import g_search
from foveate.prefill.p_sigmoid import PSigmoid, p_sigmoid, rate
from foveate.prefill.schedule import ScheduleDrop
from tests.prefill.views import toy_view


def by_hand(view: object, k: int) -> list[int]:
    """The k visual tokens that the last token looks at most, one head and token after another."""
    q, keys = view.q["previous"], view.k["previous"]  # type: ignore[attr-defined]
    heads, tokens, dim = q.shape
    scores = [0.0] * tokens
    for h in range(heads):
        key = keys[h // (heads // keys.shape[0])]
        raw = [math.exp(float(q[h, -1] @ key[j]) / math.sqrt(dim)) for j in range(tokens)]
        scores = [s + x / sum(raw) / heads for s, x in zip(scores, raw, strict=True)]
    visual = view.visual.tolist()  # type: ignore[attr-defined]
    ranked = sorted(range(len(visual)), key=lambda i: (-scores[visual[i]], i))
    return sorted(ranked[:k])


@pytest.mark.parametrize("plan", ["schedule:at=2 5,ratios=1/2 1/4", "p-sigmoid:mean_keep=1/2,k=1"])
@pytest.mark.parametrize("seed", range(3))
def test_the_best_by_the_last_tokens_attention_stay(plan: str, seed: int) -> None:
    method = Plan.parse(plan).stage("prefill")
    view = toy_view(13, seed=seed, layers=8)
    assert method is not None and method.layers(8)
    for layer in method.layers(8):
        route, _ = method.decide(layer, view, None)
        share = method.schedule(8).keep[layer]
        k = min(13, max(1, math.floor(share * 13 + Fraction(1, 2))))
        assert route.keep is not None
        assert route.keep.anchor.tolist() == by_hand(view, k)


def test_a_staircase_and_a_list_of_layers_are_the_same_schedule() -> None:
    stairs = ScheduleDrop(at="2 4", ratios="1/2 1/4")
    ratios = [Fraction(1)] * 2 + [Fraction(1, 2)] * 2 + [Fraction(1, 4)] * 2
    assert stairs.schedule(6) == Schedule(tuple(ratios))
    again = ScheduleDrop.of(stairs.schedule(6))
    assert again.schedule(6) == stairs.schedule(6)
    assert again.layers(6) == stairs.layers(6) == (2, 4)
    text = str(Plan((again,)))
    assert Plan.parse(text).stage("prefill") == again
    assert ScheduleDrop(at="1/4 1/2", ratios="1/2 1/2").layers(16) == (4,), (
        "nothing at an equal step"
    )


@given(
    st.integers(2, 40),
    st.floats(1e-3, 100),
    st.fractions(Fraction(1, 1000), 1, max_denominator=1000),
    st.data(),
)
def test_the_mean_of_a_sigmoid_is_the_budget(
    count: int, k: float, share: Fraction, data: st.DataObject
) -> None:
    at = tuple(sorted(data.draw(st.sets(st.integers(1, count - 1), min_size=1))))
    budget = Fraction(at[0], count) + (1 - Fraction(at[0], count)) * share
    keep = p_sigmoid(budget, k, at, count).keep
    assert sum(keep, Fraction(0)) == budget * count
    assert all(1 >= a >= b > 0 for a, b in itertools.pairwise(keep))
    changes = {i for i in range(1, count) if keep[i] != keep[i - 1]}
    assert changes <= set(at)


@pytest.mark.parametrize("k", [0.05, 0.4, 2.0])
def test_ratios_lie_on_one_sigmoid(k: float) -> None:
    """From any two ratios the same alpha follows, and r(alpha) is one half."""
    keep = [float(r) for r in PSigmoid(mean_keep=Fraction(1, 2), k=k).schedule(24).keep]
    alphas = [i - math.log(1 / r - 1) / k for i, r in enumerate(keep) if 1e-4 < r < 1 - 1e-4]
    assert len(alphas) >= 5 and np.ptp(alphas) < 1e-3
    assert rate(3, k, 3.0) == 0.5
    assert math.isclose(sum(rate(i, k, alphas[0]) for i in range(1, 24)), 24 / 2 - 1, rel_tol=1e-4)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"mean_keep": 0}, "mean_keep = 0 is out of range"),
        ({"mean_keep": "5/4"}, "mean_keep = 5/4 is out of range"),
        ({"k": 0.0}, "k = 0.0 is out of range"),
        ({"k": -1.0}, "k = -1.0 is out of range"),
        ({"at": "1/4 9"}, "mixes layers and shares"),
        ({"at": "9 8"}, "at must ascend"),
    ],
)
def test_bad_sigmoids(settings: dict[str, object], message: str) -> None:
    with pytest.raises(SettingError, match=message):
        PSigmoid(**settings)  # type: ignore[arg-type]


def test_sigmoids_that_the_model_has_no_room_for() -> None:
    with pytest.raises(SettingError, match="layers are 0 to 7"):
        PSigmoid(at="2 9").layers(8)
    with pytest.raises(SettingError, match="a mean of 1/4 leaves no token behind layer 4"):
        PSigmoid(mean_keep=Fraction(1, 4), at="4 6").layers(8)
    assert PSigmoid(mean_keep=Fraction(1)).layers(8) == ()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"at": None, "ratios": "1 1/4 1/2"}, "ratios grows from 1/4 to 1/2"),
        ({"at": "1 2", "ratios": "1/2"}, "ratios has 1 numbers for 2 layers"),
        ({"at": "1", "ratios": "0"}, "ratios = 0 is out of range"),
        ({"at": "1", "ratios": "x"}, "is no list of numbers"),
    ],
)
def test_bad_schedules(settings: dict[str, str | None], message: str) -> None:
    with pytest.raises(SettingError, match=message):
        ScheduleDrop(**settings)  # type: ignore[arg-type]


def test_schedules_that_do_not_fit_the_model() -> None:
    with pytest.raises(SettingError, match="ratios has 3 numbers, but the model has 4 layers"):
        ScheduleDrop(at=None, ratios="1 1/2 1/2").layers(4)
    with pytest.raises(SettingError, match="layer 0 keeps 1/2"):
        ScheduleDrop(at=None, ratios="1/2 1/2 1/2").layers(3)
    with pytest.raises(SettingError, match="layers are 0 to 3"):
        ScheduleDrop(at="5", ratios="1/2").layers(4)


# --- G-Search ---------------------------------------------------------------------------------------
NEEDS = (0.0, 0.9, 0.6, 0.6, 0.3, 0.1)


def smooth(schedule: Schedule) -> float:
    """Rises with each ratio up to what that layer needs; deeper layers need less."""
    return -sum(max(0.0, n - float(r)) for r, n in zip(schedule.keep, NEEDS, strict=True))


def cheapest(tolerance: float, ratios: list[Fraction]) -> tuple[Fraction, ...]:
    """By trying all schedules: the lexicographically smallest that is good enough."""
    nested = [
        (Fraction(1), *rest)
        for rest in itertools.product(ratios, repeat=5)
        if all(a >= b for a, b in itertools.pairwise(rest))
    ]
    good = [keep for keep in nested if smooth(Schedule(keep)) >= -tolerance]
    return min(good)


@pytest.mark.parametrize("tolerance", [0.0, 0.1, 0.45])
def test_the_search_finds_the_known_optimum(tolerance: float) -> None:
    ratios = [Fraction(i, 5) for i in range(1, 6)]
    found = g_search(smooth, 6, tolerance=tolerance, ratios=ratios)
    assert found.schedule.keep == cheapest(tolerance, ratios)
    assert found.score == smooth(found.schedule) >= found.dense - tolerance
    assert found.calls <= 1 + 5 * 3
    assert found == g_search(smooth, 6, tolerance=tolerance, ratios=ratios)


@given(st.integers(0, 10_000))
def test_even_a_noisy_score_gives_a_schedule_that_was_good_enough(seed: int) -> None:
    seen: dict[Schedule, float] = {}

    def noisy(schedule: Schedule) -> float:
        assert schedule not in seen, "scored twice"
        rng = np.random.default_rng([seed, len(seen)])
        seen[schedule] = float(rng.random()) if seen else 0.9
        return seen[schedule]

    found = g_search(noisy, 5, tolerance=0.3, at=(1, 3))
    assert seen[found.schedule] == found.score >= 0.6
    assert len(seen) == found.calls
    keep = found.schedule.keep
    assert keep[0] == 1 and keep[1] == keep[2] >= keep[3] == keep[4]


def test_a_score_exactly_the_tolerance_below_is_good_enough() -> None:
    """0.8 - 0.1 is a little above 0.7 in doubles; one of ten questions lost is still one."""
    for dense in range(1, 21):
        for lost in range(1, dense + 1):

            def score(s: Schedule, dense: int = dense, lost: int = lost) -> float:
                return dense / 20 if s.mean_keep == 1 else (dense - lost) / 20

            assert g_search(score, 3, tolerance=lost / 20).schedule.keep[1] == Fraction(1, 8)
            short = g_search(score, 3, tolerance=lost / 20 - 1e-6)
            assert short.schedule.mean_keep == 1


def test_bad_searches() -> None:
    for wrong in ({"at": (0, 2)}, {"at": (2, 1)}, {"at": (6,)}, {"at": ()}):
        with pytest.raises(SettingError, match="must ascend within 1 to 5"):
            g_search(smooth, 6, tolerance=0.1, **wrong)  # type: ignore[arg-type]
    with pytest.raises(SettingError, match="tolerance"):
        g_search(smooth, 6, tolerance=-1)
    with pytest.raises(SettingError, match="ratios must lie above 0"):
        g_search(smooth, 6, tolerance=0, ratios=[Fraction(0)])
    with pytest.raises(SettingError, match="layers = 1"):
        g_search(smooth, 1, tolerance=0)
    with pytest.raises(InputError, match="is no score"):
        g_search(lambda s: float("nan"), 6, tolerance=0)
