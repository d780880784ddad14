"""Prefill methods against the formulas in plain loops, written anew."""

from __future__ import annotations

import math
from fractions import Fraction
from typing import Any

import numpy as np
import pytest

from foveate.core import arrays
from foveate.core.errors import SettingError
from foveate.prefill.aim_pagerank import AIMPageRank, pagerank
from foveate.prefill.dart import DART
from foveate.prefill.fastv import FastV
from foveate.prefill.pyramiddrop import PyramidDrop
from foveate.prefill.sparsevlm import SparseVLM, recycled, unbiased
from foveate.prefill.vscan_lm import VScanLM
from tests.prefill.test_prefill_contract import narrowed
from tests.prefill.views import ToyView, toy_view


def attention_row(
    view: ToyView, source: str, head: int, query: int, tau: float = 1.0
) -> list[float]:
    """One row of one head's attention: softmax over the tokens up to the query."""
    q, k = view.q[source], view.k[source]
    group = q.shape[0] // k.shape[0]
    logits = [
        float(np.dot(q[head, query].astype(float), k[head // group, j].astype(float)))
        / math.sqrt(q.shape[2])
        / tau
        for j in range(query + 1)
    ]
    top = max(logits)
    parts = [math.exp(x - top) for x in logits]
    return [p / sum(parts) for p in parts] + [0.0] * (len(view.modality) - query - 1)


def best_of(scores: dict[int, float], k: int) -> list[int]:
    return sorted(sorted(scores, key=lambda j: (-scores[j], j))[:k])


def by_last_token(view: ToyView, source: str, k: int) -> list[int]:
    heads, last = view.q[source].shape[0], len(view.modality) - 1
    rows = [attention_row(view, source, h, last) for h in range(heads)]
    scores = {
        n: sum(row[int(j)] for row in rows) / heads for n, j in enumerate(view.visual.tolist())
    }
    return best_of(scores, k)


@pytest.mark.parametrize("seed", range(4))
def test_one_drop_by_the_last_token(seed: int) -> None:
    view = toy_view(21, seed=seed, layers=32)
    for method, layer, source, k in (
        (FastV(layer=3, keep=Fraction(1, 3)), 3, "previous", 7),
        (VScanLM(keep=Fraction(2, 7)), 16, "next", 6),
    ):
        route, _ = method.decide(layer, view, None)
        assert route.keep is not None
        assert route.keep.anchor.tolist() == by_last_token(view, source, k)


def test_vscan_drops_in_the_middle() -> None:
    assert [VScanLM().layers(n) for n in (32, 28, 6)] == [(16,), (14,), (3,)]
    assert VScanLM(layer=Fraction(9)).layers(32) == (9,)


@pytest.mark.parametrize("seed", range(4))
def test_pyramiddrop(seed: int) -> None:
    method, view = PyramidDrop(), toy_view(37, seed=seed, layers=32)
    assert method.layers(32) == (8, 16, 24)
    for layer, k in ((8, 19), (16, 9), (24, 5)):  # 37/2, 37/4 and 37/8 to the nearest, halves up
        expected = by_last_token(view, "next", k)
        route, _ = method.decide(layer, view, None)
        assert route.keep is not None
        assert route.keep.anchor.tolist() == expected
        view = narrowed(view, route.keep)


def test_pyramiddrop_on_models_of_other_depth() -> None:
    assert PyramidDrop().layers(28) == (7, 14, 21)
    assert PyramidDrop().layers(6) == (2, 3, 5)
    assert PyramidDrop(at="2 9", ratios="1/2 1/4").layers(12) == (2, 9)


@pytest.mark.parametrize("seed", range(3))
def test_aim_pagerank(seed: int) -> None:
    view = toy_view(11, seed=seed, layers=28)
    heads, size = view.q["previous"].shape[0], len(view.modality)
    total = [0.0] * size
    for head in range(heads):
        rows = [attention_row(view, "previous", head, i, 0.1) for i in range(size)]
        s = [1.0 / size] * size
        for _ in range(5):
            s = [sum(s[i] * rows[i][j] for i in range(size)) for j in range(size)]
        total = [t + x * x / heads for t, x in zip(total, s, strict=True)]
    scores = [math.sqrt(t) for t in total]
    assert np.allclose(pagerank(view, 5, 0.1), scores, rtol=1e-4)
    method = AIMPageRank()
    counts = []
    for layer in method.layers(28):
        share = Fraction(22 - layer, 8)  # 7/8 after layer 14, 0 after layer 21
        expected = max(1, int(11 * share)) if share else 0
        route, _ = method.decide(layer, view, None)
        kept = list(range(11)) if route.keep is None else route.keep.anchor.tolist()
        assert kept == best_of({n: scores[j] for n, j in enumerate(view.visual)}, expected)
        counts.append(len(kept))
    assert method.layers(28) == tuple(range(15, 23)) and counts == [9, 8, 6, 5, 4, 2, 1, 0]


@pytest.mark.parametrize("temperature", [0.0, -1.0, 1e-40])
def test_a_temperature_that_overflows_is_refused(temperature: float) -> None:
    """Logits / 1e-40 are infinite in float32, and every score of theirs is 0."""
    with pytest.raises(SettingError, match="temperature = .* is out of range"):
        AIMPageRank(temperature=temperature)


@pytest.mark.parametrize("seed", range(4))
def test_dart(seed: int) -> None:
    view = toy_view(26, tail=6, seed=seed)
    norms = np.abs(view.k["previous"].astype(float)).sum((0, 2))
    visual, k = view.visual.tolist(), 13
    first = sorted(visual, key=lambda j: (-norms[j], j))[:4]
    text = [j for j in range(len(norms)) if j > visual[-1]]
    pivots = first + sorted(text, key=lambda j: (-norms[j], j))[:4]
    kept = set(first)
    shares = [2, 1, 1, 1, 1, 1, 1, 1]  # 13 - 4 over 8 pivots, what is left over to the first
    for pivot, share in zip(pivots, shares, strict=True):
        a = view.hidden[pivot].astype(float)
        like = {}
        for j in visual:
            if j in kept:
                continue
            b = view.hidden[j].astype(float)
            like[j] = -float(a @ b) / math.sqrt(float(a @ a) * float(b @ b))
        kept |= set(best_of(like, share))
    route, _ = DART(keep=Fraction(1, 2)).decide(2, view, None)
    assert route.keep is not None and route.keep.k == k
    assert [visual[a] for a in route.keep.anchor] == sorted(kept)


def rating_words(view: ToyView) -> list[int]:
    words, visual = np.flatnonzero(view.question).tolist(), view.visual.tolist()
    score = dict.fromkeys(words, 0.0)
    for v in visual:
        dots = {
            w: float(view.hidden[v].astype(float) @ view.hidden[w].astype(float)) for w in words
        }
        top = max(dots.values())
        mass = sum(math.exp(x - top) for x in dots.values())
        for w in words:
            score[w] += math.exp(dots[w] - top) / mass / len(visual)
    return [w for w in words if score[w] > 1 / len(words)]


def position_row(view: ToyView, query: int) -> list[float]:
    """What the query would attend to if all queries and keys were ones, each pair of which a place p
    rotates to (cos - sin, sin + cos).
    """
    size = view.q["previous"].shape[2]
    turned = []
    for place in np.asarray(view.origin).tolist():
        pairs = [place / 10000 ** (i / size) for i in range(0, size, 2)]
        turned.append([(math.cos(x) - math.sin(x), math.sin(x) + math.cos(x)) for x in pairs])
    logits = [
        sum(a * c + b * d for (a, b), (c, d) in zip(turned[query], turned[j], strict=True))
        / math.sqrt(size)
        for j in range(query + 1)
    ]
    parts = [math.exp(x - max(logits)) for x in logits]
    return [p / sum(parts) for p in parts] + [0.0] * (len(turned) - query - 1)


def rated(view: ToyView, words: list[int], heads: int | None, debias: bool = False) -> list[float]:
    """The words' mean attention to each visual token, over the heads that look at them most; debias:
    divided by what their places alone would give.
    """
    rows = {
        (h, w): attention_row(view, "previous", h, w)
        for h in range(view.q["previous"].shape[0])
        for w in words
    }
    mass = {
        h: sum(rows[h, w][j] for w in words for j in view.visual)
        for h in range(view.q["previous"].shape[0])
    }
    chosen = sorted(mass, key=lambda h: (-mass[h], h))[:heads]
    alone = {w: position_row(view, w) if debias else [1.0] * len(view.modality) for w in words}
    return [
        sum(rows[h, w][j] / alone[w][j] for h in chosen for w in words) / (len(chosen) * len(words))
        for j in view.visual
    ]


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(("recycle", "debias"), [(False, None), (False, False), (True, None)])
def test_sparsevlm(seed: int, recycle: bool, debias: bool | None) -> None:
    view = toy_view(40, tail=7, seed=seed, layers=32)
    method = SparseVLM(recycle=recycle, heads=2, debias=debias)
    words = rating_words(view)
    route, state = method.decide(0, view, None)
    assert route.keep is None and state.tolist() == words and 0 < len(words) < 7
    for layer, ratio in ((3, Fraction(25, 48)), (7, Fraction(25, 72)), (16, Fraction(55, 288))):
        scores = rated(view, [int(np.searchsorted(view.origin, w)) for w in words],
                       None if recycle else 2, not recycle and debias is None)  # fmt: skip
        k = math.floor(ratio * 40 + Fraction(1, 2))
        expected = best_of(dict(enumerate(scores)), k)
        route, state = method.decide(layer, view, state)
        assert route.keep is not None
        if not recycle:
            assert route.keep.is_pick and route.keep.anchor.tolist() == expected
        else:
            merged = clusters(view.hidden[view.visual], expected, scores)
            want = {**{i: {i} for i in expected}, **merged}
            check_merge(route.keep, want, view.hidden[view.visual])
        view = narrowed(view, route.keep)


@pytest.mark.parametrize("recycle", [False, True])
def test_words_before_the_last_picture_do_not_rate(recycle: bool) -> None:
    """They cannot have seen it: their rows are 0, and would leave the choice to the lowest index."""
    method = SparseVLM(recycle=recycle, debias=False)
    view = toy_view(24, lead=6, tail=2, seed=5, layers=32)
    view.question = view.modality == 0
    view.question[-2:] = False
    _, state = method.decide(0, view, None)
    assert state.size == 0
    route, _ = method.decide(3, view, state)
    assert route.keep is not None
    expected = by_last_token(view, "previous", 13)
    assert set(expected) <= set(route.keep.anchor.tolist()) and expected != list(range(13))
    view.question[-1] = True
    assert method.decide(0, view, None)[1].tolist() == [len(view.modality) - 1]


def test_division_by_positions_changes_the_choice_and_belongs_to_version_2() -> None:
    view = toy_view(40, tail=7, seed=0, layers=32)
    found = []
    for debias in (None, True, False):
        method = SparseVLM(debias=debias)
        _, state = method.decide(0, view, None)
        route, _ = method.decide(3, view, state)
        assert route.keep is not None
        found.append(route.keep.anchor.tolist())
    assert found[0] == found[1] != found[2]
    SparseVLM(recycle=True, debias=False)
    with pytest.raises(SettingError, match="debias=true .* recycle=true"):
        SparseVLM(recycle=True, debias=True)


def test_a_token_outside_a_words_window_scores_nothing() -> None:
    rows = np.array([[[0.0, 0.25, 0.75]]], np.float32)
    assert unbiased(rows, np.array([[0.0, 0.5, 0.25]], np.float32)).tolist() == [[[0.0, 0.5, 3.0]]]


def clusters(x: np.ndarray, kept: list[int], scores: list[float]) -> dict[int, set[int]]:
    """Centre to members of the best dropped tokens, by density peaks in plain loops."""
    rest = {i: s for i, s in enumerate(scores) if i not in kept}
    again = best_of(rest, int(0.3 * len(rest)) + 1)
    count = len(again) // 10 + 1

    def apart(a: int, b: int) -> float:
        return math.dist(x[a].astype(float), x[b].astype(float)) / math.sqrt(x.shape[1])

    near = {a: sorted(apart(a, b) for b in again)[:count] for a in again}
    density = {a: math.exp(-sum(d * d for d in near[a]) / count) for a in again}
    far = max(apart(a, b) for a in again for b in again)
    gap = {
        a: min([apart(a, b) for b in again if density[b] > density[a]], default=far) for a in again
    }
    centres = sorted(again, key=lambda a: (-density[a] * gap[a], a))[:count]
    out: dict[int, set[int]] = {c: {c} for c in centres}
    for a in again:
        if a not in out:
            out[min(centres, key=lambda c: (apart(a, c), centres.index(c)))].add(a)
    return out


def check_merge(reduction: Any, want: dict[int, set[int]], x: np.ndarray) -> None:
    assert reduction.anchor.tolist() == sorted(want)
    out = arrays.apply(reduction, x)
    for row, anchor in enumerate(reduction.anchor.tolist()):
        members = sorted(want[anchor])
        assert np.allclose(out[row], x[members].mean(0), atol=1e-5)


def test_recycling_many_tokens_makes_several_clusters() -> None:
    x = np.random.default_rng(7).standard_normal((160, 12)).astype(np.float32)
    scores = np.random.default_rng(8).random(160)
    kept = best_of(dict(enumerate(scores)), 40)
    merged = clusters(x, kept, scores.tolist())
    assert len(merged) == 4
    got = recycled(x, np.asarray(kept), scores)
    check_merge(got, {**{i: {i} for i in kept}, **merged}, x)
