"""Every token method, one contract: counts, equal choices on numpy and torch, edge cases, no
mixing of images.
"""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction
from typing import Any

import numpy as np
import pytest

from foveate.core import Counts, PlanRng, Reduction, Segment, arrays, methods, resolve
from foveate.core.budget import Budget
from foveate.core.errors import InputError, NonFiniteError, UnsupportedError
from tests.methods.synthetic import as_tensors, question, segment

torch = pytest.importorskip("torch")

METHODS: dict[str, Any] = dict(methods("tokens"))
NAMES = list(METHODS)
CONTROLS = {name for name, m in METHODS.items() if m.evidence == "control"}
TOWERS = ["cls", "plain", "merger"]
RNG = PlanRng(7)
every = pytest.mark.parametrize("name", NAMES)


def is_video(name: str) -> bool:
    return bool(getattr(METHODS[name], "video_only", False))


def needs_encoder(name: str) -> bool:
    return any(n.what not in ("question", "clip") for n in METHODS[name].needs)


def grids_of(name: str, size: str = "small") -> list[tuple[int, int, int]]:
    """Unequal pictures, or videos for the methods that take nothing else."""
    if size == "large":
        return [(4, 12, 12)] if is_video(name) else [(1, 24, 24)]
    return [(4, 3, 5), (6, 4, 4)] if is_video(name) else [(1, 6, 6), (1, 4, 9), (1, 7, 5)]


def request_of(
    name: str, style: str = "random", tower: str = "cls", size: str = "small"
) -> list[Segment]:
    return [
        segment(METHODS[name], grid, image=i, ordinal=i, style=style, tower=tower)
        for i, grid in enumerate(grids_of(name, size))
    ]


def method_of(name: str, **budget: Any) -> Any:
    return METHODS[name].from_settings(budget)


def counts_of(method: Any, segments: list[Segment]) -> Counts:
    """As the engine resolves them: the budget, then each method's own floor or rounding."""
    images = sorted({s.image for s in segments})
    sizes = [[s.n for s in segments if s.image == i] for i in images]
    parts = resolve(method.budget, sizes).per_segment
    if method.counts == "request":
        return Counts(sum(parts), parts, False)
    own = tuple(method.count(s.grid, k) for s, k in zip(segments, parts, strict=True))
    return Counts(sum(own), own, method.counts == "image")


def same(a: Reduction, b: Reduction) -> bool:
    if a.space != b.space or a.anchor.tolist() != b.anchor.tolist() or a.is_pick != b.is_pick:
        return False
    if a.is_pick:
        return True
    n = a.n + 4
    dense = []
    for r in (a, b):
        w = np.zeros((r.k, n))
        np.add.at(w, (r.rows, r.cols), r.weights)
        dense.append(w)
    return bool(np.array_equal(dense[0] != 0, dense[1] != 0) and np.allclose(*dense, atol=1e-6))


def specials(item: Segment) -> int:
    special = item.encoder.special if item.encoder is not None else None
    return 0 if special is None else int(special.shape[0])


def select(
    method: Any, segments: list[Segment], counts: Counts, ask: Any = None
) -> list[Reduction]:
    out = method.select(segments, counts, ask if ask is not None else question(), RNG)
    assert len(out) == len(segments)
    for reduction, item in zip(out, segments, strict=True):
        reduction.check(specials(item) if reduction.space == "encoder" else 0)
        assert reduction.n == item.n
    return out


def test_the_registry_lists_what_the_house_ships() -> None:
    assert {"random", "uniform", "pool", "divprune", "visionzip", "evs"} <= set(NAMES)
    for name, cls in METHODS.items():
        assert cls.summary and len(cls.summary) <= 90, name
        assert cls.evidence in ("golden", "reference", "reconstructed", "control"), name
        assert (cls.paper is None) == (cls.evidence == "control"), name


@every
@pytest.mark.parametrize("tower", TOWERS)
@pytest.mark.parametrize("style", ["random", "constant", "repeated"])
@pytest.mark.parametrize("keep", ["1/9", "1/4", "2/3"])
def test_counts_are_met_and_numpy_and_torch_agree(
    name: str, tower: str, style: str, keep: str
) -> None:
    method = method_of(name, keep=keep)
    segments = request_of(name, style, tower)
    counts = counts_of(method, segments)
    out = select(method, segments, counts)
    if method.counts == "image":
        assert [r.k for r in out] == list(counts.per_segment)
    elif method.counts == "request":
        assert sum(r.k for r in out) == counts.total
    for image in {s.image for s in segments}:
        assert sum(r.k for r, s in zip(out, segments, strict=True) if s.image == image) >= 1
    tensors = [as_tensors(s, torch.from_numpy) for s in segments]
    again = select(method, tensors, counts, question(torch.from_numpy))
    assert all(same(a, b) for a, b in zip(out, again, strict=True))
    # The merged features must be finite and of the right shape on both libraries.
    for r, a, b in zip(out, segments, tensors, strict=True):
        space = r.space == "encoder"
        x = a.encoder.features if space else a.features
        y = b.encoder.features if space else b.features
        extra = (a.encoder.special, b.encoder.special) if space else (None, None)
        left, right = arrays.apply(r, x, extra[0]), arrays.apply(r, y, extra[1])
        assert left.shape == (r.k, x.shape[1]) and np.isfinite(left).all()
        assert np.allclose(left, right.numpy(), atol=1e-4)


@every
def test_a_full_size_picture_agrees_too(name: str) -> None:
    method = method_of(name, keep="1/9")
    segments = request_of(name, "random", "cls", "large")
    counts = counts_of(method, segments)
    out = select(method, segments, counts)
    again = select(
        method,
        [as_tensors(s, torch.from_numpy) for s in segments],
        counts,
        question(torch.from_numpy),
    )
    assert all(same(a, b) for a, b in zip(out, again, strict=True))
    assert same(out[0], select(method, segments, counts)[0]), "the second run differs"


@every
def test_a_budget_at_or_above_the_tokens_is_the_identity(name: str) -> None:
    segments = request_of(name)
    method = method_of(name, keep=1)
    counts = counts_of(method, segments)
    assert counts.per_segment == tuple(s.n for s in segments)
    for reduction in select(method, segments, counts):
        assert reduction.is_identity


@every
def test_one_image_never_decides_over_another(name: str) -> None:
    """Order of the segments, and company of other images, change nothing in an image's own
    choice.
    """
    if METHODS[name].counts == "request":
        pytest.skip("one budget over all images: their company decides, by definition")
    method = method_of(name, keep="1/3")
    segments = request_of(name)
    counts = counts_of(method, segments)
    out = select(method, segments, counts)
    backwards = Counts(counts.total, counts.per_segment[::-1], counts.exact)
    turned = select(method, segments[::-1], backwards)[::-1]
    assert all(same(a, b) for a, b in zip(out, turned, strict=True))
    for item, k, reduction in zip(segments, counts.per_segment, out, strict=True):
        assert same(select(method, [item], Counts(k, (k,), counts.exact))[0], reduction)


@every
def test_the_order_of_images_does_not_change_who_keeps_what(name: str) -> None:
    method = method_of(name, per_request=20 if not is_video(name) else 60)
    segments = request_of(name)
    counts = counts_of(method, segments)
    out = select(method, segments, counts)
    backwards = Counts(counts.total, counts.per_segment[::-1], counts.exact)
    turned = select(method, segments[::-1], backwards)[::-1]
    assert [r.k for r in out] == [r.k for r in turned]


@every
@pytest.mark.parametrize("make", [np.asarray, torch.from_numpy], ids=["numpy", "torch"])
def test_features_that_are_not_finite_are_an_error(name: str, make: Any) -> None:
    method = method_of(name, keep="1/2")
    segments = request_of(name)
    broken = np.array(segments[0].features)
    broken[3, 1] = np.nan
    segments[0] = replace(segments[0], features=broken)
    counts = counts_of(method, segments)
    with pytest.raises(NonFiniteError, match="token 3"):
        select(method, [as_tensors(s, make) for s in segments], counts, question(make))


@every
def test_attention_that_is_not_finite_is_an_error(name: str) -> None:
    layers = [n.layer for n in METHODS[name].needs if n.what in ("saliency", "received", "cls")]
    if not layers:
        pytest.skip("no attention asked for")
    method = method_of(name, keep="1/2")
    segments = request_of(name, tower="plain")
    for at in segments[0].encoder.at.values():
        at.received[2] = np.inf
    with pytest.raises(NonFiniteError):
        select(method, segments, counts_of(method, segments))


@every
def test_what_a_family_does_not_give_is_refused(name: str) -> None:
    if not needs_encoder(name):
        pytest.skip("projected tokens alone")
    method = method_of(name, keep="1/2")
    segments = request_of(name, tower="none")
    with pytest.raises(UnsupportedError, match=name):
        select(method, segments, counts_of(method, segments))
    bare = request_of(name)
    nothing = {"at": {}, "hidden": {}, "features": None, "joint": None}
    bare = [replace(s, encoder=replace(s.encoder, **nothing)) for s in bare]
    with pytest.raises(UnsupportedError, match=name):
        select(method, bare, counts_of(method, bare))


@every
def test_a_method_of_the_question_asks_for_one(name: str) -> None:
    if not any(n.what in ("question", "clip") for n in METHODS[name].needs):
        pytest.skip("does not look at the question")
    method = method_of(name, keep="1/2")
    segments = request_of(name)
    with pytest.raises((InputError, UnsupportedError)):
        method.select(segments, counts_of(method, segments), None, RNG)


@every
def test_tiles_may_keep_nothing_and_single_tokens_stay(name: str) -> None:
    if is_video(name):
        pytest.skip("videos are one segment each")
    cls = METHODS[name]
    grids = [(1, 4, 4), (1, 4, 4), (1, 1, 1)]
    segments = [
        segment(cls, grid, image=image, ordinal=i, kind="tile", seed=i)
        for i, (grid, image) in enumerate(zip(grids, (0, 0, 1), strict=True))
    ]
    method = method_of(name, keep="1/4")
    counts = Counts(5, (4, 0, 1), cls.counts == "image")
    out = select(method, segments, counts)
    if cls.counts == "image":
        assert [r.k for r in out] == [4, 0, 1]
        assert out[1].anchor.shape == (0,) and out[2].is_identity
    elif cls.counts == "request":
        assert sum(r.k for r in out) == 5 and out[2].k == 1


@every
def test_every_count_of_a_small_picture_works(name: str) -> None:
    grid = (3, 3, 4) if is_video(name) else (1, 4, 5)
    for tower in TOWERS:
        item = segment(METHODS[name], grid, tower=tower)
        for k in range(1, item.n + 1):
            method = method_of(name, per_image=k)
            counts = counts_of(method, [item])
            out = select(method, [item], counts)[0]
            if method.counts != "adaptive":
                assert out.k == counts.total
            assert out.k >= 1


@every
def test_the_seed_matters_to_the_random_choice_alone(name: str) -> None:
    method = method_of(name, keep="1/3")
    segments = request_of(name)
    counts = counts_of(method, segments)
    a = method.select(segments, counts, question(), PlanRng(1))
    b = method.select(segments, counts, question(), PlanRng(2))
    assert all(same(x, y) for x, y in zip(a, b, strict=True)) == (name != "random")


@every
def test_counts_that_do_not_fit_are_an_error(name: str) -> None:
    segments = request_of(name)
    with pytest.raises(InputError):
        method_of(name, keep="1/2").select(segments, Counts(3, (3,)), question(), RNG)


@every
def test_settings_survive_their_text_form(name: str) -> None:
    method = method_of(name, keep="1/4")
    assert METHODS[name].from_settings(method.settings) == method
    assert method.budget == Budget(keep=Fraction(1, 4))
