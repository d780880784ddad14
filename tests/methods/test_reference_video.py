"""Video methods without golden vectors, against plain loops over their formulas."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest

from foveate.core import Counts, PlanRng, arrays
from foveate.core.budget import largest_remainder
from foveate.core.errors import InputError, UnsupportedError
from foveate.encode.tokens.dycoke import DyCoke
from foveate.encode.tokens.evs import EVS
from foveate.encode.tokens.fastvid import split
from foveate.encode.tokens.framefusion import FrameFusion
from foveate.encode.tokens.vcast import VCast
from foveate.encode.tokens.vidcom2 import VidCom2
from tests.methods.synthetic import segment

pytestmark = pytest.mark.claim("C1")

RNG = PlanRng(0)


def cos(a: np.ndarray, b: np.ndarray) -> float:
    a, b = a.astype(float), b.astype(float)
    return float(a @ b / math.sqrt(float(a @ a) * float(b @ b)))


@pytest.mark.parametrize("grid", [(5, 3, 4), (1, 4, 4)])
def test_vidcom2(grid: tuple[int, int, int]) -> None:
    item = segment(VidCom2, grid)
    t, size = grid[0], grid[1] * grid[2]
    k = item.n // 3
    x = item.features.astype(float)
    quiet = sorted(sorted(range(x.shape[1]), key=lambda c: x[:, c].var())[: x.shape[1] // 2])
    x = x[:, quiet]
    x = x / np.linalg.norm(x, axis=1, keepdims=True)

    def likeness(token: np.ndarray, centre: np.ndarray) -> float:
        far = float(((token - centre) ** 2).sum())
        return sum(math.exp(-far / (2 * a)) for a in (0.125, 0.25, 0.5, 1.0, 2.0))

    whole = [likeness(v, x.mean(0)) for v in x]
    frames = x.reshape(t, size, -1)
    own = [likeness(v, f.mean(0)) for f in frames for v in f]
    mean = np.array(whole).reshape(t, size).mean(1)
    weight = np.exp(-mean / 0.01 - (-mean / 0.01).max())
    weight /= weight.sum()
    shares = [Fraction(1.0 + v - weight.mean()) for v in weight]
    parts = largest_remainder(k, shares, floor=1, caps=[size] * t)
    expected = []
    for f, q in enumerate(parts):
        members = range(f * size, (f + 1) * size)
        expected += sorted(members, key=lambda i: whole[i] + own[i])[:q]
    kept = VidCom2(per_image=k).select([item], Counts(k, (k,)), None, RNG)[0]
    assert kept.anchor.tolist() == sorted(expected)


@pytest.mark.parametrize("grid", [(6, 3, 4), (2, 3, 3), (1, 4, 4)])
def test_vcast(grid: tuple[int, int, int]) -> None:
    item = segment(VCast, grid)
    t, size = grid[0], grid[1] * grid[2]
    k = item.n // 3
    frames = item.features.astype(float).reshape(t, size, -1)
    centre = [f.mean(0) / np.linalg.norm(f.mean(0)) for f in frames]
    turn = [1.0] * t
    for f in range(1, t - 1):
        turn[f] = 1 - cos(centre[f] - centre[f - 1], centre[f + 1] - centre[f])
    weights = [Fraction(math.exp((c - max(turn)) / 0.7)) for c in turn]
    parts = largest_remainder(k, weights, floor=1, caps=[size] * t)
    expected = []
    for f, q in enumerate(parts):
        length = np.linalg.norm(frames[f], axis=1)
        strong = (length - length.min()) / (length.max() - length.min())
        score = [1 - cos(v, frames[f].mean(0)) + s for v, s in zip(frames[f], strong, strict=True)]
        expected += [f * size + i for i in sorted(range(size), key=lambda i: -score[i])[:q]]
    kept = VCast(per_image=k).select([item], Counts(k, (k,)), None, RNG)[0]
    assert kept.anchor.tolist() == sorted(expected)


def test_a_still_video_is_no_curve() -> None:
    item = segment(VCast, (5, 2, 3), style="constant")
    kept = VCast(per_image=10).select([item], Counts(10, (10,)), None, RNG)[0]
    assert np.bincount(kept.anchor // 6).tolist() == [2, 2, 2, 2, 2]


def test_framefusion_joins_the_most_alike() -> None:
    grid, k = (4, 3, 3), 20
    item = segment(FrameFusion, grid)
    x, size = item.features, 9
    links = sorted(range(size, item.n), key=lambda i: -cos(x[i], x[i - size]))[: item.n - k]
    run = list(range(item.n))
    for i in range(size, item.n):
        if i in links:
            run[i] = run[i - size]
    starts = sorted(set(run))
    expected = [x[[i for i in range(item.n) if run[i] == s]].mean(0) for s in starts]
    reduction = FrameFusion(per_image=k).select([item], Counts(k, (k,)), None, RNG)[0]
    assert reduction.anchor.tolist() == starts
    assert np.allclose(arrays.apply(reduction, x), expected, atol=1e-5)


def test_framefusion_of_a_still_video_is_its_first_frame() -> None:
    item = segment(FrameFusion, (4, 2, 2), style="constant")
    reduction = FrameFusion(per_image=4).select([item], Counts(4, (4,)), None, RNG)[0]
    assert reduction.anchor.tolist() == [0, 1, 2, 3]
    assert np.allclose(arrays.apply(reduction, item.features), item.features[:4], atol=1e-6)


@pytest.mark.parametrize("t", [4, 6, 9])
def test_dycoke(t: int) -> None:
    item, size = segment(DyCoke, (t, 3, 3)), 9
    method = DyCoke(per_image=item.n // 2)
    k = method.count(item.grid, item.n // 2)
    x = item.features
    whole = [f for f in range(t) if f % 4 == 0]
    others = [f for f in range(t) if f % 4]
    left = k - len(whole) * size
    expected = [i for f in whole for i in range(f * size, (f + 1) * size)]
    for position, f in enumerate(others):
        q = left // len(others) + (1 if position < left % len(others) else 0)
        back = {1: 1, 2: 2, 3: 1}[f % 4] * size
        members = range(f * size, (f + 1) * size)
        expected += sorted(members, key=lambda i: cos(x[i], x[i - back]))[:q]
    kept = method.select([item], Counts(k, (k,)), None, RNG)[0]
    assert kept.anchor.tolist() == sorted(expected)


@pytest.mark.parametrize("method", [EVS, FrameFusion, DyCoke])
def test_video_methods_refuse_pictures_and_impossible_counts(method: type) -> None:
    picture = segment(method, (1, 4, 4))
    with pytest.raises(UnsupportedError, match="video"):
        method(per_image=8).select([picture], Counts(8, (8,)), None, RNG)
    video = segment(method, (4, 2, 2))
    with pytest.raises(InputError, match="keeps"):
        method(per_image=3).select([video], Counts(3, (3,)), None, RNG)
    both = method(per_image=8).select([picture, video], Counts(24, (16, 8)), None, RNG)
    assert both[0].is_identity and both[1].k == 8


def test_evs_of_a_still_video_keeps_the_first_places() -> None:
    item = segment(EVS, (3, 2, 2), style="constant")
    kept = EVS(per_image=6).select([item], Counts(6, (6,)), None, RNG)[0]
    assert kept.anchor.tolist() == [0, 1, 2, 3, 4, 5]


def test_fastvid_shares_meet_the_budget_where_anchor_frames_overflow() -> None:
    rng = np.random.default_rng(5)
    for _ in range(200):
        t, size = int(rng.integers(1, 9)), int(rng.integers(1, 12))
        budget = rng.integers(0, size + 1, t)
        cuts = np.sort(rng.choice(np.arange(1, t), int(rng.integers(0, t)), replace=False))
        lengths = np.diff(np.concatenate([[0], cuts, [t]])).astype(int).tolist()
        parts = split(budget, lengths, size, float(rng.random()), int(rng.integers(1, 5)))
        assert parts.salient.sum() + parts.peaks.sum() == budget.sum()
        assert (parts.salient + parts.peaks <= size).all() and (parts.peaks >= 0).all()
