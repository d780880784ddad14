"""What only a GPU can show: equal choices, half precision, device_map, compiled decoding, int8.

Run on a machine with a CUDA device: `python -m pytest tests/gpu`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from foveate.core import Plan, registry
from foveate.engine.attach import attach
from foveate.engine.compress import compress
from foveate.engine.engine import Engine
from foveate.models.adapter import adapter_for
from tests.engine.test_methods import NEEDS_USER_TOWER, VIDEO_ONLY, plan_of
from tests.models.tiny_processors import save_folder
from tests.support import tiny

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
GREEDY = {"max_new_tokens": 4, "min_new_tokens": 4, "do_sample": False}
METHODS = [m for m in registry.methods("tokens") if m not in VIDEO_ONLY | NEEDS_USER_TOWER]


def inputs_of(name: str, model: Any) -> dict[str, Any]:
    mm = tiny.split_images(name, tiny.image_inputs(name))[0]
    return {**tiny.prompt(name, model, mm), **mm}


def moved(inputs: dict[str, Any], dtype: torch.dtype) -> dict[str, Any]:
    return {
        k: v.to("cuda", dtype) if v.is_floating_point() else v.to("cuda") for k, v in inputs.items()
    }


@pytest.mark.parametrize("family", tiny.REPRESENTATIVE)
@pytest.mark.parametrize("method", METHODS)
@torch.no_grad()
def test_the_gpu_chooses_what_the_cpu_chooses(method: str, family: str) -> None:
    model = tiny.make_model(family)
    inputs = inputs_of(family, model)
    adapter = adapter_for(model)
    facts = compress(adapter, plan_of(method), inputs).rows[0]
    model.to("cuda")
    there = compress(adapter, plan_of(method), moved(inputs, torch.float32)).rows[0]
    same = [
        a.anchor.tolist() == b.anchor.tolist()
        for a, b in zip(facts.reductions, there.reductions, strict=True)
    ]
    assert all(same)


@pytest.mark.parametrize("family", tiny.REPRESENTATIVE)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision(family: str, dtype: torch.dtype) -> None:
    model = tiny.make_model(family).to("cuda", dtype)
    inputs = moved(inputs_of(family, tiny.make_model(family)), dtype)
    with attach(model, "visionzip:keep=1/2") as state:
        out = model.generate(**inputs, **GREEDY)
    assert state.last is not None and not state.last.identity
    assert out.shape[1] == inputs["input_ids"].shape[1] + 4


def test_device_map_auto(tmp_path: Path) -> None:
    folder = save_folder("llava", tiny.make_model("llava"), tmp_path)
    engine = Engine.from_pretrained(folder, device_map="auto")
    from tests.engine.test_engine import NO_MARKS, three

    answers = engine.generate(three(), "divprune:keep=1/2", max_new_tokens=4, **NO_MARKS)
    assert all(a.ok for a in answers), [a.error for a in answers]
    assert answers[0].report is not None and answers[0].report.ms["encode"] > 0


def test_a_static_cache_compiles_and_gives_the_same_tokens() -> None:
    model = tiny.make_model("llava").to("cuda")
    inputs = moved(inputs_of("llava", tiny.make_model("llava")), torch.float32)
    with attach(model, "uniform:keep=1/2"):
        want = model.generate(**inputs, **GREEDY)
        got = model.generate(**inputs, **GREEDY, cache_implementation="static")
    assert torch.equal(got, want)


def test_bitsandbytes_int8(tmp_path: Path) -> None:
    pytest.importorskip("bitsandbytes", reason="the package bitsandbytes is not installed")
    from transformers import AutoModelForImageTextToText, BitsAndBytesConfig

    folder = save_folder("llava", tiny.make_model("llava"), tmp_path)
    model = AutoModelForImageTextToText.from_pretrained(
        folder, quantization_config=BitsAndBytesConfig(load_in_8bit=True), device_map="cuda"
    ).eval()
    inputs = moved(inputs_of("llava", tiny.make_model("llava")), model.dtype)
    with attach(model, Plan.parse("divprune:keep=1/2")) as state:
        model.generate(**inputs, **GREEDY)
    assert state.last is not None and state.last.rows[0].visual_kept == 8
