"""TopV against a plain loop over the transport problem, and what it refuses."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest

from foveate.core.errors import SettingError
from foveate.prefill.topv import TopV, evenly, places, shares
from tests.prefill.views import ToyView, toy_view

GRIDS = ((1, 4, 5), (2, 3, 2))


def pictures(seed: int, library: str = "numpy") -> ToyView:
    """A picture of 4 x 5 tokens and a video of two frames of 3 x 2."""
    view = toy_view(32, seed=seed, library=library)
    view.segment = np.full(len(view.modality), -1)
    view.segment[view.visual] = [0] * 20 + [1] * 12
    view.cell = np.full(len(view.modality), -1)
    view.cell[view.visual] = [*range(20), *range(12)]
    view.grids = GRIDS
    return view


def by_hand(
    before: np.ndarray, after: np.ndarray, grid: tuple[int, int, int], method: TopV
) -> list[float]:
    """Mass that each source gives, one number after another."""
    n, (t, h, w) = len(before), grid
    at = [(i // (h * w), i // w % h, i % w) for i in range(n)]
    middle = ((t - 1) / 2, (h - 1) / 2, (w - 1) / 2)
    diagonal = math.dist((0, 0, 0), (t - 1, h - 1, w - 1))
    kernel = [[0.0] * n for _ in range(n)]
    for i in range(n):
        for j in range(n):
            x, y = before[i].astype(float), after[j].astype(float)
            cost = 1 - (x @ y) / math.sqrt((x @ x) * (y @ y))
            cost += method.distance * math.dist(at[i], at[j]) / diagonal
            cost += method.centre * math.dist(at[i], middle) / (diagonal / 2)
            kernel[i][j] = math.exp(-cost / method.epsilon)
    u, v = [1.0 / n] * n, [0.0] * n
    for turn in range(method.rounds):
        if turn:
            u = [
                (1 / n / sum(kernel[i][j] * v[j] for j in range(n))) ** method.pull
                for i in range(n)
            ]
        v = [1 / n / sum(kernel[i][j] * u[i] for i in range(n)) for j in range(n)]
    return [u[i] * sum(kernel[i][j] * v[j] for j in range(n)) for i in range(n)]


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(
    "method", [TopV(), TopV(pull=0.0, rounds=1), TopV(keep=Fraction(1, 4), epsilon=0.5, centre=1.0)]
)
def test_the_best_shares_and_an_even_sample_stay(method: TopV, seed: int) -> None:
    before, after = pictures(seed), pictures(seed + 100)
    visual = before.visual
    score: list[float] = []
    for s, grid in enumerate(GRIDS):
        mine = visual[before.segment[visual] == s]
        found = by_hand(before.hidden[mine], after.hidden[mine], grid, method)
        assert math.isclose(sum(found), 1.0, rel_tol=1e-9)
        args = (before.hidden[mine], after.hidden[mine], places(np.arange(mine.size), grid), grid)
        got = shares(*args, distance=method.distance, centre=method.centre, epsilon=method.epsilon,
                     pull=method.pull, rounds=method.rounds)  # fmt: skip
        assert np.allclose(got, found, rtol=1e-7)
        score += [x * mine.size for x in found]
    k = math.floor(method.keep * 32 + Fraction(1, 2))
    extra = max(1, math.floor(Fraction(k, 8) + Fraction(1, 2)))
    best = sorted(range(32), key=lambda i: (-score[i], i))[: k - extra]
    free = [i for i in range(32) if i not in best]
    want = best + [free[(2 * j + 1) * len(free) // (2 * extra)] for j in range(extra)]
    for library in ("numpy", "torch"):
        nothing, state = method.decide(2, pictures(seed, library), None)
        assert nothing.keep is None
        route, _ = method.decide(3, pictures(seed + 100, library), state)
        assert route.keep is not None and route.keep.anchor.tolist() == sorted(want)


def test_balanced_sources_would_all_give_the_same() -> None:
    """Why `pull` is below 1: with both sides fixed a share says nothing."""
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((2, 20, 8))
    at = places(np.arange(20), (1, 4, 5))
    free, balanced = (
        shares(x, y, at, (1, 4, 5), distance=1, centre=1, epsilon=0.5, pull=p, rounds=300)
        for p in (0.5, 1.0)
    )
    assert np.allclose(balanced, 1 / 20, rtol=1e-6)
    assert np.ptp(free) > 0.02


def test_small_epsilon_neither_over_nor_underflows() -> None:
    rng = np.random.default_rng(1)
    x, y = rng.standard_normal((2, 20, 8))
    at = places(np.arange(20), (1, 4, 5))
    got = shares(x, y, at, (1, 4, 5), distance=50, centre=9, epsilon=1e-3, pull=0.5, rounds=5)
    assert np.isfinite(got).all() and math.isclose(got.sum(), 1.0, rel_tol=1e-6)


def test_blocks_do_not_change_the_result(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(2)
    x, y = rng.standard_normal((2, 20, 8))
    at = places(np.arange(20), (1, 4, 5))
    args = {"distance": 1.0, "centre": 0.1, "epsilon": 0.1, "pull": 0.5, "rounds": 4}
    whole = shares(x, y, at, (1, 4, 5), **args)  # type: ignore[arg-type]
    monkeypatch.setattr("foveate.prefill.topv.BLOCK_ELEMENTS", 60)
    assert np.allclose(shares(x, y, at, (1, 4, 5), **args), whole, rtol=1e-12)  # type: ignore[arg-type]
    monkeypatch.setattr("foveate.prefill.topv.HELD_ELEMENTS", 60)
    assert np.allclose(shares(x, y, at, (1, 4, 5), **args), whole, rtol=1e-12)  # type: ignore[arg-type]


def test_places_and_even_samples() -> None:
    at = places(np.array([-1, 0, 1, -1, 3, 7]), (2, 2, 2))
    assert at.tolist() == [[0, 0, 0], [0, 0, 0], [0, 0, 1], [0, 0, 1], [0, 1, 1], [1, 1, 1]]
    assert evenly(np.arange(10), 2).tolist() == [2, 7]
    assert evenly(np.arange(10), 10).tolist() == list(range(10))
    assert evenly(np.arange(3), 0).size == 0


def test_bad_settings() -> None:
    for settings, message in (
        ({"keep": 0}, "keep = 0 is out of range"),
        ({"even": 1}, "even = 1 is out of range"),
        ({"even": -1}, "even = -1 is out of range"),
        ({"pull": 1.5}, "pull = 1.5 is out of range"),
        ({"epsilon": 0.0}, "epsilon = 0.0 is out of range"),
        ({"rounds": 0}, "rounds = 0 is out of range"),
    ):
        with pytest.raises(SettingError, match=message):
            TopV(**settings)  # type: ignore[arg-type]
    with pytest.raises(SettingError, match="layers are 0 to 3"):
        TopV(layer=3).layers(4)
    tiny, _ = TopV(keep=Fraction(1, 1000)).decide(2, pictures(0), None)
    assert tiny.keep is None
    _, state = TopV().decide(2, pictures(0), None)
    route, _ = TopV(keep=Fraction(1, 1000)).decide(3, pictures(1), state)
    assert route.keep is not None and route.keep.k == 1
