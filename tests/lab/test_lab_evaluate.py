"""The evaluator: intervals, priors, and verdicts from any function that answers."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pytest
from PIL import Image

from foveate.core.errors import CheckpointError, SettingError
from foveate.lab import samples
from foveate.lab.evaluate import blind_prior, evaluate, main, question_type, table


def _knows(names: Sequence[str], n: int) -> dict[bytes, str]:
    return {s.image.tobytes(): s.answer for name in names for s in samples(name, "test", n)}


def test_question_type_blanks_what_the_picture_decides() -> None:
    assert question_type("What shape is red?") == question_type("What shape is pink?")
    assert question_type("How many are red?") == question_type("How many are blue?")
    assert question_type("How many objects?") != question_type("How many are blue?")


def test_prior_of_yes_no_is_near_half() -> None:
    assert 0.35 <= blind_prior(samples("exists", "test", 60)) <= 0.65
    assert blind_prior(samples("code", "test", 20)) <= 0.1


def test_perfect_and_ignorant_answers() -> None:
    names = ["colour", "leftof"]
    known = _knows(names, 12)

    def perfect(images: Sequence[Image.Image], questions: Sequence[str]) -> list[str]:
        return [known[image.tobytes()] for image in images]

    rows = evaluate(perfect, names, n=12)
    assert [(row.family, row.right, row.accuracy, row.high) for row in rows] == [
        ("colour", 12, 1.0, 1.0),
        ("leftof", 12, 1.0, 1.0),
    ]
    assert all(row.low == pytest.approx(0.7575, abs=1e-3) for row in rows)
    assert "| place | leftof | easy | 12 | 1.000" in table(rows)
    silent = evaluate(lambda images, questions: [""] * len(images), names, n=12)
    assert [row.right for row in silent] == [0, 0]


def test_levels_are_skipped_where_a_family_has_none() -> None:
    rows = evaluate(lambda i, q: [""] * len(i), ["shape", "code"], n=2, levels=(0, 2))
    assert [(row.family, row.level) for row in rows] == [("shape", 0), ("code", 0), ("code", 2)]


@pytest.mark.parametrize(
    ("families", "n", "levels", "words"),
    [
        ([], 3, (0,), "no family is named"),
        (["cod"], 3, (0,), "did you mean code"),
        (["shape"], 0, (0,), "n must be 1 or more"),
        (["shape"], 3, (2,), "levels start at 0"),
        (["shape"], 3, (), "levels start at 0"),
    ],
)
def test_wrong_arguments(families: list[str], n: int, levels: tuple[int, ...], words: str) -> None:
    with pytest.raises(SettingError, match=words):
        evaluate(lambda i, q: [""] * len(i), families, n=n, levels=levels)


def test_command_line_refuses_a_folder_that_is_no_model(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--model", str(tmp_path), "--n", "1"]) == 2
    assert "has no config.json" in capsys.readouterr().err
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama"}))
    assert main(["--model", str(tmp_path), "--n", "1"]) == 2
    assert "no safetensors" in capsys.readouterr().err


def test_a_text_model_is_refused(tmp_path: Path) -> None:
    from transformers import LlamaConfig, LlamaForCausalLM

    from foveate.lab.reader import Reader
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
    with pytest.raises(CheckpointError, match="no vision-language model"):
        Reader(tmp_path)
