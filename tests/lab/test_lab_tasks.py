"""Rendered tasks: repeatable, disjoint splits, exact answers, boxes that hold the evidence."""

from __future__ import annotations

import sys

import numpy as np
import pytest

from foveate.core.errors import MissingExtraError, SettingError
from foveate.lab import FAMILIES, demo_pictures, samples
from foveate.lab.evidence import evidence_kept, evidence_tokens
from foveate.lab.looks import TEST_LOOK, TRAIN_LOOK, font
from foveate.lab.tasks import DRAWERS, stream
from foveate.lab.words import SIDE, normalise, vocabulary

NAMES = sorted(FAMILIES)


@pytest.mark.parametrize("name", NAMES)
def test_rendering_repeats(name: str) -> None:
    first, again = (samples(name, "test", 3, seed=5) for _ in range(2))
    for a, b in zip(first, again, strict=True):
        assert (a.question, a.answer, a.boxes) == (b.question, b.answer, b.boxes)
        assert a.image.tobytes() == b.image.tobytes()
    other = samples(name, "test", 3, seed=6)
    assert [s.image.tobytes() for s in other] != [s.image.tobytes() for s in first]


def test_n_extends_the_same_row() -> None:
    short, long = samples("count", "test", 2), samples("count", "test", 4)
    assert [s.image.tobytes() for s in short] == [s.image.tobytes() for s in long[:2]]


@pytest.mark.parametrize("name", NAMES)
def test_picture_mode_size_and_boxes(name: str) -> None:
    for level in range(FAMILIES[name].levels):
        for sample in samples(name, "test", 6, seed=1, level=level):
            assert sample.image.mode == "RGB"
            assert sample.image.size == (SIDE, SIDE)
            assert sample.family == name
            assert sample.kind == FAMILIES[name].kind
            assert sample.boxes
            for left, top, right, bottom in sample.boxes:
                assert 0 <= left < right <= SIDE
                assert 0 <= top < bottom <= SIDE


def test_looks_share_nothing() -> None:
    assert not set(TRAIN_LOOK.fonts) & set(TEST_LOOK.fonts)
    assert not set(TRAIN_LOOK.grounds) & set(TEST_LOOK.grounds)
    reach = TRAIN_LOOK.jitter + TEST_LOOK.jitter
    for name, anchors in TEST_LOOK.colours.items():
        for anchor in anchors:
            for known in TRAIN_LOOK.colours[name]:
                gap = np.abs(np.array(anchor) - np.array(known)).max()
                assert gap > reach, (
                    f"{name}: test shade {anchor} can be drawn in training ({known})"
                )


def test_streams_of_splits_differ() -> None:
    draws = {
        split: stream(split, "x", 0, 0).integers(0, 2**62) for split in ("train", "dev", "test")
    }
    assert len(set(draws.values())) == 3


def _patch_differs(sample_image: np.ndarray, box: tuple[int, int, int, int]) -> bool:
    left, top, right, bottom = box
    inside = sample_image[top:bottom, left:right].reshape(-1, 3).astype(int)
    return bool(np.ptp(inside, axis=0).max() > 60) or bool(inside.mean() < 200)


@pytest.mark.parametrize(
    "name",
    ["shape", "code", "form", "bar", "leftof", "nearest", "ground", "point", "table", "number"],
)
def test_boxes_hold_ink(name: str) -> None:
    for sample in samples(name, "test", 8, seed=2):
        image = np.asarray(sample.image)
        assert all(_patch_differs(image, box) for box in sample.boxes)


@pytest.mark.parametrize("name", ["code", "form"])
def test_text_ink_lies_in_its_box(name: str) -> None:
    """Every written character lies in an evidence box of some question."""
    for index in range(4):
        kind = FAMILIES[name].kind
        scene = DRAWERS[kind](stream("test", f"ink{name}", 0, index), TEST_LOOK, 0)
        labels = scene.canvas.labels[0] > 0
        boxes = [
            box for ask in scene.asks if ask.family in ("code", "word", "form") for box in ask.boxes
        ]
        covered = np.zeros_like(labels)
        for left, top, right, bottom in boxes:
            covered[top:bottom, left:right] = True
        assert labels.any()
        assert (labels & ~covered).sum() == 0


def test_answers_follow_from_the_scene() -> None:
    for index in range(30):
        scene = DRAWERS["shapes"](stream("test", "answers", 0, index), TEST_LOOK, 0)
        colours = [thing.colour for thing in scene.things]
        for ask in scene.asks:
            words = normalise(ask.question).split()
            if ask.family == "shape":
                (only,) = [t for t in scene.things if t.colour == words[-1]]
                assert only.shape == ask.answer
                assert ask.boxes == (only.box,)
            if ask.question == "How many objects?":
                assert ask.answer == str(len(scene.things))
            if ask.family == "exists":
                there = any([t.colour, t.shape] == words[-2:] for t in scene.things)
                assert ask.answer == ("yes" if there else "no")
            if ask.family == "quadrant":
                x, y = scene.things[colours.index(words[-1])].centre
                assert ask.answer.split() == [
                    "top" if y < 56 else "bottom",
                    "left" if x < 56 else "right",
                ]
            if ask.family == "leftof":
                one, two = (scene.things[colours.index(words[i])].centre[0] for i in (1, -1))
                assert ask.answer == ("yes" if one < two else "no")


def test_bar_height_is_the_answer() -> None:
    for sample in samples("bar", "test", 10, seed=3):
        _, top, _, bottom = sample.boxes[0]
        assert (bottom - top) / 10 == int(sample.answer)


def test_exists_is_balanced_with_near_misses() -> None:
    answers = [s.answer for s in samples("exists", "test", 200)]
    assert 70 <= answers.count("yes") <= 130


def test_every_word_of_questions_and_answers_is_known() -> None:
    known = set(vocabulary())
    for name in NAMES:
        for sample in samples(name, "test", 10):
            words = normalise(sample.question).split()
            words += sample.answer.split() if sample.answer[0].islower() else []
            assert set(words) <= known


def test_demo_has_a_form_a_chart_and_a_scene() -> None:
    demo = demo_pictures(0)
    assert [sample.kind for sample in demo] == ["form", "bars", "shapes"]
    assert demo[0].image.tobytes() == demo_pictures(0)[0].image.tobytes()


def test_evidence_tokens_follow_boxes() -> None:
    mask = evidence_tokens([(0, 0, 16, 8)], (112, 112), (14, 14))
    assert np.flatnonzero(mask).tolist() == [0, 1]
    assert np.flatnonzero(evidence_tokens([(8, 9, 9, 10)], (112, 112), (14, 14))).tolist() == [15]
    assert evidence_kept(mask, [1, 5]) == 0.5


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"name": "shap"}, "did you mean shape"),
        ({"name": "shape", "split": "tset"}, "test"),
        ({"name": "shape", "n": 0}, "n must be 1 or more"),
        ({"name": "shape", "level": 1}, "out of range 0 to 0"),
        ({"name": "code", "level": 3}, "out of range 0 to 2"),
        ({"name": "code", "seed": -1}, "0 or more"),
    ],
)
def test_wrong_arguments_are_named(arguments: dict[str, object], words: str) -> None:
    with pytest.raises(SettingError, match=words):
        samples(**arguments)  # type: ignore[arg-type]


def test_training_fonts_name_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(MissingExtraError, match=r"foveate\[lab\]"):
        font("DejaVuSans", 97)
