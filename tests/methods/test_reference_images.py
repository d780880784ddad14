"""Picture methods without golden vectors, against plain loops over their formulas."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from foveate.core import Attention, Counts, Plan, PlanRng, Segment, arrays, methods
from foveate.core.density import density_peaks
from foveate.encode.tokens import prunesid, vispruner
from foveate.encode.tokens.cdpruner import CDPrunerLM
from foveate.encode.tokens.holov import HoloV, quotas
from foveate.encode.tokens.idpruner import IDPruner
from foveate.encode.tokens.mmtok import MMTok
from foveate.encode.tokens.nuwa import Nuwa
from foveate.encode.tokens.prumerge import PruMerge, PruMergePlus
from foveate.encode.tokens.prunesid import PruneSID, groups_of, suppress
from foveate.encode.tokens.prunesid import quotas as group_quotas
from foveate.encode.tokens.scope import SCOPE
from foveate.encode.tokens.visionzip import VisionZip
from tests.methods.synthetic import as_tensors, question, segment

pytestmark = pytest.mark.claim("C1")

RNG = PlanRng(0)
GRIDS = [(1, 5, 6), (1, 8, 8)]


def cos(a: np.ndarray, b: np.ndarray) -> float:
    a, b = a.astype(float), b.astype(float)
    return float(a @ b / math.sqrt(float(a @ a) * float(b @ b)))


def table(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return np.array([[cos(x, y) for y in b] for x in a])


def kept_by(method: Any, item: Segment, k: int) -> list[int]:
    reduction = method.select([item], Counts(k, (k,)), question(), RNG)[0]
    return reduction.anchor.tolist()


def attention(item: Segment, layer: int = -2) -> np.ndarray:
    view: Attention = item.encoder.at[layer]
    return view.cls.astype(float)


def plain_cover(gain: Any, n: int, k: int) -> list[int]:
    """Greedy with every gain computed anew at every step; gains equal but for rounding are ties."""
    chosen: list[int] = []
    for _ in range(k):
        free = [j for j in range(n) if j not in chosen]
        chosen.append(max(free, key=lambda j: (round(gain(chosen, j), 5), -j)))
    return sorted(chosen)


@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("alpha", [0.0, 1.0])
def test_scope(grid: tuple[int, int, int], alpha: float) -> None:
    item = segment(SCOPE, grid)
    s, score = table(*[item.encoder.hidden[-2]] * 2), attention(item)

    def gain(chosen: list[int], j: int) -> float:
        total = 0.0
        for i in range(item.n):
            covered = max([0.0] + [s[i, c] for c in chosen])
            total += max(0.0, s[i, j] - covered)
        return score[j] ** alpha * total

    k = item.n // 3
    assert kept_by(SCOPE(per_image=k, alpha=alpha), item, k) == plain_cover(gain, item.n, k)


@pytest.mark.parametrize("grid", GRIDS)
def test_mmtok(grid: tuple[int, int, int]) -> None:
    item, ask = segment(MMTok, grid), question()
    text = table(ask.embeddings, item.features)
    vision = table(*[item.encoder.hidden[-2]] * 2)

    def softmax(row: np.ndarray, tau: float) -> np.ndarray:
        weights = np.exp(row / tau - (row / tau).max())
        return weights / weights.sum()

    rows = [softmax(r, 0.02) / len(text) for r in text]
    rows += [0.5 * softmax(r, 0.2) / item.n for r in vision]

    def gain(chosen: list[int], j: int) -> float:
        return sum(max(0.0, r[j] - max([0.0] + [r[c] for c in chosen])) for r in rows)

    k = item.n // 4
    assert kept_by(MMTok(per_image=k), item, k) == plain_cover(gain, item.n, k)


@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("balance", [0.2, 0.5, 1.0])
def test_idpruner(grid: tuple[int, int, int], balance: float) -> None:
    item = segment(IDPruner, grid)
    s, score = table(item.features, item.features), attention(item)
    worth = (score - score.min()) / (score.max() - score.min())

    def value(chosen: list[int], j: int) -> float:
        return balance * worth[j] - (1 - balance) * max([s[j, c] for c in chosen], default=0.0)

    k = item.n // 3
    assert kept_by(IDPruner(per_image=k, balance=balance), item, k) == plain_cover(value, item.n, k)


@pytest.mark.parametrize("grid", GRIDS)
def test_cdpruner_lm_maximises_the_determinant_greedily(grid: tuple[int, int, int]) -> None:
    item, ask = segment(CDPrunerLM, grid), question()
    raw = table(item.features, ask.embeddings).mean(axis=1)
    r = (raw - raw.min() + 1e-6) / (raw.max() - raw.min())
    kernel = r[:, None] * table(item.features, item.features) * r[None, :]

    def volume(chosen: list[int], j: int) -> float:
        index = [*chosen, j]
        return float(np.linalg.slogdet(kernel[np.ix_(index, index)])[1])

    assert kept_by(CDPrunerLM(per_image=8), item, 8) == plain_cover(volume, item.n, 8)


def test_the_determinant_beyond_its_rank_falls_back_to_quality() -> None:
    x = np.eye(3, dtype=np.float32)[[0, 1, 2, 0, 1, 2]]
    quality = np.array([0.5, 0.6, 0.7, 0.4, 0.65, 0.1])
    assert arrays.greedy_dpp(x, quality, 5).tolist() == [2, 4, 0, 1, 3]


@pytest.mark.parametrize("grid", GRIDS)
def test_holov(grid: tuple[int, int, int]) -> None:
    item, k, crops = segment(HoloV, grid), 13, 4
    score, n = attention(item), item.n
    size = [n // crops + (1 if c < n % crops else 0) for c in range(crops)]
    start = [sum(size[:c]) for c in range(crops)]
    varied = np.zeros(n)
    for c in range(crops):
        members = range(start[c], start[c] + size[c])
        for i in members:
            row = [0.0 if i == j else cos(item.features[i], item.features[j]) for j in members]
            mean = sum(row) / len(row)
            varied[i] = sum((v - mean) ** 2 for v in row) / (len(row) - 1)
    total = 1000 * score + 0.09 * varied * (1000 * score).mean() / varied.mean()
    means = [total[a : a + m].mean() for a, m in zip(start, size, strict=True)]
    share = [m / sum(means) for m in means]
    quota = [math.floor(k * s) for s in share]
    for c in sorted(range(crops), key=lambda c: -share[c])[: k - sum(quota)]:
        quota[c] += 1
    expected = []
    for c in range(crops):
        members = range(start[c], start[c] + size[c])
        expected += sorted(members, key=lambda i: (-score[i], i))[: quota[c]]
    assert kept_by(HoloV(per_image=k, crops=crops), item, k) == sorted(expected)


def test_holov_passes_on_what_a_crop_cannot_hold() -> None:
    share, sizes = np.array([0.9, 0.05, 0.05]), np.array([4, 4, 4])
    assert quotas(share, sizes, 10).tolist() == [4, 3, 3]


def test_prunesid_groups_by_the_largest_loading() -> None:
    rng = np.random.default_rng(4)
    for n, c in ((20, 9), (9, 20)):
        x = rng.standard_normal((n, c)).astype(np.float32)
        sample = (1 / (1 + np.exp(-x.astype(float)))).T
        loadings = np.linalg.svd(sample - sample.mean(0), full_matrices=False)[2][:4]
        assert groups_of(x, 4).tolist() == np.abs(loadings).argmax(0).tolist()


def test_prunesid_suppresses_and_shares() -> None:
    angle = np.deg2rad([0, 25, 70, 110])
    rows = np.stack([np.cos(angle), np.sin(angle)], axis=1)
    assert suppress(rows, 0.5).tolist() == [True, False, True, False]
    assert suppress(rows, 0.95).all()
    assert group_quotas(np.array([10, 10, 2]), np.array([6, 3, 1]), 8).tolist() == [5, 2, 1]
    # More than the survivors hold: all caps rise until the budget fits, never above the sizes.
    assert group_quotas(np.array([5, 5, 2]), np.array([1, 1, 1]), 10).tolist() == [4, 4, 2]
    assert group_quotas(np.array([5, 5, 2]), np.array([1, 3, 2]), 2).tolist() == [0, 1, 1]


def test_prunesid_suppresses_across_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(8)
    u = arrays.unit(rng.standard_normal((60, 3)))
    alive: list[int] = []
    for i in range(60):
        if all(float(u[i] @ u[j]) <= 0.6 for j in alive):
            alive.append(i)
    assert 2 < len(alive) < 40
    for block in (512, 7):
        monkeypatch.setattr(prunesid, "_BLOCK", block)
        assert np.flatnonzero(suppress(u, 0.6)).tolist() == alive


@pytest.mark.parametrize("lists", [1, 3, 32])
@pytest.mark.parametrize("repeated", [False, True])
def test_vispruner_rounds_equal_plain_loops(
    lists: int, repeated: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(vispruner, "_NEAREST", lists)
    rng = np.random.default_rng(lists)
    x = rng.standard_normal((70, 5)).astype(np.float32)
    if repeated:
        x = x[rng.integers(0, 20, 70)]
    order = rng.permutation(70)
    s, left, k, step = table(x, x), order.tolist(), 9, 4
    while len(left) > k:
        even, odd = left[::2], left[1::2]
        twin = {i: max(round(s[i, j], 8) for j in odd) for i in even}
        ranked = sorted(even, key=lambda i: -twin[i])
        left = ranked[min(step, len(left) - k) :] + odd
    assert vispruner.thin_out(x, order, k, step).tolist() == left
    torch = pytest.importorskip("torch")
    assert vispruner.thin_out(torch.from_numpy(x), order, k, step).tolist() == left


@pytest.mark.parametrize("repeated", [False, True])
def test_density_peaks_equal_plain_loops(repeated: bool) -> None:
    rng = np.random.default_rng(12)
    x = rng.standard_normal((80, 6))
    if repeated:
        x = x[rng.integers(0, 30, 80)]
    far = np.array([[((a - b) ** 2).sum() / 6 for b in x] for a in x])
    density = np.array([math.exp(-np.sort(row)[:4].mean()) for row in far])
    density = np.round(density, 9)
    gap = [
        min(
            [math.sqrt(far.max())]
            + [math.sqrt(far[i, j]) for j in range(80) if density[j] > density[i]]
        )
        for i in range(80)
    ]
    value = [round(density[i] * gap[i], 8) for i in range(80)]
    expected = sorted(range(80), key=lambda i: (-value[i], i))[:11]
    assert density_peaks(x, 11).tolist() == expected


def test_prunesid_drops_a_copy_before_anything_else() -> None:
    item = segment(PruneSID, (1, 6, 6))
    kept = kept_by(PruneSID(per_image=18), item, 18)
    assert len(kept) == 18


def test_nuwa() -> None:
    item, k = segment(Nuwa, (1, 6, 6)), 12
    score, h, w = attention(item), 6, 6
    cells: dict[tuple[int, int], list[int]] = {}
    for i in range(item.n):
        cells.setdefault((i // w // 2, i % w // 2), []).append(i)
    each = math.ceil(k / len(cells))
    best = [i for c in cells.values() for i in sorted(c, key=lambda i: -score[i])[:each]]
    kept = sorted(sorted(best, key=lambda i: -score[i])[:k])
    level = np.quantile(score, 0.55)
    features = item.encoder.hidden[-2]
    expected = []
    for i in kept:
        mass, total = 1.0, item.features[i].astype(float)
        if score[i] < level:
            for j in range(item.n):
                far = (i // w - j // w) ** 2 + (i % w - j % w) ** 2
                near = max(0.0, 1 - far / (280 * (max(h, w) / 24) ** 2))
                weight = max(0.0, cos(features[i], features[j])) * near
                if j != i and weight > 0:
                    mass, total = mass + weight, total + weight * item.features[j]
        expected.append(total / mass)
    reduction = Nuwa(per_image=k).select([item], Counts(k, (k,)), None, RNG)[0]
    assert reduction.anchor.tolist() == kept
    assert np.allclose(arrays.apply(reduction, item.features), expected, atol=1e-5)


def test_visionzip_without_cls_stays_in_projected_space() -> None:
    item = segment(VisionZip, (1, 6, 6), tower="merger")
    reduction = VisionZip(per_image=13).select([item], Counts(13, (13,)), None, RNG)[0]
    assert reduction.space == "projected" and reduction.k == 13
    view = item.encoder
    received = view.at[-2].received.astype(float)
    score = np.array([received[view.group == i].mean() for i in range(36)])
    dominant = sorted(sorted(range(36), key=lambda i: (-score[i], i))[:11])
    left = [i for i in range(36) if i not in dominant]
    targets = [left[0], left[len(left) // 2]]
    assert reduction.anchor.tolist() == sorted(dominant + targets)
    keys = np.array([view.at[-2].keys[view.group == i].mean((0, 1)) for i in range(36)])
    home = {i: max(targets, key=lambda t: cos(keys[i], keys[t])) for i in left}
    expected = []
    for i in reduction.anchor.tolist():
        members = [j for j in left if j not in targets and home[j] == i] if i in targets else []
        extra = item.features[members].mean(0) if members else 0.0
        expected.append(item.features[i] + extra)
    assert np.allclose(arrays.apply(reduction, item.features), expected, atol=1e-4)


@pytest.mark.parametrize("method", [PruMerge, PruMergePlus])
@pytest.mark.parametrize("tower", ["cls", "merger"])
def test_prumerge_without_a_budget_lets_the_picture_decide(method: type, tower: str) -> None:
    torch = pytest.importorskip("torch")
    free, item = method(), segment(method, (1, 12, 12), tower=tower)
    assert free.counts == "adaptive" and method(keep="1/4").counts == "image"
    counts = Counts(item.n, (item.n,), False)
    reduction = free.select([item], counts, None, RNG)[0]
    view = item.encoder
    own = view.at[-1].cls if view.at[-1].cls is not None else view.at[-1].received
    score = np.array([own.astype(float)[view.group == i].mean() for i in range(item.n)])
    low, high = np.quantile(score, [0.25, 0.75])
    strong = np.flatnonzero(score > high + 1.5 * (high - low))
    assert strong.size > 2, "the case shows nothing without outliers"
    chosen = set(strong.tolist())
    if method is PruMergePlus:
        chosen |= set(range(0, item.n - 1, int(item.n / strong.size) // 3))
    assert reduction.k == len(chosen) + 1 and chosen <= set(reduction.anchor.tolist())
    assert reduction.space == ("encoder" if tower == "cls" else "projected")
    again = free.select([as_tensors(item, torch.from_numpy)], counts, None, RNG)[0]
    assert again.anchor.tolist() == reduction.anchor.tolist()
    # A flat picture has no outliers: one token and the sum of the rest.
    flat = segment(method, (1, 6, 6), style="constant", tower=tower)
    few = free.select([flat], Counts(36, (36,), False), None, RNG)[0]
    assert 2 <= few.k < 36


@pytest.mark.parametrize("name", ["aim", "vscan", "pool", "nuwa", "framefusion", "fastvid"])
def test_averages_have_weights_that_sum_to_one(name: str) -> None:
    cls = methods("tokens")[name]
    item = segment(cls, (4, 4, 5) if name in ("framefusion", "fastvid") else (1, 6, 7))
    method = cls(keep="2/3")
    k = method.count(item.grid, item.n * 2 // 3)
    reduction = method.select([item], Counts(k, (k,)), question(), RNG)[0]
    total = np.bincount(reduction.rows, weights=reduction.weights, minlength=k)
    assert np.allclose(total, 1.0, atol=1e-5)
    if name in ("aim", "vscan", "framefusion"):
        assert sorted(reduction.cols.tolist()) == list(range(item.n)), "a partition of the tokens"


def test_a_plan_names_every_method_in_its_text_form() -> None:
    for name in methods("tokens"):
        plan = Plan.parse(f"{name}:keep=1/4")
        assert Plan.parse(str(plan)) == plan
    assert Plan.parse("prumerge").stage("tokens") == PruMerge()
