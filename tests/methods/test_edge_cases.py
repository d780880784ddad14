"""Edge cases of every registered method of the encode stages: odd residuals, budgets at or above the
tokens, duplicate tokens, one token, constant pictures, unequal pictures, values that are not finite.

Methods are taken from the registry, so a new one is held to all of them without a line here.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from foveate.core import Attention, Reduction, Segment, arrays
from foveate.core.errors import FoveateError, NonFiniteError
from tests.methods.synthetic import as_tensors, question, segment
from tests.methods.test_contract import (
    METHODS,
    TOWERS,
    counts_of,
    every,
    is_video,
    method_of,
    same,
    select,
)

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.claim("C1")

MAKES = [np.asarray, torch.from_numpy]
Grid = tuple[int, int, int]


def picture(name: str, grid: Grid, **options: Any) -> Segment:
    """A picture of this grid, or as many frames as it has columns for methods of frames alone."""
    t, h, w = grid
    return segment(METHODS[name], (w, h, t) if is_video(name) and t == 1 else grid, **options)


def both(method: Any, segments: list[Segment]) -> list[Reduction]:
    """The choice, equal on numpy and torch and a second time, with the counts of the budget."""
    counts = counts_of(method, segments)
    out = select(method, segments, counts)
    tensors = [as_tensors(s, torch.from_numpy) for s in segments]
    again = select(method, tensors, counts, question(torch.from_numpy))
    assert all(same(a, b) for a, b in zip(out, again, strict=True))
    assert all(same(a, b) for a, b in zip(out, select(method, segments, counts), strict=True))
    if method.counts == "image":
        assert [r.k for r in out] == list(counts.per_segment)
    elif method.counts == "request":
        assert sum(r.k for r in out) == counts.total
    for reduction, item in zip(out, segments, strict=True):
        inside = reduction.space == "encoder"
        x = item.encoder.features if inside else item.features  # type: ignore[union-attr]
        special = item.encoder.special if inside else None  # type: ignore[union-attr]
        merged = arrays.apply(reduction, x, special)
        assert merged.shape == (reduction.k, x.shape[1]) and np.isfinite(merged).all()
    return out


@every
@pytest.mark.parametrize("tower", TOWERS)
@pytest.mark.parametrize("n", [25, 26])
def test_odd_and_even_residuals(name: str, tower: str, n: int) -> None:
    """Kept and left tokens of every parity are counted right, a single residual token too."""
    item = picture(name, (1, n // 13, 13) if n % 13 == 0 else (1, 5, 5), tower=tower)
    for k in (1, 2, 7, 8, item.n - 2, item.n - 1):
        both(method_of(name, per_image=k), [item])


@every
@pytest.mark.parametrize("budget", ["keep", "per_image", "per_request"])
@pytest.mark.parametrize("more", [0, 1, 1000])
def test_a_budget_at_or_above_the_tokens_keeps_all(name: str, budget: str, more: int) -> None:
    """A budget at or above the tokens is the identity, however it is written."""
    items = [
        picture(name, grid, image=i, ordinal=i) for i, grid in enumerate([(1, 4, 5), (1, 3, 7)])
    ]
    size = sum(s.n for s in items) if budget == "per_request" else max(s.n for s in items)
    if budget == "keep" and more:
        pytest.skip("a share above one is refused when the method is built")
    method = method_of(name, **{budget: 1 if budget == "keep" else size + more})
    if method.counts == "adaptive" and budget != "keep":
        out = select(method, items, counts_of(method, items))
        assert all(1 <= r.k <= s.n for r, s in zip(out, items, strict=True))
        return
    assert all(r.is_identity for r in both(method, items))


def doubled(item: Segment) -> Segment:
    """The segment with each token's features, attention and keys those of the token before it."""

    def twin(x: Any) -> Any:
        return None if x is None else np.repeat(x[::2], 2, axis=0)[: len(x)]

    view = item.encoder
    if view is not None:
        at = {
            layer: Attention(twin(a.cls), twin(a.received), twin(a.keys), a.query)
            for layer, a in view.at.items()
        }
        hidden = {layer: twin(x) for layer, x in view.hidden.items()}
        joint = twin(view.joint)
        view = replace(view, features=twin(view.features), at=at, hidden=hidden, joint=joint)
    return replace(item, features=twin(item.features), encoder=view)


@every
@pytest.mark.parametrize("keep", ["1/9", "1/2", "3/4"])
def test_duplicate_tokens(name: str, keep: str) -> None:
    """Every token twice: ties are broken alike in numpy and torch, and no token comes twice."""
    item = doubled(picture(name, (1, 6, 6)))
    for tower in ("cls", "plain"):
        view = item if tower == "cls" else doubled(picture(name, (1, 6, 6), tower=tower))
        (out,) = both(method_of(name, keep=keep), [view])
        inside = out.space == "encoder"
        own = out.anchor if not inside else out.anchor[out.anchor > 0]
        assert np.unique(own).size == own.size


@every
@pytest.mark.parametrize("tower", TOWERS)
@pytest.mark.parametrize("budget", [{"keep": "1/9"}, {"per_image": 1}, {"per_request": 1}])
def test_a_picture_of_one_token(name: str, tower: str, budget: dict[str, Any]) -> None:
    """One token in is one token out; a video's least is a token a frame or two."""
    item = picture(name, (1, 1, 2) if is_video(name) else (1, 1, 1), tower=tower)
    (out,) = both(method_of(name, **budget), [item])
    assert 1 <= out.k <= item.n
    if item.n == 1:
        assert out.is_identity


@every
@pytest.mark.parametrize("tower", TOWERS)
@pytest.mark.parametrize("value", [0.0, 1.0, -3e4])
def test_a_constant_picture(name: str, tower: str, value: float) -> None:
    """All tokens equal, zero vectors too: the count is met and nothing is divided by nothing."""
    item = picture(name, (1, 5, 7), style="constant", tower=tower)
    item = replace(item, features=np.full_like(item.features, value))
    view = item.encoder
    assert view is not None and view.features is not None
    hidden = {layer: np.full_like(x, value) for layer, x in view.hidden.items()}
    joint = None if view.joint is None else np.full_like(view.joint, value)
    features = np.full_like(view.features, value)
    item = replace(item, encoder=replace(view, features=features, hidden=hidden, joint=joint))
    for keep in ("1/9", "1/2"):
        both(method_of(name, keep=keep), [item])


@every
@pytest.mark.parametrize("keep", ["1/9", "1/3", "1/2"])
def test_unequal_pictures_of_one_request(name: str, keep: str) -> None:
    """A large, a constant, a narrow and a one-token picture stand in one request; each gets its own
    share, and all but request budgets choose as each would alone.
    """
    grids: list[Grid] = [
        (1, 9, 11),
        (1, 4, 4),
        (1, 1, 13),
        (1, 2, 2) if is_video(name) else (1, 1, 1),
    ]
    styles = ["random", "constant", "random", "random"]
    items = [
        picture(name, grid, style=style, image=i, ordinal=i)
        for i, (grid, style) in enumerate(zip(grids, styles, strict=True))
    ]
    method = method_of(name, keep=keep)
    out = both(method, items)
    assert all(r.k >= 1 for r in out)
    if method.counts != "request":
        for item, together in zip(items, out, strict=True):
            assert same(together, both(method, [item])[0])


def broken(item: Segment, where: str, value: float) -> Segment | None:
    """The segment with one value of `where` not finite; None if the method is not shown it."""

    def spoil(x: Any) -> Any:
        x = np.array(x)
        x[(2, *(0,) * (x.ndim - 1))] = value
        return x

    if where == "features":
        return replace(item, features=spoil(item.features))
    view = item.encoder
    assert view is not None
    if where == "encoder features":
        if not view.hidden:
            return None
        hidden = {layer: spoil(x) for layer, x in view.hidden.items()}
        joint = None if view.joint is None else spoil(view.joint)
        features = spoil(view.features)
        return replace(item, encoder=replace(view, hidden=hidden, features=features, joint=joint))
    if not view.at:
        return None
    at = {
        layer: Attention(
            a.cls if where == "keys" or a.cls is None else spoil(a.cls),
            a.received if where == "keys" or a.received is None else spoil(a.received),
            spoil(a.keys) if where == "keys" and a.keys is not None else a.keys,
            a.query,
        )
        for layer, a in view.at.items()
    }
    return replace(item, encoder=replace(view, at=at))


READS = {
    "features": (),
    "encoder features": ("features",),
    "attention": ("saliency", "received", "cls"),
    "keys": ("keys",),
}
MERGED_ONLY = {"visionzip", "prumerge", "prumerge-plus"}


@every
@pytest.mark.parametrize("where", list(READS))
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_values_that_are_not_finite_are_a_typed_error(name: str, where: str, value: float) -> None:
    """NaN or infinity in what a method reads is a NonFiniteError, never a choice."""
    wanted = {n.what for n in METHODS[name].needs}
    if where != "features" and not wanted & set(READS[where]):
        pytest.skip(f"reads no {where}")
    if where == "encoder features" and name in MERGED_ONLY:
        pytest.skip("these are merged and not compared; a projector hands NaN on to the features")
    item = broken(picture(name, (1, 6, 6)), where, value)
    if item is None:
        pytest.skip(f"is not shown {where}")
    method = method_of(name, keep="1/3")
    for make in MAKES:
        view = as_tensors(item, make)
        with pytest.raises(NonFiniteError) as caught:
            select(method, [view], counts_of(method, [view]), question(make))
        assert isinstance(caught.value, FoveateError) and caught.value.exit_code == 2


@every
def test_a_question_that_is_not_finite_is_a_typed_error(name: str) -> None:
    """A question with NaN is refused by the methods that read it."""
    if not any(n.what in ("question", "clip") for n in METHODS[name].needs):
        pytest.skip("does not look at the question")
    ask = question()
    ask = replace(ask, embeddings=ask.embeddings * np.nan, clip=ask.clip * np.nan)
    item = picture(name, (1, 6, 6))
    method = method_of(name, keep="1/3")
    with pytest.raises(NonFiniteError):
        select(method, [item], counts_of(method, [item]), ask)
