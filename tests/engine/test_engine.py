"""The engine end to end on real processors and tiny models from local folders: both doors, ragged
batches, bad requests.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from foveate.core.errors import CheckpointError, InputError, MediaError, UnsupportedError
from foveate.engine.attach import attach
from foveate.engine.engine import Engine
from foveate.engine.request import Request
from tests.models.tiny_processors import save_folder
from tests.support import tiny

NO_MARKS = {"suppress_tokens": [tiny.IMAGE, tiny.VIDEO]}


def picture(width: int, height: int, seed: int) -> Image.Image:
    noise = np.random.default_rng(seed).integers(0, 255, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(noise)


@pytest.fixture(scope="module", params=tiny.REPRESENTATIVE)
def engine(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Engine:
    name = str(request.param)
    folder = save_folder(name, tiny.make_model(name), tmp_path_factory.mktemp(name))
    return Engine.from_pretrained(folder)


def three() -> list[Request]:
    return [
        Request("what is in the picture ?", images=[picture(60, 40, 1)]),
        Request("colour ?", images=[picture(30, 56, 2), picture(28, 28, 3)]),
        Request("is the picture in the picture ?", images=[picture(56, 56, 4)]),
    ]


@pytest.mark.claim("F7")
@pytest.mark.parametrize(
    "plan", ["none", "divprune:keep=1/2", "visionzip:keep=1/2", "pool:keep=1/2"]
)
def test_both_doors_give_equal_tokens_alone_and_in_a_ragged_batch(
    engine: Engine, plan: str
) -> None:
    requests = three()
    together = engine.generate(requests, plan, max_new_tokens=8, **NO_MARKS)
    for request, answer in zip(requests, together, strict=True):
        assert answer.ok, answer.error
        alone = engine.generate([request], plan, max_new_tokens=8, **NO_MARKS)[0]
        assert alone.token_ids == answer.token_ids
        ready = engine.prepare(request)
        inputs = engine._process([ready], [ready.pictures], [[]])
        with attach(engine.model, plan, processor=engine.processor):
            out = engine.model.generate(**inputs, max_new_tokens=8, do_sample=False, **NO_MARKS)
        new = out[0, inputs["input_ids"].shape[1] :].tolist()
        assert tuple(new[: len(answer.token_ids)]) == answer.token_ids


def test_the_report_adds_up(engine: Engine) -> None:
    full, kept = (
        engine.generate(three(), p, max_new_tokens=3, **NO_MARKS)[1]
        for p in (None, "uniform:keep=1/4")
    )
    a, b = full.report, kept.report
    assert a is not None and b is not None
    assert a.identity and not b.identity
    assert a.visual_tokens_kept == a.visual_tokens_in == b.visual_tokens_in
    assert sum(s.tokens_kept for s in b.segments) == b.visual_tokens_kept < b.visual_tokens_in
    fixed = sum(s.fixed_in for s in b.segments)
    assert b.prompt_tokens == b.text_tokens + b.visual_tokens_kept + b.fixed_tokens_kept
    assert b.prompt_tokens_in == b.text_tokens + b.visual_tokens_in + fixed == a.prompt_tokens
    assert b.kv_bytes is not None and a.kv_bytes is not None and b.kv_bytes < a.kv_bytes
    per_token = a.kv_bytes / (a.prompt_tokens + a.new_tokens)
    assert b.kv_bytes == pytest.approx(per_token * (b.prompt_tokens + b.new_tokens), rel=0.02)
    assert {"preprocess", "encode", "select", "prefill", "decode"} <= set(b.ms)
    assert a.plan_hash != b.plan_hash
    assert {s.image for s in b.segments} == {0, 1}
    for image in (0, 1):
        assert sum(s.tokens_kept for s in b.segments if s.image == image) >= 1
    json.dumps(b.to_dict())


def test_per_request_and_per_image_budgets_hold_exactly(engine: Engine) -> None:
    request = three()[1]
    answer = engine.generate([request], "divprune:per_request=5", max_new_tokens=1)[0]
    assert answer.ok and answer.report is not None and answer.report.visual_tokens_kept == 5
    answer = engine.generate([request], "divprune:per_image=3", max_new_tokens=1)[0]
    assert answer.report is not None
    for image in (0, 1):
        assert sum(s.tokens_kept for s in answer.report.segments if s.image == image) == 3


def test_a_bad_request_does_not_take_the_others_down(engine: Engine, tmp_path: Path) -> None:
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"\x89PNG\r\n\x1a\n" + b"0" * 40)
    mark = next(t for t in (getattr(engine.processor, "image_token", None),) if t)
    requests = [
        three()[0],
        Request("what ?", images=[broken]),
        Request(f"what is {mark} ?", images=[picture(40, 40, 5)]),
        Request("  ", images=[picture(40, 40, 5)]),
        Request("what is the colour"),
        three()[2],
    ]
    answers = engine.generate(requests, "uniform:keep=1/2", max_new_tokens=3, **NO_MARKS)
    kinds = [type(a.error) for a in answers]
    assert kinds == [type(None), MediaError, InputError, InputError, type(None), type(None)]
    assert "reads as a picture" in str(answers[2].error)
    want = engine.generate([requests[0]], "uniform:keep=1/2", max_new_tokens=3, **NO_MARKS)[0]
    assert answers[0].token_ids == want.token_ids
    text = answers[4].report
    assert text is not None and text.visual_tokens_in == 0 and text.keep_ratio == 1.0


def test_a_plan_over_every_token_is_the_identity_and_says_so(engine: Engine) -> None:
    request = three()[0]
    full = engine.generate([request], None, max_new_tokens=4, **NO_MARKS)[0]
    same = engine.generate([request], "divprune:per_image=99999", max_new_tokens=4, **NO_MARKS)[0]
    assert same.token_ids == full.token_ids and same.report is not None and same.report.identity
    assert any("nothing was dropped" in n for n in same.report.notes)


def test_refusals() -> None:
    with pytest.raises(CheckpointError, match="no model folder"):
        Engine.from_pretrained("/no/such/model/folder")
    with pytest.raises(InputError, match="dtype"):
        Engine.from_pretrained("x", dtype="floot32")


@pytest.mark.parametrize(
    "damage", ["pickle", "truncated", "no config", "bad config", "text only", "file"]
)
def test_damaged_model_folders_are_named(tmp_path: Path, damage: str) -> None:
    folder = save_folder("llava", tiny.make_model("llava"), tmp_path)
    weights = folder / "model.safetensors"
    expected: type[Exception] = CheckpointError
    if damage == "pickle":
        torch.save({"a": torch.zeros(2)}, folder / "pytorch_model.bin")
        weights.unlink()
    elif damage == "truncated":
        weights.write_bytes(weights.read_bytes()[:5000])
    elif damage == "no config":
        (folder / "config.json").unlink()
    elif damage == "bad config":
        (folder / "config.json").write_text("{")
    elif damage == "text only":
        config: dict[str, Any] = json.loads((folder / "config.json").read_text())["text_config"]
        (folder / "config.json").write_text(json.dumps(config))
        expected = UnsupportedError
    else:
        folder = weights
    says = {"pickle": "pickle format", "text only": "takes no pictures", "file": "is a file"}
    with pytest.raises(expected, match=says.get(damage, "model|weights|config")):
        Engine.from_pretrained(folder)


def test_settings_out_of_range_are_refused(engine: Engine) -> None:
    for options in ({"max_new_tokens": 0}, {"batch_size": 0}):
        with pytest.raises(InputError, match="out of range"):
            engine.generate(three(), **options)


def test_requests_that_are_no_requests_are_reported_one_by_one(engine: Engine) -> None:
    good = three()[0]
    bad = [
        Request("what ?", images=picture(40, 40, 1)),  # type: ignore[arg-type]
        Request("what ?", images="picture.png"),
        Request("what ?", images=np.zeros((4, 40, 40, 3), np.uint8)),  # type: ignore[arg-type]
        Request("what ?", history=["hello"]),  # type: ignore[list-item]
        Request("what ?", system=5),  # type: ignore[arg-type]
    ]
    answers = engine.generate([good, *bad, good], "uniform:keep=1/2", max_new_tokens=2, **NO_MARKS)
    assert [a.ok for a in answers] == [True, *[False] * len(bad), True]
    assert all(isinstance(a.error, InputError) for a in answers[1:-1])


def test_generate_options_are_the_callers(engine: Engine) -> None:
    from transformers import GenerationConfig

    request = three()[0]
    config = GenerationConfig(max_new_tokens=3, do_sample=False, suppress_tokens=[290, 291])
    answer = engine.generate([request], None, generation_config=config)[0]
    assert answer.report is not None and 1 <= answer.report.new_tokens <= 3
    free = engine.generate([request], None, max_new_tokens=6, **NO_MARKS)[0]
    stop = free.token_ids[1] if len(free.token_ids) > 1 else free.token_ids[0]
    cut = engine.generate([request], None, max_new_tokens=6, eos_token_id=stop, **NO_MARKS)[0]
    assert cut.token_ids[-1] == stop and stop not in cut.token_ids[:-1]
    for options in ({"num_return_sequences": 2}, {"use_cache": False}):
        with pytest.raises(InputError):
            engine.generate([request], None, **options)
    side = engine.processor.tokenizer.padding_side
    engine.processor.tokenizer.padding_side = "right"
    engine.generate(three(), None, max_new_tokens=1, **NO_MARKS)
    assert engine.processor.tokenizer.padding_side == "right"
    engine.processor.tokenizer.padding_side = side
