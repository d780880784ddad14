"""attach: the user's own generate() and forward(), any option, and a model left as it was found."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from foveate.core.errors import InputError, UnsupportedError
from foveate.engine.attach import attach
from foveate.models.adapter import adapter_for
from tests.support import tiny

GREEDY = {"max_new_tokens": 5, "min_new_tokens": 5, "do_sample": False}


@pytest.fixture(params=tiny.REPRESENTATIVE)
def family(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def call(name: str, model: Any, rows: int = 1) -> dict[str, Any]:
    """Inputs as a processor would give them: rows of unequal length, one picture each."""
    parts = tiny.split_images(name, tiny.image_inputs(name))
    parts = [parts[i % len(parts)] for i in range(rows)]
    prompts = [
        tiny.prompt(name, model, mm, lead=4 + i, tail=6 - i, seed=i) for i, mm in enumerate(parts)
    ]
    return {**tiny.pad_batch(prompts, "left"), **tiny.join_images(name, parts)}


def fresh(inputs: dict[str, Any]) -> dict[str, Any]:
    return {k: v.clone() for k, v in inputs.items()}


def snapshot(model: Any) -> dict[str, Any]:
    """Everything that leaving must restore: weights, hooks, config, attention, instance attributes."""
    return {
        "dicts": {n: sorted(vars(m)) for n, m in model.named_modules()},
        "hooks": {
            n: [
                len(getattr(m, h))
                for h in ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks")
            ]
            for n, m in model.named_modules()
        },
        "config": model.config.to_json_string(use_diff=False),
        "attention": {
            n: m.config._attn_implementation
            for n, m in model.named_modules()
            if hasattr(m, "config")
        },
        "state": {k: (v.data_ptr(), v._version) for k, v in model.state_dict().items()},
        "rope": getattr(model.base_model, "rope_deltas", None),
    }


def test_generated_sequences_begin_with_the_callers_ids(family: str) -> None:
    model = tiny.make_model(family)
    inputs = call(family, model, rows=3)
    with attach(model, "uniform:keep=1/4") as state:
        out = model.generate(**fresh(inputs), **GREEDY)
    n = inputs["input_ids"].shape[1]
    assert torch.equal(out[:, :n], inputs["input_ids"])
    assert out.shape == (3, n + 5)
    assert state.last is not None and all(r.visual_kept < r.visual_in for r in state.last.rows)


def test_identity_gives_the_untouched_logits(family: str) -> None:
    model = tiny.make_model(family)
    inputs = call(family, model)
    options = {**GREEDY, "return_dict_in_generate": True, "output_logits": True}
    want = torch.stack(model.generate(**fresh(inputs), **options).logits)
    for plan in ("none", "uniform:keep=1", "divprune:per_image=100000"):
        with attach(model, plan):
            got = torch.stack(model.generate(**fresh(inputs), **options).logits)
        assert (got - want).abs().max() <= 1e-6 * want.abs().max()


@pytest.mark.claim("F1")
@pytest.mark.parametrize("how", ["plain", "exception", "interrupt", "nested", "config error"])
def test_leaving_restores_everything(family: str, how: str) -> None:
    model = tiny.make_model(family)
    inputs = call(family, model)
    before = snapshot(model)
    errors = {"exception": RuntimeError, "interrupt": KeyboardInterrupt}
    if how in errors:
        with pytest.raises(errors[how]), attach(model, "visionzip:keep=1/2"):
            model.generate(**fresh(inputs), **GREEDY)
            raise errors[how]
    elif how == "nested":
        with attach(model, "uniform:keep=1/2"):
            inside = snapshot(model)
            with attach(model, "none"):
                model.generate(**fresh(inputs), **GREEDY)
            assert snapshot(model) == inside
    elif how == "config error":
        with attach(model, "uniform:keep=1/2"), pytest.raises(InputError):
            bad = fresh(inputs)
            bad["input_ids"][0, -1] = tiny.IMAGE
            model.generate(**bad, **GREEDY)
    else:
        with attach(model, "visionzip:keep=1/2"):
            model.generate(**fresh(inputs), **GREEDY)
            model(**fresh(inputs))
    assert snapshot(model) == before


@pytest.mark.parametrize(
    "options",
    [
        {"num_beams": 2},
        {"num_beams": 3, "num_return_sequences": 2},
        {"do_sample": True, "num_return_sequences": 2, "top_k": 1},
    ],
)
def test_beams_and_several_sequences_equal_row_by_row(family: str, options: dict[str, Any]) -> None:
    model = tiny.make_model(family)
    settings = {"max_new_tokens": 4, "min_new_tokens": 4, "do_sample": False, **options}
    parts = tiny.split_images(family, tiny.image_inputs(family))[:2]
    rows = [
        tiny.prompt(family, model, mm, lead=4 + i, tail=6 - i, seed=i) for i, mm in enumerate(parts)
    ]
    each = settings.get("num_return_sequences", 1)
    with attach(model, "uniform:keep=1/2"):
        alone = [
            model.generate(**fresh({**r, **mm}), **settings)[:, r["input_ids"].shape[1] :]
            for r, mm in zip(rows, parts, strict=True)
        ]
        batch = {**tiny.pad_batch(rows, "left"), **tiny.join_images(family, parts)}
        both = model.generate(**batch, **settings)[:, batch["input_ids"].shape[1] :]
    for i, want in enumerate(alone):
        assert torch.equal(both[i * each : (i + 1) * each], want)


def test_a_streamer_sees_the_callers_prompt_first(family: str) -> None:
    model = tiny.make_model(family)
    inputs = call(family, model)
    seen: list[torch.Tensor] = []

    class Collect:
        def put(self, value: torch.Tensor) -> None:
            seen.append(value.reshape(-1))

        def end(self) -> None:
            seen.append(torch.tensor([-1]))

    with attach(model, "uniform:keep=1/2"):
        out = model.generate(**fresh(inputs), **GREEDY, streamer=Collect())
    assert torch.equal(seen[0], inputs["input_ids"][0])
    assert torch.equal(torch.cat(seen[:-1]), out[0]) and int(seen[-1]) == -1


def test_max_length_counts_the_callers_prompt() -> None:
    model = tiny.make_model("llava")
    inputs = call("llava", model)
    n = inputs["input_ids"].shape[1]
    with attach(model, "uniform:keep=1/2"):
        out = model.generate(**fresh(inputs), max_length=n + 3, min_new_tokens=3, do_sample=False)
    assert out.shape[1] == n + 3


def test_forward_with_labels_scores_the_text_only(family: str) -> None:
    model = tiny.make_model(family)
    inputs = call(family, model, rows=2)
    labels = inputs["input_ids"].masked_fill(inputs["attention_mask"] == 0, -100)
    labels[labels == tiny.IMAGE] = -100
    with attach(model, "uniform:keep=1") as state:
        whole = model(**fresh(inputs), labels=labels)
    want = model(**fresh(inputs), labels=labels)
    assert torch.allclose(whole.loss, want.loss, rtol=1e-5)
    with attach(model, "uniform:keep=1/4") as state:
        part = model(**fresh(inputs), labels=labels)
    assert state.last is not None
    assert part.logits.shape[1] == max(len(r.index) for r in state.last.rows)
    short = state.last.kwargs["labels"]
    assert (short != -100).sum() == (labels != -100).sum()
    assert torch.isfinite(part.loss) and not torch.allclose(part.loss, want.loss, rtol=1e-4)


def test_gradients_reach_the_model_through_forward() -> None:
    model = tiny.make_model("llava")
    inputs = call("llava", model)
    with attach(model, "uniform:keep=1/2"):
        model(**fresh(inputs), labels=inputs["input_ids"].clone()).loss.backward()
    tower = [
        p.grad for n, p in model.named_parameters() if "vision_tower" in n and p.grad is not None
    ]
    assert any(float(g.abs().max()) > 0 for g in tower)


def test_text_only_and_plain_calls_pass_through_untouched() -> None:
    model = tiny.make_model("llava")
    ids = torch.randint(3, 280, (1, 9))
    want = model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), **GREEDY)
    with attach(model, "uniform:keep=1/2") as state:
        got = model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), **GREEDY)
        also = model.generate(ids, attention_mask=torch.ones_like(ids), **GREEDY)
    assert torch.equal(got, want) and torch.equal(also, want) and state.last is None


def test_prompt_lookup_runs_and_gives_the_greedy_tokens() -> None:
    model = tiny.make_model("llava")
    inputs = call("llava", model)
    with attach(model, "uniform:keep=1/2"):
        want = model.generate(**fresh(inputs), **GREEDY)
        got = model.generate(**fresh(inputs), **GREEDY, prompt_lookup_num_tokens=2)
    assert torch.equal(got, want)


def test_refusals_come_before_compute() -> None:
    model = tiny.make_model("llava")
    inputs = call("llava", model)
    with pytest.raises(InputError, match="no transformers model"):
        with attach(torch.nn.Linear(2, 2), "uniform:keep=1/2"):
            pass
    text_only = __import__("transformers").AutoModelForCausalLM.from_config(
        model.config.text_config
    )
    with pytest.raises(UnsupportedError, match="no vision-language model"):
        with attach(text_only, "uniform:keep=1/2"):
            pass
    with attach(model, "uniform:keep=1/2"):
        with pytest.raises(UnsupportedError, match="inputs_embeds"):
            embeds = model.get_input_embeddings()(inputs["input_ids"])
            model.generate(inputs_embeds=embeds, pixel_values=inputs["pixel_values"], **GREEDY)
        holes = fresh(inputs)
        holes["attention_mask"][0, 3] = 0
        with pytest.raises(InputError, match="holes"):
            model.generate(**holes, **GREEDY)


def test_a_method_that_needs_encoder_attention_is_refused_where_there_is_none() -> None:
    model = tiny.make_model("idefics2")
    row = tiny.prompt("idefics2", model, tiny.image_inputs("idefics2"))
    with attach(model, "visionzip:keep=1/2"), pytest.raises(UnsupportedError, match="divprune"):
        model.generate(**row, **tiny.image_inputs("idefics2"), **GREEDY)


def test_adapter_names_the_class_that_cannot_be_driven() -> None:
    with pytest.raises(InputError):
        adapter_for(object())


def test_sequences_of_several_rows_begin_with_their_own_prompt() -> None:
    model = tiny.make_model("llava")
    inputs = call("llava", model, rows=2)
    with attach(model, "uniform:keep=1/2"):
        out = model.generate(**fresh(inputs), **GREEDY, num_beams=2, num_return_sequences=2)
    n = inputs["input_ids"].shape[1]
    assert torch.equal(out[:, :n], inputs["input_ids"].repeat_interleave(2, 0))
