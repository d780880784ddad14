"""The bundled model: it loads as any stock checkpoint does and answers well above chance."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from foveate.core.errors import CheckpointError
from foveate.lab import FAMILIES, nano_path, samples
from foveate.lab.attention import cls_evidence
from foveate.lab.batches import Packer, to_pixels
from foveate.lab.evaluate import blind_prior
from foveate.lab.looks import TEST_LOOK
from foveate.lab.losses import answer_logits
from foveate.lab.measure import score
from foveate.lab.nano import check_folder
from foveate.lab.network import see
from foveate.lab.reader import Reader
from foveate.lab.tasks import DRAWERS, stream
from foveate.lab.tokenizer import PIXEL_MEAN, PIXEL_STD


@pytest.fixture(scope="module")
def reader() -> Reader:
    torch.set_num_threads(1)
    return Reader(nano_path())


def test_import_needs_no_torch() -> None:
    code = (
        "import foveate.lab, sys; foveate.lab.demo_pictures(0); "
        "print('torch' in sys.modules, 'transformers' in sys.modules)"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.split() == ["False", "False"]


@pytest.mark.claim("L3")
def test_files_and_size() -> None:
    folder = nano_path()
    assert sum(file.stat().st_size for file in folder.iterdir()) <= 24_000_000
    assert json.loads((folder / "generation_config.json").read_text())["eos_token_id"] == 2


def test_stock_architecture(reader: Reader) -> None:
    assert type(reader.model).__name__ == "LlavaForConditionalGeneration"
    assert type(reader.processor).__name__ == "LlavaProcessor"
    assert sum(weight.numel() for weight in reader.model.parameters()) <= 12_000_000
    assert reader.model.config.text_config.num_hidden_layers >= 6
    assert reader.model.dtype == torch.float32


def test_prompt_holds_196_visual_tokens(reader: Reader) -> None:
    sample = samples("shape", "test")[0]
    content = [{"type": "image", "image": sample.image}, {"type": "text", "text": sample.question}]
    inputs = reader.processor.apply_chat_template(
        [{"role": "user", "content": content}],
        add_generation_prompt=True,
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
    )
    ids = inputs["input_ids"][0]
    assert int((ids == reader.model.config.image_token_id).sum()) == 196
    assert ids[0] == reader.processor.tokenizer.bos_token_id
    assert torch.equal(inputs["pixel_values"], to_pixels(np.asarray(sample.image)[None]))


def test_case_and_question_mark_do_not_matter(reader: Reader) -> None:
    assert (
        reader.prompt("Where is red?") == reader.prompt("where is RED") == "<s><image> where is red"
    )


@pytest.mark.parametrize("family", ["shape", "colour"])
def test_answers_are_well_above_the_prior(reader: Reader, family: str) -> None:
    tested = samples(family, "test", 40, seed=11)
    answers = reader([s.image for s in tested], [s.question for s in tested])
    right = sum(given == s.answer for given, s in zip(answers, tested, strict=True)) / 40
    assert right >= blind_prior(tested) + 0.5
    assert right >= 0.8


@pytest.mark.claim("L4")
def test_generate_agrees_with_packed_scoring(reader: Reader) -> None:
    """Batched greedy answers against the view of training: each question as if asked alone."""
    packer = Packer(reader.processor.tokenizer, 8)
    for kind in ("shapes", "bars", "print", "form"):
        rng = stream("test", "packed", 3, 0)
        batch = packer.pack(rng, [DRAWERS[kind](rng, TEST_LOOK, 0) for _ in range(3)], 5)
        with torch.no_grad():
            logits, targets = answer_logits(reader.model, see(reader.model, batch.pixels), batch)
        packed = score(batch, logits.argmax(-1) == targets)
        levels = ((batch.pixels * PIXEL_STD + PIXEL_MEAN) * 255).round().byte()
        pictures = [Image.fromarray(picture.permute(1, 2, 0).numpy()) for picture in levels]
        asked = [(pictures[i], ask) for i, asks in enumerate(batch.asks) for ask in asks]
        given = reader([picture for picture, _ in asked], [ask.question for _, ask in asked])
        alone = [
            (ask.family, answer == ask.answer)
            for answer, (_, ask) in zip(given, asked, strict=True)
        ]
        assert alone == packed


def test_cls_attention_finds_shapes(reader: Reader) -> None:
    found = cls_evidence(reader, ["count"], n=10)
    assert len(found["count"]) == reader.model.config.vision_config.num_hidden_layers
    assert max(found["count"]) > 0.4  # a random quarter of the tokens would have 0.25
    needle = cls_evidence(reader, ["needle"], n=6)["needle"]  # the picture that holds the text
    assert max(needle) > 0.4


@pytest.mark.claim("L3")
def test_card_reports_each_family() -> None:
    card = (nano_path() / "README.md").read_text("utf-8")
    for family in FAMILIES:
        assert f"| {family} | easy |" in card
    assert "not the world" in card


@pytest.mark.parametrize("fault", ["cut", "header", "absent"])
def test_incomplete_bundle_is_refused(tmp_path: Path, fault: str) -> None:
    folder = Path(shutil.copytree(nano_path(), tmp_path / "nano"))
    file = folder / "model.safetensors"
    if fault == "cut":
        file.write_bytes(file.read_bytes()[:-1000])
    elif fault == "header":
        file.write_bytes(b"\0")
    else:
        file.unlink()
    with pytest.raises(
        CheckpointError, match="lacks model.safetensors" if fault == "absent" else "truncated"
    ):
        check_folder(folder)
    with pytest.raises(CheckpointError):
        Reader(folder)
