"""What is asked of a pixel method, and that its answers are held to the contract. No torch, no model."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from foveate.core.errors import PlanError, UnsupportedError
from foveate.core.look import picture_view, plans_of, refuse, tiled, tokens_of, video_view
from foveate.core.method import PixelMethod
from foveate.core.rng import PlanRng
from foveate.core.views import PixelPlan


class Rule:
    """A family of tiles of 10 x 10 pixels and 4 tokens each, the whole picture last."""

    def __init__(self, resizes: bool = True, droppable: bool = True) -> None:
        self.resizes, self.droppable, self.tile_tokens = resizes, droppable, 4

    def seen(self, size: Any) -> Any:
        return size

    def tokens(self, size: Any, asked: Any = None, company: int = 1) -> int:
        return 4 * len(tiled(size, *self._grid(asked or size))[0])

    def tiling(self, size: Any, asked: Any = None) -> Any:
        return tiled(size, *self._grid(asked or size)) if self.droppable else None

    def _grid(self, size: Any) -> tuple[int, int]:
        return max(1, size[0] // 10), max(1, size[1] // 10)


class Answers(PixelMethod):
    name = "answers"
    summary = "says what it was told to say"
    plans: Any = ()

    def reduce(self, pixels: Any, rng: Any) -> Any:
        return list(type(self).plans)


def ask(
    monkeypatch: pytest.MonkeyPatch, plans: Any, rule: Rule | None = None, video: bool = False
) -> Any:
    monkeypatch.setattr(Answers, "plans", plans)
    array = np.zeros((20, 30, 3), np.uint8)
    shown = rule or Rule()
    view = picture_view(0, array, shown)
    if video:
        view = video_view(0, np.zeros((4, 20, 30, 3), np.uint8), np.arange(4.0), "answers")
    return plans_of(Answers(), [view], shown, PlanRng(0))


def test_sound_answers_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    for plan in (PixelPlan(), PixelPlan(size=(10, 15)), PixelPlan(tiles=(0, 6))):
        assert ask(monkeypatch, [plan]) == [plan]
    assert ask(monkeypatch, [PixelPlan(frames=(1, 3))], video=True) == [PixelPlan(frames=(1, 3))]
    assert plans_of(Answers(), [], Rule(), PlanRng(0)) == []


@pytest.mark.parametrize(
    "plans,video",
    [
        ([], False),
        ([PixelPlan(size=(0, 5))], False),
        ([PixelPlan(tiles=())], False),
        ([PixelPlan(tiles=(2, 1))], False),
        ([PixelPlan(tiles=(0, 7))], False),
        ([PixelPlan(frames=(0,))], False),
        ([PixelPlan(patches=(0,))], False),
        ([PixelPlan(frames=(3, 4))], True),
    ],
)
def test_answers_that_do_not_fit_are_plan_errors(
    plans: Any, video: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(PlanError, match="answers"):
        ask(monkeypatch, plans, video=video)


def test_what_a_family_cannot_follow_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    for plan, video in ((PixelPlan(size=(5, 5)), True), (PixelPlan(tiles=(0,)), True)):
        with pytest.raises(UnsupportedError, match="answers"):
            ask(monkeypatch, [plan], video=video)
    with pytest.raises(UnsupportedError, match="one size"):
        ask(monkeypatch, [PixelPlan(size=(5, 5))], Rule(resizes=False))
    for acts, rule, text in (
        ("size", Rule(resizes=False), "same number of tokens"),
        ("tiles", Rule(droppable=False), "every part"),
    ):
        monkeypatch.setattr(Answers, "acts", acts)
        with pytest.raises(UnsupportedError, match=text):
            refuse(Answers(), "a family", rule, videos=False)
        with pytest.raises(UnsupportedError, match="brings videos"):
            refuse(Answers(), "a family", Rule(), videos=True)
        refuse(Answers(), "a family", Rule(), videos=False)


@given(st.tuples(st.integers(1, 60), st.integers(1, 60)), st.integers(1, 5), st.integers(1, 5))
def test_tiles_cover_the_picture_once(size: tuple[int, int], rows: int, cols: int) -> None:
    boxes, thumbnail = tiled(size, rows, cols)
    seen = np.zeros(size, dtype=int)
    for i, b in enumerate(boxes):
        seen[b.top : b.bottom, b.left : b.right] += i != thumbnail
    assert (seen == 1).all() and len(boxes) == rows * cols + (rows * cols > 1)


def test_tokens_count_tiles_or_the_size_asked_for() -> None:
    rule = Rule()
    assert tokens_of(rule, (20, 30), PixelPlan()) == 28
    assert tokens_of(rule, (20, 30), PixelPlan(size=(10, 10))) == 4
    assert tokens_of(rule, (20, 30), PixelPlan(tiles=(0, 6))) == 8
