"""Every pixel and tower method on synthetic pictures and tokens, without a model: edge cases,
counts, the same answer twice and on numpy and torch.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction
from typing import Any

import numpy as np
import pytest

from foveate.core import Attention, BlockView, Box, PixelPlan, Pixels, PlanRng, Reduction, methods
from foveate.core.errors import NonFiniteError, SettingError, UnsupportedError
from foveate.encode.pixels.adaptive import loss
from foveate.encode.pixels.frames import change, middles, spread
from foveate.encode.pixels.tiles import entropy, gradient
from foveate.encode.tower.tome import partition, present

torch = pytest.importorskip("torch")

PIXELS: dict[str, Any] = dict(methods("pixels"))
TOWER: dict[str, Any] = dict(methods("tower"))
RNG = PlanRng(7)
WHOLE = {
    "downscale": {"keep": "1"}, "tiles": {"keep": "1"}, "resolution": {"error": 0, "floor": "1"},
    "frames": {"keep": "1"}, "keyframes": {"keep": "1"},
    "tome": {"keep": "1"}, "early-cut": {"keep": "1"},
}  # fmt: skip
HALF = {
    "downscale": {"keep": "1/2"}, "tiles": {"keep": "1/2"}, "resolution": {"error": 255},
    "frames": {"keep": "1/2"}, "keyframes": {"keep": "1/2"}, "pixelprune": {},
    "tome": {"keep": "1/2"}, "early-cut": {"keep": "1/2"},
}  # fmt: skip
every = pytest.mark.parametrize("name", list(PIXELS))
towers = pytest.mark.parametrize("name", list(TOWER))
STYLES: dict[str, Callable[[np.random.Generator, tuple[int, ...]], np.ndarray]] = {
    "noise": lambda rng, shape: rng.integers(0, 256, shape),
    "constant": lambda rng, shape: np.full(shape, 93),
    "half": lambda rng, shape: (
        np.where(np.arange(shape[2])[:, None] * 2 < shape[2], 255, 0)
        + np.zeros(shape, dtype=np.int64)
    ),
}


def pixels(
    style: str, t: int, h: int, w: int, tiles: tuple[int, int] | None = (2, 3), seed: int = 0
) -> Pixels:
    """A picture (t = 1) or video as a tower of one token per 8 x 8 pixels sees it, at least 4."""
    array = STYLES[style](np.random.default_rng(seed), (t, h, w, 3)).astype(np.uint8)
    boxes = None
    if tiles is not None and t == 1:
        rows, cols = tiles
        boxes = [
            Box(c * w // cols, r * h // rows, (c + 1) * w // cols, (r + 1) * h // rows)
            for r in range(rows)
            for c in range(cols)
        ]
        boxes = [*boxes, Box(0, 0, w, h)] if rows * cols > 1 else boxes

    def tokens(plan: PixelPlan) -> int:
        tall, wide = plan.size or (h, w)
        return max(4, math.ceil(tall / 8) * math.ceil(wide / 8))

    return Pixels(
        0, array, (h, w), tokens,
        tiles=None if boxes is None else tuple(boxes),
        thumbnail=len(boxes) - 1 if boxes and len(boxes) > 1 else None,
        time_s=np.arange(t) / 2 if t > 1 else None,
        resizes=True,
    )  # fmt: skip


def request_of(name: str, style: str, seed: int = 0) -> list[Pixels]:
    if PIXELS[name].acts == "frames":
        return [pixels(style, 9, 20, 30, seed=seed), pixels(style, 6, 40, 24, seed=seed)]
    if PIXELS[name].acts == "patches":
        return [
            replace(pixels(style, t, 8 * h, 8 * w, seed=seed), grid=(t, h, w))
            for t, h, w in ((1, 12, 15), (1, 8, 8), (3, 2, 5))
        ]
    return [pixels(style, 1, 96, 120, seed=seed), pixels(style, 1, 64, 64, seed=seed)]


def check(view: Pixels, plan: PixelPlan) -> None:
    """What the engine holds every plan to."""
    assert plan.size is None or min(plan.size) >= 1
    cells = math.prod(view.grid) if view.grid is not None else 0
    for picks, n in (
        (plan.tiles, len(view.tiles or ())),
        (plan.frames, view.array.shape[0]),
        (plan.patches, cells),
    ):
        if picks is not None:
            assert picks and list(picks) == sorted(set(picks)) and 0 <= picks[0] <= picks[-1] < n


def test_the_registry_lists_what_the_house_ships() -> None:
    assert set(PIXELS) == set(HALF) - set(TOWER) and set(TOWER) == {"tome", "early-cut"}
    for name, cls in {**PIXELS, **TOWER}.items():
        assert cls.summary and len(cls.summary) <= 90, name
        assert (cls.paper is None) == (cls.evidence == "control"), name


@every
@pytest.mark.parametrize("style", list(STYLES))
def test_plans_fit_and_are_the_same_twice(name: str, style: str) -> None:
    method = PIXELS[name].from_settings(HALF[name])
    views = request_of(name, style)
    before = [v.array.copy() for v in views]
    plans = method.reduce(views, RNG)
    assert len(plans) == len(views)
    for view, plan in zip(views, plans, strict=True):
        check(view, plan)
    assert method.reduce(request_of(name, style), RNG) == plans
    for view, array in zip(views, before, strict=True):
        assert np.array_equal(view.array, array)
    assert [method.reduce([v], RNG)[0] for v in views] == plans, "one picture decides over another"


@pytest.mark.parametrize("name", [n for n in PIXELS if n in WHOLE])
@pytest.mark.parametrize("style", list(STYLES))
def test_everything_is_the_identity(name: str, style: str) -> None:
    method = PIXELS[name].from_settings(WHOLE[name])
    assert all(p.is_identity for p in method.reduce(request_of(name, style), RNG))


@every
def test_the_smallest_pictures(name: str) -> None:
    method = PIXELS[name].from_settings(HALF[name])
    if PIXELS[name].acts == "frames":
        for t in (2, 3):
            (plan,) = method.reduce([pixels("noise", t, 1, 1)], RNG)
            assert plan.frames is not None and len(plan.frames) == round(t / 2 + 1e-9)
        return
    if PIXELS[name].acts == "patches":
        for h, w in ((1, 1), (1, 7), (9, 1), (3, 2)):
            view = replace(pixels("noise", 1, h, w), grid=(1, h, w))
            assert method.reduce([view], RNG)[0].is_identity
        return
    for h, w in ((1, 1), (1, 7), (9, 1), (3, 2)):
        for tiles in ((1, 1), (2, 3), None):
            view = pixels("noise", 1, h, w, tiles)
            (plan,) = method.reduce([view], RNG)
            check(view, plan)


@every
def test_settings_that_contradict_are_refused(name: str) -> None:
    both = {"downscale": {"side": 3, "keep": "1/2"}, "tiles": {"keep": "1/2", "tiles": 2}}
    wrong = (
        both.get(name)
        or {
            "resolution": {"floor": "0"},
            "frames": {"frames": 2, "keep": "1/2"},
            "keyframes": {"frames": 2, "keep": "1/2"},
            "pixelprune": {"threshold": 2},
        }[name]
    )
    with pytest.raises(SettingError, match=name):
        PIXELS[name].from_settings(wrong)
    if name not in ("resolution", "pixelprune"):
        with pytest.raises(SettingError, match=name):
            PIXELS[name].from_settings({})
        with pytest.raises(SettingError, match="out of range"):
            PIXELS[name].from_settings({"keep": "3/2"})


# --- downscale ----------------------------------------------------------------------------------
@pytest.mark.parametrize("keep", ["1/2", "1/4", "1/9", "1/40"])
def test_downscale_takes_the_largest_size_within_the_budget(keep: str) -> None:
    view = pixels("noise", 1, 480, 640)
    n = view.tokens(PixelPlan())
    (plan,) = PIXELS["downscale"](keep=keep).reduce([view], RNG)
    budget = int(n * Fraction(keep) + Fraction(1, 2))
    assert plan.size is not None
    assert budget * 0.8 <= view.tokens(plan) <= budget
    assert abs(plan.size[1] / plan.size[0] - 640 / 480) < 0.05


def test_downscale_below_the_least_size_takes_the_largest_of_the_fewest_tokens() -> None:
    view = pixels("noise", 1, 64, 64)
    (plan,) = PIXELS["downscale"](keep="1/64").reduce([view], RNG)
    assert view.tokens(plan) == 4 and plan.size == (16, 16)


def test_downscale_to_a_side_keeps_the_aspect_and_never_enlarges() -> None:
    down = PIXELS["downscale"](side=60)
    assert down.reduce([pixels("noise", 1, 90, 120)], RNG) == [PixelPlan(size=(45, 60))]
    assert down.reduce([pixels("noise", 1, 60, 20)], RNG) == [PixelPlan()]
    assert down.reduce([pixels("noise", 1, 400, 2)], RNG) == [PixelPlan(size=(60, 1))]


# --- resolution ---------------------------------------------------------------------------------
def test_loss_is_the_spread_inside_the_cells_of_the_worst_region() -> None:
    rng = np.random.default_rng(3)
    grey = rng.integers(0, 256, (24, 40))
    size = (8, 10)
    worst = 0.0
    for r in range(8):  # 24 rows in 8 regions: one row of cells each; 10 columns in 8 regions
        edges = [c * 10 // 8 for c in range(9)]
        for c in range(8):
            block = [grey[3 * r : 3 * r + 3, 4 * j : 4 * j + 4] for j in range(*edges[c : c + 2])]
            left = sum(((b - b.mean()) ** 2).sum() for b in block)
            worst = max(worst, math.sqrt(left / sum(b.size for b in block)))
    assert loss(grey, size) == pytest.approx(worst)
    assert loss(grey, (24, 40)) == 0.0 and loss(np.full((5, 7), 9), (1, 1)) == 0.0


def test_resolution_follows_the_detail() -> None:
    method = PIXELS["resolution"]()
    blocks = np.kron(np.random.default_rng(0).integers(0, 256, (8, 8)), np.ones((16, 16)))
    coarse = pixels("constant", 1, 128, 128)
    coarse = replace(coarse, array=np.repeat(blocks[None, ..., None], 3, 3).astype(np.uint8))
    fine = coarse.array.copy()
    fine[0, 40:44, 40:60] = np.random.default_rng(1).integers(0, 256, (4, 20, 3))
    assert method.reduce([coarse], RNG) == [PixelPlan(size=(16, 16))]
    assert method.reduce([replace(coarse, array=fine)], RNG) == [PixelPlan()]
    assert PIXELS["resolution"](floor="1/2").reduce([coarse], RNG) == [PixelPlan(size=(64, 64))]


# --- tiles --------------------------------------------------------------------------------------
@pytest.mark.parametrize("score", ["gradient", "entropy"])
def test_tiles_keeps_those_with_detail_and_the_thumbnail(score: str) -> None:
    view = pixels("constant", 1, 60, 90, (2, 3))
    array = view.array.copy()
    array[0, 30:60, 60:90] = np.random.default_rng(0).integers(0, 256, (30, 30, 3))
    array[0, 0:30, 30:60:2] = 0
    view = replace(view, array=array)
    method = PIXELS["tiles"](keep="1/3", score=score)
    assert method.reduce([view], RNG) == [PixelPlan(tiles=(1, 5, 6))]
    first = replace(view, thumbnail=0, tiles=(view.tiles[-1], *view.tiles[:-1]))
    assert method.reduce([first], RNG) == [PixelPlan(tiles=(0, 2, 6))]
    bare = replace(view, thumbnail=None, tiles=view.tiles[:-1])
    assert method.reduce([bare], RNG) == [PixelPlan(tiles=(1, 5))]


@pytest.mark.parametrize("style", list(STYLES))
def test_the_count_of_tiles_follows_from_grid_and_budget_alone(style: str) -> None:
    for rows, cols in ((1, 2), (2, 3), (3, 3), (4, 5)):
        view = pixels(style, 1, 120, 120, (rows, cols))
        for keep in (Fraction(1, 4), Fraction(1, 2), Fraction(9, 10)):
            (plan,) = PIXELS["tiles"](keep=keep).reduce([view], RNG)
            want = min(rows * cols, max(1, math.floor(keep * rows * cols + Fraction(1, 2))))
            kept = len(plan.tiles) - 1 if plan.tiles is not None else rows * cols
            assert kept == want
        (plan,) = PIXELS["tiles"](tiles=2).reduce([view], RNG)
        assert (len(plan.tiles) - 1 if plan.tiles else rows * cols) == 2
    assert PIXELS["tiles"](keep="1/9").reduce([pixels(style, 1, 9, 9, (1, 1))], RNG)[0].is_identity


def test_tile_scores_against_plain_loops() -> None:
    grey = np.random.default_rng(5).integers(0, 256, (5, 6))
    total = sum(abs(int(grey[i, j]) - int(grey[i + 1, j])) for i in range(4) for j in range(6))
    total += sum(abs(int(grey[i, j]) - int(grey[i, j + 1])) for i in range(5) for j in range(5))
    assert gradient(grey) == pytest.approx(total / 30)
    counts: dict[int, int] = {}
    for value in grey.reshape(-1):
        counts[int(value) // 8] = counts.get(int(value) // 8, 0) + 1
    want = -sum(c / 30 * math.log2(c / 30) for c in counts.values())
    assert entropy(grey) == pytest.approx(want)
    assert gradient(np.zeros((1, 1), dtype=int)) == 0 == entropy(np.full((3, 3), 7))


# --- frames -------------------------------------------------------------------------------------
def test_frames_are_evenly_spaced() -> None:
    assert middles(8, 4).tolist() == [1, 3, 5, 7] and middles(5, 1).tolist() == [2]
    for t in range(2, 30):
        for k in range(1, t):
            picks = PIXELS["frames"](frames=k).reduce([pixels("noise", t, 2, 2)], RNG)[0].frames
            assert picks is not None and len(set(picks)) == k


def test_keyframes_go_where_something_happens() -> None:
    view = pixels("constant", 40, 16, 16)
    array = view.array.copy()
    array[30:38] = np.random.default_rng(0).integers(0, 256, (8, 16, 16, 3))
    (plan,) = PIXELS["keyframes"](frames=8).reduce([replace(view, array=array)], RNG)
    assert plan.frames is not None
    assert sum(29 <= f <= 38 for f in plan.frames) >= 5 and min(plan.frames) < 20
    (still,) = PIXELS["keyframes"](frames=8).reduce([view], RNG)
    assert still.frames == tuple(middles(40, 8).tolist())


def test_change_against_a_plain_loop() -> None:
    view = pixels("noise", 4, 3, 2)
    grey = (view.array.astype(int) @ [299, 587, 114] + 500) // 1000
    want = [0] + [int(np.abs(grey[i] - grey[i - 1]).sum()) for i in range(1, 4)]
    assert change(view.array).tolist() == want


@pytest.mark.parametrize("seed", range(5))
def test_spread_gives_different_rising_frames(seed: int) -> None:
    rng = np.random.default_rng(seed)
    for t in range(2, 12):
        weight = rng.integers(0, 5, t) * rng.integers(0, 2, t)
        weight[rng.integers(t)] += 1
        for k in range(1, t + 1):
            picks = spread(weight, k)
            assert len(set(picks.tolist())) == k
            assert (np.diff(picks) > 0).all() and picks[0] >= 0 and picks[-1] < t


def test_frame_methods_leave_the_pictures_of_a_request_alone() -> None:
    plans = PIXELS["frames"](frames=2).reduce(
        [pixels("noise", 1, 8, 8), pixels("noise", 6, 8, 8)], RNG
    )
    assert plans[0].is_identity and plans[1].frames == (1, 4)
    with pytest.raises(UnsupportedError, match="frames"):
        PIXELS["frames"](frames=2).reduce([pixels("noise", 1, 8, 8)], RNG)


# --- tower --------------------------------------------------------------------------------------
def view_of(
    m: int, front: int = 1, style: str = "random", make: Any = np.asarray, seed: int = 0
) -> BlockView:
    rng = np.random.default_rng(seed)
    keys = rng.standard_normal((m, 3, 4))
    if style == "constant":
        keys = np.repeat(keys[:1], m, axis=0)
    if style == "repeated":
        keys = rng.integers(-1, 2, (m, 3, 4)).astype(float)
    received = rng.random(m) if style == "random" else np.full(m, 0.25)
    hidden, size = rng.standard_normal((m, 8)), np.ones(m)
    return BlockView(
        layer=1,
        hidden=make(hidden.astype(np.float32)),
        keys=make(keys.astype(np.float32)),
        size=make(size.astype(np.float32)),
        protected=make(np.arange(m) < front),
        grid=(1, 1, m - front),
        attention=Attention(received=make(received.astype(np.float32))),
    )


@towers
@pytest.mark.parametrize("style", ["random", "constant", "repeated"])
@pytest.mark.parametrize("front", [0, 1])
def test_tower_answers_are_partitions_and_the_same_on_numpy_and_torch(
    name: str, style: str, front: int
) -> None:
    method = TOWER[name].from_settings(HALF[name])
    for n in (2, 3, 8, 17):
        view = view_of(n + front, front, style)
        layer = 1
        answer = method.block(layer, 2, view)
        assert answer is not None
        answer.check()
        assert answer.n == n + front
        assert answer.k - front == max(1, int(n / 2 + 0.5))
        rows = answer.rows if answer.rows is not None else np.arange(answer.k)
        cols = answer.cols if answer.cols is not None else answer.anchor
        assert np.unique(cols).size == cols.size
        if front:
            assert answer.anchor[0] == 0 and (rows[cols == 0] == 0).all()
            assert (rows == 0).sum() == 1
        again = method.block(layer, 2, view_of(n + front, front, style, torch.from_numpy))
        assert same(answer, again)


def same(a: Reduction, b: Reduction) -> bool:
    if a.is_pick != b.is_pick or a.anchor.tolist() != b.anchor.tolist():
        return False
    return a.is_pick or (
        np.array_equal(a.rows, b.rows)
        and np.array_equal(a.cols, b.cols)
        and np.allclose(a.weights, b.weights)
    )


@towers
def test_a_whole_tower_or_a_single_patch_is_left_alone(name: str) -> None:
    method = TOWER[name].from_settings(WHOLE[name])
    assert method.block(1, 4, view_of(9)) is None
    assert TOWER[name].from_settings(HALF[name]).block(1, 2, view_of(2)) is None


def test_tome_merges_the_pairs_a_plain_loop_finds() -> None:
    rng = np.random.default_rng(4)
    for m, front, r in ((9, 1, 3), (12, 0, 6), (7, 1, 2), (5, 0, 1)):
        metric, size = rng.standard_normal((m, 5)), rng.integers(1, 5, m).astype(float)
        alone = np.arange(m) < front
        unit = metric / np.linalg.norm(metric, axis=1, keepdims=True)
        edges = []
        for i in range(0, m, 2):
            options = [j for j in range(1, m, 2) if not alone[j]]
            if not alone[i]:
                best = max(options, key=lambda j, i=i: float(unit[i] @ unit[j]))
                edges.append((float(unit[i] @ unit[best]), i, best))
        groups = {j: [j] for j in range(m)}
        for _, i, j in sorted(edges, reverse=True)[:r]:
            groups[j] += groups.pop(i)
        answer = partition(metric, size, alone, r)
        dense = np.zeros((answer.k, m))
        dense[answer.rows, answer.cols] = answer.weights
        want = sorted(groups.values(), key=min)
        assert answer.anchor.tolist() == [min(g) for g in want]
        for row, members in zip(dense, want, strict=True):
            assert np.flatnonzero(row).tolist() == sorted(members)
            assert np.allclose(row[members], size[members] / size[members].sum())


def test_tome_reaches_every_count_that_halving_allows() -> None:
    for n in (4, 9, 16, 25, 64):
        for steps in (1, 2, 3, 6):
            for end in range(-(-n // 2**steps), n + 1):
                counts = [present(n, end, i, steps) for i in range(steps + 1)]
                assert counts[0] == n and counts[-1] == end
                assert all(b <= a <= 2 * b for a, b in zip(counts, counts[1:], strict=False))
                # Half of what is there is what one round can merge, with or without a class token.
                assert all(a - b <= a // 2 for a, b in zip(counts, counts[1:], strict=False))


def test_tome_says_when_halving_is_not_enough() -> None:
    with pytest.raises(UnsupportedError, match=r"at least 4"):
        TOWER["tome"](keep="1/16").block(1, 3, view_of(17))


def test_tome_refuses_keys_that_are_not_finite() -> None:
    view = view_of(9)
    view.keys[3, 0, 0] = np.nan
    with pytest.raises(NonFiniteError, match="keys"):
        TOWER["tome"](r=2).block(1, 4, view)


@pytest.mark.parametrize("settings", [{}, {"keep": "1/2", "r": 3}, {"keep": "0"}, {"r": -1}])
def test_tome_settings(settings: dict[str, Any]) -> None:
    with pytest.raises(SettingError, match="tome"):
        TOWER["tome"].from_settings(settings)


def test_early_cut_keeps_what_is_looked_at_and_cuts_once() -> None:
    method = TOWER["early-cut"](keep="1/4", depth="1/2")
    view = view_of(9)
    score = np.array([9, 1, 5, 2, 8, 3, 3, 0, 4], dtype=np.float32)
    view = replace(view, attention=Attention(received=score))
    assert method.at(6) == 3
    assert [method.reads(i, 6) for i in range(1, 6)] == [set(), set(), {"saliency"}, set(), set()]
    answer = method.block(3, 6, view)
    assert answer is not None and answer.anchor.tolist() == [0, 2, 4]
    assert method.block(2, 6, view) is None
    with pytest.raises(SettingError, match="depth"):
        TOWER["early-cut"](depth=1)
