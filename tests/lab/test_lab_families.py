"""Answers of the later families, worked out again from what the picture holds."""

from __future__ import annotations

import sys
from collections import Counter

import numpy as np
import pytest

from foveate.core.errors import MissingExtraError
from foveate.lab import FAMILIES, samples
from foveate.lab.canvas import EDGES, Layer, Scene, cells
from foveate.lab.looks import TEST_LOOK
from foveate.lab.score import parse_box
from foveate.lab.tasks import ALONE, DRAWERS, easyvqa, stream
from foveate.lab.words import GLYPHS, ORDINALS, WORDS, normalise, quarter, vocabulary


def _scenes(kind: str, count: int = 25, level: int = 0) -> list[Scene]:
    draw = ALONE.get(kind) or DRAWERS[kind]
    return [draw(stream("test", f"again/{kind}", level, i), TEST_LOOK, level) for i in range(count)]


def _asks(scene: Scene, family: str) -> list[tuple[list[str], str]]:
    return [
        (normalise(ask.question).split(), ask.answer) for ask in scene.asks if ask.family == family
    ]


def _spelled(scene: Scene, box: tuple[int, int, int, int]) -> str:
    """The characters that the dense labels name in a box, from left to right."""
    left, _, right, bottom = box
    row = scene.canvas.labels[Layer.GLYPH, bottom - 2, left:right]
    slots = scene.canvas.labels[Layer.SLOT, bottom - 2, left:right]
    return "".join(
        GLYPHS[int(row[slots == slot][0]) - 1] for slot in range(1, int(slots.max()) + 1)
    )


def test_nearest_names_the_nearest_thing() -> None:
    seen = 0
    for scene in _scenes("scene"):
        asks = [ask for ask in scene.asks if ask.family == "nearest"]
        for ask in asks:
            left, top, right, bottom = ask.boxes[1]
            x, y = (left + right) / 2, (top + bottom) / 2
            far = sorted(
                (np.hypot(t.centre[0] - x, t.centre[1] - y), t.shape, t.colour)
                for t in scene.things
            )
            assert ask.answer in far[0][1:]
            assert far[1][0] - far[0][0] >= 8
            seen += 1
    assert seen > 20


def test_ground_answers_the_box_of_the_only_such_thing() -> None:
    seen = 0
    for scene in _scenes("scene"):
        for ask in (ask for ask in scene.asks if ask.family == "ground"):
            colour, shape = normalise(ask.question).split()[-2:]
            (only,) = [t for t in scene.things if (t.colour, t.shape) == (colour, shape)]
            box = parse_box(ask.answer)
            assert box is not None
            assert max(abs(a - b) for a, b in zip(box, only.box, strict=True)) <= 2
            middle = tuple(int(c) for c in only.centre)
            labels = [int(scene.canvas.labels[edge, middle[1], middle[0]]) for edge in EDGES]
            assert "".join(f"{label - 1:02d}" for label in labels) == ask.answer
            seen += 1
    assert seen > 20


def test_negation_is_balanced_and_true() -> None:
    answers: Counter[str] = Counter()
    for scene in _scenes("scene", 120):
        pairs = {(t.colour, t.shape) for t in scene.things}
        values = {value for pair in pairs for value in pair}
        for words, answer in _asks(scene, "negation"):
            if words[:3] == ["is", "there", "no"]:
                assert answer == ("no" if (words[3], words[4]) in pairs else "yes")
                answers[answer] += 1
            else:
                one, two = words[-3], words[-1]
                assert {one, two} - values == {answer}
                answers["first" if answer == one else "second"] += 1
    assert 40 <= answers["yes"] <= 80
    assert 35 <= answers["first"] <= 85


@pytest.mark.parametrize(("level", "unit"), [(0, 10), (1, 8), (2, 4)])
def test_points_stand_as_high_as_they_say(level: int, unit: int) -> None:
    for scene in _scenes("line", 10, level):
        values = [(int(ask.answer), ask.boxes[0]) for ask in scene.asks]
        for value, box in values[1:]:
            fallen = box[1] - values[0][1][1]
            assert (values[0][0] - value) * unit == fallen


@pytest.mark.parametrize("level", [0, 1, 2])
def test_table_cells_carry_their_row_and_their_column(level: int) -> None:
    for scene in _scenes("table", 10, level):
        for ask in scene.asks:
            words = normalise(ask.question).split()
            head, name = words[3], words[5]
            left, top, right, bottom = ask.boxes[2]
            y, x = (top + bottom) // 2, (left + right) // 2
            assert WORDS[scene.canvas.labels[Layer.WORD, y, x] - 1] == name
            assert WORDS[scene.canvas.labels[Layer.HEAD, y, x] - 1] == head
            assert _spelled(scene, ask.boxes[2]) == ask.answer
        assert len({ask.question for ask in scene.asks}) == len(scene.asks)


@pytest.mark.parametrize("level", [0, 1, 2])
def test_number_is_the_bigger_or_the_smaller(level: int) -> None:
    for scene in _scenes("numbers", 15, level):
        printed = [int(text) for text in scene.texts]
        for words, answer in _asks(scene, "number"):
            assert int(answer) == (max if "bigger" in words else min)(printed)
        if level == 0:
            assert printed[0] // 10 != printed[1] // 10


def test_which_picture_has_the_thing() -> None:
    counts = set()
    for scene in _scenes("which"):
        counts.add(len(scene.parts))
        for words, answer in _asks(scene, "which"):
            homes = [
                i
                for i, part in enumerate(scene.parts)
                if (words[-2], words[-1]) in {(t.colour, t.shape) for t in part.things}
            ]
            assert homes == [ORDINALS.index(answer)]
    assert counts == {2, 3, 4}


def test_changed_names_the_one_property() -> None:
    answers: Counter[str] = Counter()
    for scene in _scenes("changed", 80):
        before, after = (part.things for part in scene.parts)
        gone = [(a, b) for a, b in zip(before, after, strict=True) if a != b]
        ((_, answer),) = _asks(scene, "changed")
        answers[answer] += 1
        if answer == "nothing":
            assert not gone
            continue
        ((a, b),) = gone
        changed = {"colour": a.colour != b.colour, "shape": a.shape != b.shape}
        changed["place"] = a.box != b.box
        assert [name for name, is_so in changed.items() if is_so] == [answer]
    assert set(answers) == {"colour", "shape", "place", "nothing"}
    assert max(answers.values()) < 40


@pytest.mark.parametrize("level", [0, 1])
def test_sum_adds_both_totals(level: int) -> None:
    for scene in _scenes("sum", 15, level):
        ((_, answer),) = _asks(scene, "sum")
        totals = [part.texts[part.texts.index("total") + 1] for part in scene.parts]
        assert int(answer) == sum(int(total) for total in totals)
        carries = any(int(a) + int(b) > 9 for a, b in zip(*totals, strict=True))
        assert carries == (level > 0)


@pytest.mark.parametrize(("level", "pictures"), [(0, 4), (1, 8), (2, 16)])
def test_needle_lies_in_one_picture(level: int, pictures: int) -> None:
    for scene in _scenes("needle", 6, level):
        assert len(scene.parts) == pictures
        (ask,) = [ask for ask in scene.asks if ask.family == "needle"]
        assert [part.texts for part in scene.parts if part.texts] == [[ask.answer]]
        assert scene.parts[ask.pictures[0]].texts == [ask.answer]


@pytest.mark.parametrize(("level", "frames"), [(0, 4), (1, 16), (2, 64)])
def test_time_is_read_from_the_frames(level: int, frames: int) -> None:
    for scene in _scenes("when", 6, level):
        assert len(scene.parts) == frames
        first: dict[str, int] = {}
        shapes: dict[str, str] = {}
        for i, part in enumerate(scene.parts):
            for thing in part.things:
                first.setdefault(thing.colour, i)
                shapes[thing.colour] = thing.shape
        order = sorted(first, key=first.__getitem__)
        for words, answer in _asks(scene, "when"):
            assert answer == quarter(first[words[2]], frames)
            assert answer == ORDINALS[first[words[2]] * 4 // frames]
        for words, answer in _asks(scene, "appeared"):
            at = {"first": 0, "last": -1}.get(words[-1])
            colour = order[at] if at is not None else order[order.index(words[-1]) + 1]
            assert answer == (colour if words[1] == "colour" else shapes[colour])


@pytest.mark.parametrize("name", [n for n, f in FAMILIES.items() if f.kind in ("album", "frames")])
def test_evidence_names_its_picture(name: str) -> None:
    for level in range(FAMILIES[name].levels):
        (sample,) = samples(name, "test", 1, 3, level)
        assert len(sample.box_images) == len(sample.boxes)
        for box, at in zip(sample.boxes, sample.box_images, strict=True):
            left, top, right, bottom = box
            inside = np.asarray(sample.images[at])[top:bottom, left:right].reshape(-1, 3)
            assert np.ptp(inside.astype(int), axis=0).max() > 60


def test_easyvqa_splits_and_words() -> None:
    parts = {name: easyvqa.load(name) for name in ("train", "dev", "test")}
    files = {name: set(known.values()) for name, (known, _) in parts.items()}
    assert [len(files[name]) for name in ("train", "dev", "test")] == [3600, 400, 1000]
    assert not files["train"] & files["dev"]
    assert all("train" in file for file in files["train"] | files["dev"])
    assert all("test" in file for file in files["test"])
    words = {
        word
        for _, asked in parts.values()
        for rows in asked.values()
        for question, answer in rows
        for word in (*question.split(), answer)
    }
    assert words <= set(vocabulary())


def test_easyvqa_facts_agree_with_every_answer() -> None:
    """The labels drawn from some answers must not contradict the others."""
    _, asked = easyvqa.load("test")
    known = 0
    for rows in asked.values():
        shape, colour = easyvqa.facts(rows)
        known += shape is not None and colour is not None
        for question, answer in rows:
            words = question.split()
            denied = "not" in words or "no" in words
            named = [word for word in words if word in (shape, colour)]
            if answer not in ("yes", "no"):
                assert answer in (shape, colour)
            elif named:
                assert (answer == "yes") != denied
    assert known > 0.5 * len(asked)


def test_easyvqa_box_holds_the_shape() -> None:
    for sample in samples("easyvqa", "test", 6):
        pixels = np.asarray(sample.image).astype(int)
        ((left, top, right, bottom),) = sample.boxes
        outside = np.ones(pixels.shape[:2], bool)
        outside[top:bottom, left:right] = False
        assert np.abs(pixels[outside] - np.median(pixels[outside], 0)).max() <= easyvqa.INK
        assert right - left < 112 and bottom - top < 112


def test_easyvqa_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    easyvqa.load.cache_clear()
    monkeypatch.setitem(sys.modules, "easy_vqa", None)
    with pytest.raises(MissingExtraError, match=r"foveate\[lab\]"):
        samples("easyvqa", "test", 1)


def test_cells_round_to_the_nearest() -> None:
    assert cells((1, 2, 111, 112)) == (0, 1, 28, 28)
