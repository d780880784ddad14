"""The caller's view inside attach: criteria, lengths, masks, caches, own decode loops, threads."""

from __future__ import annotations

import threading
from typing import Any

import pytest
import torch
from transformers import GenerationConfig, StoppingCriteria

from foveate.core.errors import UnsupportedError
from foveate.engine.attach import attach
from tests.engine.test_attach import GREEDY, call, fresh, snapshot
from tests.support import tiny

PLAN = "uniform:keep=1/4"


def test_criteria_and_processors_see_the_callers_prompt() -> None:
    model = tiny.make_model("llava")
    inputs = call("llava", model, rows=2)
    n = inputs["input_ids"].shape[1]
    seen: list[torch.Tensor] = []

    class AfterTwo(StoppingCriteria):
        def __call__(self, ids: torch.Tensor, scores: Any, **_: Any) -> torch.Tensor:
            return torch.full((ids.shape[0],), ids.shape[1] - n >= 2)

    def look(ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        seen.append(ids)
        return scores

    with attach(model, PLAN):
        out = model.generate(
            **fresh(inputs), max_new_tokens=8, min_new_tokens=8, do_sample=False,
            stopping_criteria=[AfterTwo()], logits_processor=[look],
        )  # fmt: skip
    assert out.shape[1] == n + 2
    assert all(torch.equal(s[:, :n], inputs["input_ids"]) for s in seen)


@pytest.mark.parametrize("how", ["call", "config", "positional config", "model"])
def test_max_length_counts_the_callers_prompt_wherever_it_is_said(how: str) -> None:
    model = tiny.make_model("llava")
    inputs = call("llava", model)
    n = inputs["input_ids"].shape[1]
    with attach(model, PLAN):
        ids = inputs.pop("input_ids")
        config = GenerationConfig(max_length=n + 3, do_sample=False, eos_token_id=None)
        if how == "call":
            out = model.generate(ids, **inputs, max_length=n + 3, min_new_tokens=3, do_sample=False)
        elif how == "config":
            out = model.generate(ids, **inputs, generation_config=config)
        elif how == "positional config":
            out = model.generate(ids, config, **inputs)
        else:
            model.generation_config.max_length = n + 3
            other = GenerationConfig(do_sample=False, eos_token_id=None)
            out = model.generate(ids, **inputs, generation_config=other)
    assert out.shape[1] == n + 3


def test_a_mask_is_inferred_from_the_pad_token_as_generate_does() -> None:
    model = tiny.make_model("qwen2_5_vl")
    model.generation_config.pad_token_id = 0
    inputs = call("qwen2_5_vl", model, rows=2)
    with attach(model, PLAN):
        want = model.generate(**fresh(inputs), **GREEDY)
        bare = fresh(inputs)
        del bare["attention_mask"]
        got = model.generate(**bare, **GREEDY)
    assert torch.equal(got, want)


@pytest.mark.parametrize(
    "change", ["4-D mask", "positions", "logits_to_keep", "question_turn", "old cache"]
)
def test_what_cannot_be_brought_to_the_short_sequence_is_refused(change: str) -> None:
    model = tiny.make_model("llava")
    inputs = call("llava", model)
    n = inputs["input_ids"].shape[1]
    plan = "cdpruner-lm:keep=1/4;question_turn=0" if change == "question_turn" else PLAN
    with attach(model, plan):
        if change == "old cache":
            out = model.generate(**fresh(inputs), **GREEDY, return_dict_in_generate=True)
            inputs = {
                "input_ids": torch.cat([out.sequences, out.sequences[:, -2:]], 1),
                "past_key_values": out.past_key_values,
            }
        elif change == "4-D mask":
            inputs["attention_mask"] = torch.ones(1, 1, n, n, dtype=torch.bool).tril()
        elif change == "positions":
            inputs["position_ids"] = torch.arange(n)[None] + 3
        elif change == "logits_to_keep":
            inputs["logits_to_keep"] = torch.tensor([n - 1])
        with pytest.raises(UnsupportedError):
            if change == "old cache":
                model.generate(**inputs, **GREEDY)
            else:
                model(**inputs)


@pytest.mark.parametrize("name", ["llava", "qwen2_vl", "qwen2_5_vl", "qwen3_vl", "glm4v"])
@torch.no_grad()
def test_an_own_decode_loop_goes_on_at_the_right_positions(name: str) -> None:
    model = tiny.make_model(name)
    inputs = call(name, model)
    before = snapshot(model)
    avoid = {"suppress_tokens": [tiny.IMAGE, tiny.VIDEO]}
    with attach(model, "uniform:keep=1/4;positions=retain" if name != "llava" else PLAN):
        want = model.generate(
            **fresh(inputs), **GREEDY, **avoid, return_dict_in_generate=True, output_logits=True
        )
        out = model(**fresh(inputs), use_cache=True)
        steps = [out.logits[:, -1]]
        new = want.sequences[:, inputs["input_ids"].shape[1] :]
        for j in range(3):
            out = model(
                input_ids=new[:, j : j + 1], past_key_values=out.past_key_values, use_cache=True
            )
            steps.append(out.logits[:, -1])
    for got, ref in zip(steps, want.logits, strict=False):
        assert (got - ref).abs().max() <= 2e-5 * ref.abs().max()
    assert snapshot(model) == before


def test_threads_inside_one_block_leave_nothing_behind() -> None:
    model = tiny.make_model("llava")
    inputs = call("llava", model)
    before = snapshot(model)
    found: list[torch.Tensor] = []
    with attach(model, "visionzip:keep=1/2"):
        want = model.generate(**fresh(inputs), **GREEDY)

        def work() -> None:
            for _ in range(6):
                found.append(model.generate(**fresh(inputs), **GREEDY))

        threads = [threading.Thread(target=work) for _ in range(3)]
        for t in threads:
            t.start()
        for t in threads:
            t.join()
    assert len(found) == 18 and all(torch.equal(f, want) for f in found)
    assert snapshot(model) == before


def test_rope_deltas_of_an_earlier_call_are_put_back() -> None:
    model = tiny.make_model("qwen2_5_vl")
    inputs = call("qwen2_5_vl", model)
    model(**fresh(inputs))
    left = model.base_model.rope_deltas.clone()
    with attach(model, PLAN):
        model.generate(**fresh(inputs), **GREEDY)
        model(**fresh(inputs))
    assert torch.equal(model.base_model.rope_deltas, left)


def test_tiles_of_one_picture_are_one_image_without_a_processor() -> None:
    """SmolVLM: the token before a row's last run marks the global view; Aya: one marker a tile."""
    image = [tiny.IMAGE] * 4
    for name, row in (
        ("smolvlm", [5, 200, *image, 201, 202, *image, 201, 203, *image, 7, 8]),
        ("aya_vision", [5, 200, 210, *image, 211, *image, 201, 8]),
    ):
        model = tiny.make_model(name)
        mm = tiny.image_inputs(name)
        pixels = mm["pixel_values"][:1, :3] if name == "smolvlm" else mm["pixel_values"][:2]
        ids = torch.tensor([row])
        with attach(model, "uniform:per_image=3") as state:
            model(input_ids=ids, attention_mask=torch.ones_like(ids), pixel_values=pixels)
        assert state.last is not None
        assert {s.image for s in state.last.rows[0].segments} == {0}, name
        assert state.last.rows[0].visual_kept == 3, name
