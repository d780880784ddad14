"""Models as users hold them: LoRA adapters, offload, int8 weights, compiled modules, the pipeline.
Each works or refuses.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from foveate.engine.attach import attach
from tests.models.tiny_processors import save_folder
from tests.support import tiny

GREEDY = {"max_new_tokens": 4, "min_new_tokens": 4, "do_sample": False}
PLAN = "divprune:keep=1/2"


def inputs_of(name: str, model: Any) -> dict[str, Any]:
    mm = tiny.split_images(name, tiny.image_inputs(name))[0]
    return {**tiny.prompt(name, model, mm), **mm}


def fresh(inputs: dict[str, Any]) -> dict[str, Any]:
    return {k: v.clone() for k, v in inputs.items()}


def kept_tokens(model: Any, inputs: dict[str, Any], plan: str = PLAN) -> torch.Tensor:
    with attach(model, plan) as state:
        out = model.generate(**fresh(inputs), **GREEDY)
    assert state.last is not None and not state.last.identity
    return out


@pytest.mark.parametrize("name", ["llava", "qwen2_5_vl"])
def test_a_lora_adapter_takes_part(name: str) -> None:
    peft = pytest.importorskip("peft", reason="the extra package peft is not installed")
    model = tiny.make_model(name)
    inputs = inputs_of(name, model)
    want = kept_tokens(model, inputs)
    config = peft.LoraConfig(target_modules=["q_proj", "v_proj"], r=4, init_lora_weights=True)
    wrapped = peft.get_peft_model(model, config).eval()
    assert torch.equal(kept_tokens(wrapped, inputs), want)  # a fresh LoRA adds zero
    with torch.no_grad():
        for n, p in wrapped.named_parameters():
            if "lora_B" in n:
                p.normal_(std=0.5, generator=torch.Generator().manual_seed(0))
    assert not torch.equal(kept_tokens(wrapped, inputs), want)
    assert "generate" not in vars(wrapped.get_base_model())


def test_a_model_dispatched_by_accelerate_gives_the_same_tokens(tmp_path: Path) -> None:
    accelerate = pytest.importorskip(
        "accelerate", reason="the extra package accelerate is not installed"
    )
    name = "llava"
    model = tiny.make_model(name)
    inputs = inputs_of(name, model)
    want = kept_tokens(model, inputs)
    hooked = accelerate.cpu_offload(tiny.make_model(name), execution_device=torch.device("cpu"))
    assert torch.equal(kept_tokens(hooked, inputs), want)
    with attach(hooked, PLAN):
        pass
    assert torch.equal(
        kept_tokens(hooked, inputs), want
    )  # leaving left accelerate's own forward in place


@pytest.mark.parametrize("name", ["llava", "qwen2_5_vl"])
def test_int8_weights_of_torchao(name: str) -> None:
    quantization = pytest.importorskip("torchao.quantization", reason="torchao is not installed")
    model = tiny.make_model(name)
    inputs = inputs_of(name, model)
    quantization.quantize_(model.get_decoder(), quantization.Int8WeightOnlyConfig())
    out = kept_tokens(model, inputs, "visionzip:keep=1/2")
    assert out.shape[1] == inputs["input_ids"].shape[1] + 4
    whole = model.generate(**fresh(inputs), **GREEDY)
    with attach(model, "uniform:keep=1"):
        assert torch.equal(model.generate(**fresh(inputs), **GREEDY), whole)


def test_a_compiled_model_is_served_through_its_inner_module() -> None:
    model = tiny.make_model("llava")
    inputs = inputs_of("llava", model)
    want = kept_tokens(model, inputs)
    compiled = torch.compile(model, backend="eager")
    assert torch.equal(kept_tokens(compiled, inputs), want)


def test_the_image_text_to_text_pipeline(tmp_path: Path) -> None:
    from transformers import pipeline

    from foveate.engine.loading import load

    folder = save_folder("llava", tiny.make_model("llava"), tmp_path)
    model, processor = load(folder)
    pipe = pipeline("image-text-to-text", model=model, processor=processor)
    image = Image.new("RGB", (40, 30), (200, 40, 40))
    call = {"images": image, "text": "<image> what is in the picture ?", "max_new_tokens": 4}
    whole = pipe(**call, return_full_text=True)[0]["generated_text"]
    with attach(model, "uniform:keep=1/4", processor=processor) as state:
        short = pipe(**call, return_full_text=True)[0]["generated_text"]
    assert state.last is not None and state.last.rows[0].visual_kept == 4
    prompt = whole[: whole.index("?") + 1]
    assert short.startswith(prompt)
