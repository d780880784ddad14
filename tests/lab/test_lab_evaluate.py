"""The evaluator: intervals, priors, and verdicts from any function that answers."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from foveate.core.errors import CheckpointError, MissingExtraError, SettingError, UnsupportedError
from foveate.lab import FAMILIES, samples
from foveate.lab.evaluate import (
    Cell,
    blind_prior,
    cells,
    check_drawable,
    evaluate,
    question_type,
    table,
)
from foveate.lab.reader import Reader
from tests.models.tiny_processors import save_folder
from tests.support import tiny

Shown = Sequence[Sequence[Image.Image]]


def _silent(images: Shown, questions: Sequence[str]) -> list[str]:
    return [""] * len(images)


def test_question_type_blanks_what_the_picture_decides() -> None:
    assert question_type("What shape is red?") == question_type("What shape is pink?")
    assert question_type("How many are red?") == question_type("How many are blue?")
    assert question_type("What is the seat of open?") == question_type("What is the tax of gate?")
    assert question_type("How many objects?") != question_type("How many are blue?")


def test_prior_of_yes_no_is_near_half() -> None:
    assert 0.35 <= blind_prior(samples("exists", "test", 60)) <= 0.65
    assert blind_prior(samples("code", "test", 20)) <= 0.1


def test_perfect_and_ignorant_answers() -> None:
    names = ["colour", "leftof", "which"]
    known = {
        b"".join(i.tobytes() for i in s.images): s.answer
        for name in names
        for s in samples(name, "test", 12)
    }

    def perfect(images: Shown, questions: Sequence[str]) -> list[str]:
        return [known[b"".join(i.tobytes() for i in row)] for row in images]

    rows = evaluate(perfect, names, n=12)
    assert [(row.family, row.right, row.accuracy, row.high) for row in rows] == [
        (name, 12, 1.0, 1.0) for name in names
    ]
    assert all(row.low == pytest.approx(0.7575, abs=1e-3) for row in rows)
    assert "| place | leftof | easy | 12 | 1.000" in table(rows)
    assert [row.right for row in evaluate(_silent, names, n=12)] == [0, 0, 0]


def test_a_box_need_not_be_exact() -> None:
    """The family `ground` is judged by overlap, so an answer one cell off counts as well."""

    def near(images: Shown, questions: Sequence[str]) -> list[str]:
        tested = samples("ground", "test", len(images))
        edges = [[int(s.answer[i : i + 2]) for i in range(0, 8, 2)] for s in tested]
        return [f"{a:02}{b:02}{min(28, c + 1):02}{d:02}" for a, b, c, d in edges]

    (row,) = evaluate(near, ["ground"], n=10)
    assert row.accuracy == 1.0
    assert evaluate(_silent, ["ground"], n=10)[0].accuracy == 0.0


def test_levels_are_skipped_where_a_family_has_none() -> None:
    rows = evaluate(_silent, ["shape", "code"], n=2, levels=(0, 2))
    assert [(row.family, row.level) for row in rows] == [("shape", 0), ("code", 0), ("code", 2)]


def test_cells_are_in_order_and_without_repetition() -> None:
    found = cells(["code", "shape", "code"], levels=(1, 0, 1))
    assert [c.title for c in found] == ["code", "code, medium", "shape"]
    assert [c.family for c in cells(None)] == list(FAMILIES)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"families": []}, "no family is named; known: .*shape"),
        ({"families": [""]}, "no family is named"),
        ({"families": ["cod"]}, "unknown family 'cod': did you mean code"),
        ({"families": ["shape", ""]}, "unknown family ''"),
        ({"families": ["shape"], "n": 0}, "n must be 1 or more, got 0"),
        ({"families": ["shape"], "seed": -1}, "seed must be 0 or more"),
        ({"families": ["shape"], "split": "tset"}, "unknown split 'tset': did you mean test"),
        ({"families": ["shape"], "levels": (2,)}, r"no level of \[2\] exists for shape"),
        ({"families": ["shape"], "levels": (-1, 0)}, "levels start at 0"),
        ({"families": ["shape"], "levels": ()}, "levels start at 0"),
    ],
)
def test_wrong_arguments_are_refused_before_anything_is_asked(
    settings: dict[str, Any], words: str
) -> None:
    def never(images: Shown, questions: Sequence[str]) -> list[str]:
        pytest.fail("a question was asked")

    with pytest.raises(SettingError, match=words):
        evaluate(never, **settings)


def test_too_few_answers_are_refused() -> None:
    with pytest.raises(SettingError, match="gave 1 answers for 3 questions"):
        evaluate(lambda images, questions: ["red"], ["shape"], n=3)


def test_missing_outside_data_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    from foveate.lab.tasks import easyvqa

    easyvqa.load.cache_clear()
    monkeypatch.setitem(sys.modules, "easy_vqa", None)
    with pytest.raises(MissingExtraError, match=r"foveate\[lab\]"):
        check_drawable([Cell("easyvqa", "outside", 0)])


# --- model folders -------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def llava(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_folder("llava", tiny.make_model("llava"), tmp_path_factory.mktemp("model"))


def test_a_reader_takes_one_picture_or_several(llava: Path) -> None:
    reader = Reader(llava, batch=2)
    one, two = samples("shape", "test")[0], samples("which", "test")[0]
    found = reader([one.image, two.images], [one.question, two.question])
    assert len(found) == 2
    assert found == [reader([s.images], [s.question])[0] for s in (one, two)]


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        ("config", "has no config.json"),
        ("weights", "has no .*safetensors"),
        ("cut", "is truncated"),
        ("header", "is truncated"),
        ("garbage", "its header is not JSON"),
        ("pickle", "pickle format"),
    ],
)
def test_a_damaged_folder_is_refused_before_it_is_loaded(
    llava: Path, tmp_path: Path, fault: str, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for file in llava.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    weights = tmp_path / "model.safetensors"
    if fault == "config":
        (tmp_path / "config.json").unlink()
    elif fault in ("weights", "pickle"):
        weights.unlink()
        if fault == "pickle":
            (tmp_path / "pytorch_model.bin").write_bytes(b"x")
    elif fault == "cut":
        weights.write_bytes(weights.read_bytes()[:-100])
    elif fault == "header":
        weights.write_bytes(b"\0")
    else:
        weights.write_bytes((5).to_bytes(8, "little") + b"abcde")
    monkeypatch.setattr(
        "foveate.lab.reader.Engine.from_pretrained", lambda *_: pytest.fail("it was loaded")
    )
    with pytest.raises(CheckpointError, match=words):
        Reader(tmp_path)


def test_a_text_model_is_refused(tmp_path: Path) -> None:
    from transformers import LlamaConfig, LlamaForCausalLM

    from foveate.lab.tokenizer import build_tokenizer

    config = LlamaConfig(
        vocab_size=500,
        hidden_size=32,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
    )
    LlamaForCausalLM(config).save_pretrained(tmp_path)
    build_tokenizer().save_pretrained(tmp_path)
    with pytest.raises(UnsupportedError, match="takes no pictures"):
        Reader(tmp_path)
