"""lab-pair, the small sibling: same tokenizer and visual layout as lab-nano, and of use as its guide."""

from __future__ import annotations

import json

import pytest
import torch
from transformers import AutoTokenizer

from foveate.engine.engine import Engine
from foveate.engine.request import Request
from foveate.lab import nano_path, pair_path
from foveate.lab.score import is_right
from foveate.lab.tasks import samples

MOST_PARAMETERS = 3_000_000


@pytest.fixture(scope="module")
def pair() -> Engine:
    torch.set_num_threads(1)
    return Engine.from_pretrained(pair_path())


def test_it_is_small_and_reads_the_same_tokens(pair: Engine) -> None:
    assert sum(p.numel() for p in pair.model.parameters()) <= MOST_PARAMETERS
    small, large = (AutoTokenizer.from_pretrained(p()) for p in (pair_path, nano_path))
    assert small.get_vocab() == large.get_vocab()
    kept = ("image_seq_length", "image_token_index", "vision_feature_layer")
    configs = [json.loads((p() / "config.json").read_text()) for p in (pair_path, nano_path)]
    for name in kept:
        assert configs[0][name] == configs[1][name]
    assert (pair_path() / "processor_config.json").read_text() == (
        nano_path() / "processor_config.json"
    ).read_text()


def test_it_answers_what_its_card_says(pair: Engine) -> None:
    rows = json.loads((pair_path() / "results.json").read_text())
    card = {(r["family"], r["level"]): r["accuracy"] for r in rows}
    asked = samples("quadrant", "test", 24)
    answers = pair.generate([Request(images=[s.image], question=s.question) for s in asked])
    right = sum(is_right(s, a.text) for s, a in zip(asked, answers, strict=True)) / len(asked)
    assert card["quadrant", 0] >= 0.8
    assert right >= card["quadrant", 0] - 0.2


def test_it_guides_lab_nano(pair: Engine) -> None:
    engine = Engine.from_pretrained(nano_path(), guide=pair)
    s = samples("shape", "test", 1)[0]
    request = Request(images=[s.image], question=s.question)
    full, less = engine.generate([request])[0], engine.generate([request], "sgl:keep=1/4")[0]
    assert less.report is not None and full.report is not None
    assert less.report.kv_bytes is not None and full.report.kv_bytes is not None
    assert less.report.kv_bytes < full.report.kv_bytes
