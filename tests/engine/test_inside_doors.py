"""Both doors run plans inside the language model: equal tokens, honest reports, refusals."""

from __future__ import annotations

import pytest
import torch

import foveate
from foveate.core.errors import SettingError, UnsupportedError
from foveate.engine.kv_cache import RaggedCache
from foveate.lab import demo_pictures, nano_path
from foveate.models.adapter import adapter_for
from tests.support import tiny

PLANS = ("fastv:layer=2,keep=1/2", "divprune:keep=1/2+fastv:layer=3,keep=1/4")


@pytest.fixture(scope="module")
def engine() -> foveate.Engine:
    return foveate.Engine.from_pretrained(nano_path())


def _requests() -> list[foveate.Request]:
    return [foveate.Request(images=[d.image], question=d.question) for d in demo_pictures()][:3]


@pytest.mark.parametrize("plan", PLANS)
def test_batch_equals_single_and_attach(engine: foveate.Engine, plan: str) -> None:
    requests = _requests()
    together = engine.generate(requests, plan)
    for request, answer in zip(requests, together, strict=True):
        alone = engine.generate([request], plan)[0]
        assert answer.token_ids == alone.token_ids
        ready = engine.prepare(request)
        inputs = engine.processor(text=[ready.text], images=ready.pictures, return_tensors="pt")
        with foveate.attach(engine.model, plan, processor=engine.processor):
            out = engine.model.generate(**inputs, max_new_tokens=64, do_sample=False)
        assert out[0, inputs["input_ids"].shape[1] :].tolist() == list(answer.token_ids)


def test_the_report_counts_tokens_and_bytes_by_layer(engine: foveate.Engine) -> None:
    request = _requests()[0]
    full, less = (engine.generate([request], p)[0].report for p in ("none", PLANS[0]))
    assert full is not None and less is not None and less.layers is not None
    assert less.layers == (196, 196, 98, 98, 98, 98)
    assert less.kv_bytes is not None and full.kv_bytes is not None
    per_token = full.kv_bytes // (6 * (full.prompt_tokens + full.new_tokens - 1))
    dropped = 98 * 4 * per_token
    steps = less.new_tokens - full.new_tokens
    assert less.kv_bytes == full.kv_bytes - dropped + steps * 6 * per_token


def test_beams_streamers_and_several_sequences_run() -> None:
    model = tiny.make_model("llava")
    mm = tiny.split_images("llava", tiny.image_inputs("llava"))[0]
    row = tiny.prompt("llava", model, mm)
    with foveate.attach(model, "fastv:layer=2,keep=1/2") as state:
        beams = model.generate(**row, **mm, num_beams=3, num_return_sequences=2, max_new_tokens=6)
        one = model.generate(**row, **mm, num_beams=1, max_new_tokens=6, do_sample=False)
        assert state.last is not None
    assert beams.shape[0] == 2 and one.shape[0] == 1
    assert beams[:, : row["input_ids"].shape[1]].equal(row["input_ids"].expand(2, -1))


def test_an_own_decode_loop_goes_on_over_the_cache() -> None:
    model = tiny.make_model("qwen2_5_vl")
    mm = tiny.split_images("qwen2_5_vl", tiny.image_inputs("qwen2_5_vl"))[0]
    row = tiny.prompt("qwen2_5_vl", model, mm)
    avoid = [tiny.IMAGE, tiny.VIDEO]
    with foveate.attach(model, "fastv:layer=2,keep=1/2"), torch.no_grad():
        want = model.generate(
            **row, **mm, max_new_tokens=5, min_new_tokens=5, do_sample=False, suppress_tokens=avoid
        )[0, -5:]
        out = model(**row, **mm)
        cache, got = out.past_key_values, []
        assert isinstance(cache, RaggedCache)
        for _ in range(5):
            logits = out.logits[:, -1].clone()
            logits[:, avoid] = -torch.inf
            got.append(int(logits.argmax(-1)))
            out = model(input_ids=torch.tensor([[got[-1]]]), past_key_values=cache)
    assert got == want.tolist()


def test_leaving_restores_the_model() -> None:
    model = tiny.make_model("qwen3_vl")
    before = (
        model.config.get_text_config()._attn_implementation,
        [len(m._forward_pre_hooks) for m in model.modules()],
        {k for m in model.modules() for k in vars(m)},
    )
    with pytest.raises(KeyboardInterrupt), foveate.attach(model, "fastv:layer=2,keep=1/2"):
        raise KeyboardInterrupt
    after = (
        model.config.get_text_config()._attn_implementation,
        [len(m._forward_pre_hooks) for m in model.modules()],
        {k for m in model.modules() for k in vars(m)},
    )
    assert after == before


@pytest.mark.parametrize(
    ("option", "value"),
    [("cache_implementation", "static"), ("prompt_lookup_num_tokens", 3), ("use_cache", False)],
)
def test_options_that_need_another_cache_are_refused(option: str, value: object) -> None:
    model = tiny.make_model("llava")
    mm = tiny.split_images("llava", tiny.image_inputs("llava"))[0]
    row = tiny.prompt("llava", model, mm)
    with foveate.attach(model, "fastv:layer=2,keep=1/2"):
        with pytest.raises(UnsupportedError, match=option):
            model.generate(**row, **mm, max_new_tokens=2, **{option: value})


def test_layers_outside_the_model_are_refused_before_any_compute() -> None:
    model = tiny.make_model("llava")
    with pytest.raises(SettingError, match="layers are 0 to 5"):
        with foveate.attach(model, "fastv:layer=6,keep=1/2"):
            pass
    hybrid = tiny.make_model("qwen3_5")
    with pytest.raises(UnsupportedError, match="linear_attention"):
        with foveate.attach(hybrid, "fastv:layer=2,keep=1/2"):
            pass
    assert adapter_for(hybrid).recurrent


def test_text_only_prompts_pass_through() -> None:
    model = tiny.make_model("llava")
    ids = torch.randint(3, 280, (1, 9))
    want = model.generate(ids, max_new_tokens=4, do_sample=False)
    with foveate.attach(model, "fastv:layer=2,keep=1/2"):
        assert model.generate(ids, max_new_tokens=4, do_sample=False).equal(want)
