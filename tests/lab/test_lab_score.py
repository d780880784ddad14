"""Judging an answer: exact words, boxes by their overlap, and garbage that is only ever wrong."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from foveate.lab import samples
from foveate.lab.batches import IGNORED, Packer
from foveate.lab.looks import TEST_LOOK
from foveate.lab.measure import score
from foveate.lab.score import iou, is_right, parse_box
from foveate.lab.tasks import DRAWERS, FAMILIES, stream
from foveate.lab.tokenizer import build_tokenizer

BOX = samples("ground", "test", 1)[0]
WORD = samples("shape", "test", 1)[0]


@pytest.mark.parametrize("name", sorted(FAMILIES))
def test_the_true_answer_is_right(name: str) -> None:
    for sample in samples(name, "test", 3):
        assert is_right(sample, sample.answer)
        assert is_right(sample, f" {sample.answer}\n")
        assert not is_right(sample, sample.answer + "x")


@given(st.text(max_size=12))
def test_garbage_is_wrong_and_never_an_error(text: str) -> None:
    assert is_right(WORD, text) == (text.strip() == WORD.answer)
    if not (len(text.strip()) == 8 and all(char in "0123456789" for char in text.strip())):
        assert not is_right(BOX, text)
    else:
        is_right(BOX, text)


@pytest.mark.parametrize(
    "text",
    ["", "0408", "04081216x", "12081204", "00002929", "０４０８１２１６", "-4081216", "04 81216"],
)
def test_what_is_no_box(text: str) -> None:
    assert parse_box(text) is None


def test_a_box_is_right_from_half_overlap() -> None:
    assert parse_box("04081216") == (16, 32, 48, 64)
    assert iou((0, 0, 4, 4), (0, 0, 4, 4)) == 1
    assert iou((0, 0, 4, 4), (4, 0, 8, 4)) == 0
    assert iou((0, 0, 2, 2), (0, 0, 2, 4)) == 0.5
    left, top, right, bottom = (int(BOX.answer[i : i + 2]) for i in range(0, 8, 2))
    wider = f"{left:02d}{top:02d}{min(28, right + 1):02d}{bottom:02d}"
    assert is_right(BOX, wider)
    assert not is_right(BOX, f"{left:02d}{top:02d}{left + 1:02d}{top + 1:02d}")


def test_dev_scoring_judges_a_box_by_overlap() -> None:
    packer = Packer(build_tokenizer(), 8)
    rng = stream("test", "dev box", 0, 0)
    batch = packer.pack(rng, [DRAWERS["scene"](rng, TEST_LOOK, 0) for _ in range(2)], 16)
    truth = batch.targets[batch.targets != IGNORED]
    exact = torch.ones(len(truth), dtype=torch.bool)
    assert all(hit for _, hit in score(batch, exact, truth))
    digits = batch.digits.tolist()
    near = batch.targets.clone()
    for i, asks in enumerate(batch.asks):
        for j, ask in enumerate(asks):
            if ask.metric == "iou":  # the lower edge one cell off
                at = torch.nonzero((batch.segment[i] == j) & (batch.targets[i] != IGNORED))[7]
                digit = digits.index(int(near[i, at]))
                near[i, at] = digits[digit - 1 if digit else 1]
    near = near[batch.targets != IGNORED]
    judged = [hit for family, hit in score(batch, near == truth, near) if family == "ground"]
    strict = [hit for family, hit in score(batch, near == truth) if family == "ground"]
    assert len(judged) >= 2
    assert all(judged)
    assert not any(strict)
    far = torch.full_like(truth, digits[0])
    assert not any(hit for family, hit in score(batch, far == truth, far) if family == "ground")
