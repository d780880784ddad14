"""What every prefill method promises, on views of random tokens, numpy and torch alike."""

from __future__ import annotations

import dataclasses
from fractions import Fraction
from typing import Any

import numpy as np
import pytest

from foveate.core import arrays, registry
from foveate.core.errors import SettingError
from foveate.core.language import PrefillMethod
from foveate.core.views import Reduction
from tests.prefill.views import ToyView, toy_view

METHODS = registry.methods("prefill")
# Methods with trained weights need a file; they have tests of their own.
TRAINED = {n for n, m in METHODS.items() if any(f.name == "weights" for f in dataclasses.fields(m))}
VARIANTS: dict[str, dict[str, Any]] = {
    **{name: {} for name in METHODS if name not in TRAINED},
    "sparsevlm recycle": {"recycle": True},
    "sparsevlm plain": {"debias": False},
}
LAYERS = 16


def built(variant: str, **settings: Any) -> PrefillMethod:
    out = registry.build(variant.split()[0], **VARIANTS[variant], **settings)
    assert isinstance(out, PrefillMethod)
    return out


def whole(variant: str) -> PrefillMethod:
    """The method with a budget that is all tokens."""
    names = {f.name for f in dataclasses.fields(METHODS[variant.split()[0]])}
    if "ratios" in names:
        steps = len(built(variant).ratios.split())  # type: ignore[attr-defined]
        return built(variant, ratios=" ".join(["1"] * steps))
    if "keep" not in names:
        pytest.skip("it has no budget of its own")
    return built(variant, keep=1)


def narrowed(view: ToyView, reduction: Reduction | None) -> ToyView:
    """The view of a deeper layer after a route, as the engine would make it."""
    if reduction is None:
        return view
    visual = view.visual
    stays = np.sort(np.concatenate([np.flatnonzero(view.modality == 0), visual[reduction.anchor]]))
    hidden = np.array(arrays.to_numpy(view.hidden))
    hidden[visual[reduction.anchor]] = arrays.apply(reduction, hidden[visual])
    return dataclasses.replace(
        view,
        hidden=hidden[stays] if isinstance(view.hidden, np.ndarray) else _torch(hidden[stays]),
        modality=view.modality[stays],
        q={n: x[:, stays] for n, x in view.q.items()},
        k={n: x[:, stays] for n, x in view.k.items()},
        question=view.question[stays],
        origin=np.asarray(view.origin)[stays],
        segment=np.asarray(view.segment)[stays],
        cell=np.asarray(view.cell)[stays],
        guidance=None if view.guidance is None else view.guidance[reduction.anchor],
    )


def _torch(x: np.ndarray) -> Any:
    import torch

    return torch.from_numpy(x)


def played(method: PrefillMethod, view: ToyView) -> list[list[int]]:
    """Origins of the visual tokens present after each decision."""
    state, out = None, []
    for layer in method.layers(view.layers):
        if not view.visual.size:
            out.append([])
            continue
        route, state = method.decide(layer, view, state)
        assert route.park is None and route.recall is None
        if route.keep is not None:
            route.keep.check()
            assert route.keep.n == view.visual.size and route.keep.space == "hidden"
        view = narrowed(view, route.keep)
        out.append(np.asarray(view.origin)[view.visual].tolist())
    return out


@pytest.mark.parametrize("variant", VARIANTS)
def test_layers_ascend_within_the_model(variant: str) -> None:
    for count in (6, 16, 28, 32):
        at = built(variant).layers(count)
        assert at and list(at) == sorted(set(at)) and 0 <= at[0] <= at[-1] < count


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_choice_is_the_same_twice_and_on_torch(variant: str) -> None:
    for seed in range(3):
        found = [
            played(built(variant), toy_view(24, seed=seed, layers=LAYERS, library=library))
            for library in ("numpy", "numpy", "torch")
        ]
        assert found[0] == found[1] == found[2]


@pytest.mark.parametrize("variant", VARIANTS)
def test_counts_never_grow_and_text_stays(variant: str) -> None:
    view = toy_view(30, lead=4, tail=6, seed=1, layers=LAYERS)
    steps = [list(range(4, 34)), *played(built(variant), view)]
    for before, after in zip(steps, steps[1:], strict=False):
        assert set(after) <= set(before)
    assert len(steps[-1]) < 30


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_budget_of_all_tokens_is_the_identity(variant: str) -> None:
    method, view = whole(variant), toy_view(17, seed=2, layers=LAYERS)
    state = None
    for layer in method.layers(LAYERS):
        route, state = method.decide(layer, view, state)
        assert route.keep is None or route.keep.is_identity


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("visual", [1, 2, 3])
def test_few_tokens(variant: str, visual: int) -> None:
    steps = played(built(variant), toy_view(visual, seed=3, layers=LAYERS))
    assert all(len(s) <= visual for s in steps)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize(("lead", "tail"), [(0, 4), (4, 0), (0, 1)])
def test_a_picture_at_either_end(variant: str, lead: int, tail: int) -> None:
    assert played(built(variant), toy_view(20, lead=lead, tail=tail, seed=4, layers=LAYERS))


NOT_BY_RANK = {
    "sparsevlm": "it divides by what the places of tokens give, which differ",
    "sparsevlm recycle": "its merged tokens stand at their centres, behind the kept ones",
    "topv": "it weighs the places of tokens, which differ",
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_of_equal_tokens_the_first_stays(variant: str) -> None:
    """Tokens that nothing tells apart: rank alone decides, and it goes to the lowest index."""
    view = toy_view(12, seed=5, layers=LAYERS)
    flat = [np.array(x) for x in (view.hidden, *view.q.values(), *view.k.values())]
    view.hidden = flat[0]
    view.hidden[view.visual] = view.hidden[view.visual[0]]
    for found in (view.q, view.k):
        for name in found:
            found[name] = np.array(found[name])
            found[name][:, view.visual] = found[name][:, view.visual[:1]]
    if variant in NOT_BY_RANK:
        pytest.skip(NOT_BY_RANK[variant])
    view.guidance = np.ones_like(view.guidance)
    before = np.asarray(view.origin)[view.visual].tolist()
    for after in played(built(variant), view):
        assert after == before[: len(after)]
        before = after


@pytest.mark.parametrize("variant", VARIANTS)
def test_layers_outside_the_model_are_refused(variant: str) -> None:
    names = {f.name for f in dataclasses.fields(METHODS[variant.split()[0]])}
    field = next((n for n in ("layer", "at", "l2", "start") if n in names), None)
    if field is None:
        pytest.skip("it names no layer")
    value = "9 10 99" if field == "at" else 99
    with pytest.raises(SettingError, match="layers are 0 to 15"):
        built(variant, **{field: value}).layers(16)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("keep", ["0", "-1/2", "3/2"])
def test_budgets_out_of_range_are_refused(variant: str, keep: str) -> None:
    names = {f.name for f in dataclasses.fields(METHODS[variant.split()[0]])}
    field = next((n for n in ("keep", "ratios") if n in names), None)
    if field is None:
        pytest.skip("it has no budget of its own")
    with pytest.raises(SettingError, match=field):
        built(variant, **{field: keep if field == "keep" else f"{keep} {keep} {keep}"})


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_tiny_budget_keeps_one_token(variant: str) -> None:
    names = {f.name for f in dataclasses.fields(METHODS[variant.split()[0]])}
    share = Fraction(1, 1000)
    if "keep" in names:
        steps = played(built(variant, keep=share), toy_view(20, layers=LAYERS))
    elif "ratios" in names:
        ratios = " ".join([str(share)] * 3)
        steps = played(built(variant, ratios=ratios), toy_view(20, layers=LAYERS))
    else:
        pytest.skip("it has no budget of its own")
    assert min(map(len, steps)) >= 1


def test_schedules_that_grow_are_refused() -> None:
    for name in ("pyramiddrop", "sparsevlm"):
        with pytest.raises(SettingError, match="ratios grows from 1/4 to 1/2"):
            registry.build(name, ratios="1/4 1/2 1/8")
        with pytest.raises(SettingError, match="ratios has 2 numbers for 3 layers"):
            registry.build(name, ratios="1/2 1/4")
        with pytest.raises(SettingError, match="at must ascend"):
            registry.build(name, at="8 8 16")
        with pytest.raises(SettingError, match="mixes layers and shares"):
            registry.build(name, at="1/4 8 16")
        with pytest.raises(SettingError, match="is no list of numbers"):
            registry.build(name, at="a b c")
