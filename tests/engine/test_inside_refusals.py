"""What a plan inside the language model cannot do is refused by name, in the caller's own terms."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch

import foveate
from foveate.core.errors import InputError, PlanError, UnsupportedError
from foveate.engine.continuous import serving
from foveate.lab import nano_path
from tests.support import tiny

INSIDE = ("fastv:layer=2,keep=1/2", "snapkv:keep=1/4", "kivi:bits=4,residual=32")
GREEDY = {"max_new_tokens": 2, "do_sample": False}


def _call(model: Any) -> dict[str, Any]:
    mm = tiny.split_images("llava", tiny.image_inputs("llava"))[0]
    return {**tiny.prompt("llava", model, mm), **mm}


@pytest.mark.parametrize("plan", INSIDE)
def test_a_cache_is_no_longer_read_once_its_block_has_ended(plan: str) -> None:
    """The model's own attention saw the newest token alone there, and answered."""
    model = tiny.make_model("llava")
    call = _call(model)
    step = torch.tensor([[5]])
    with foveate.attach(model, plan), torch.no_grad():
        cache = model(**call).past_key_values
        model(input_ids=step, past_key_values=cache)
    with torch.no_grad(), pytest.raises(UnsupportedError, match="block"):
        model(input_ids=step, past_key_values=cache)
    with foveate.attach(model, plan), torch.no_grad(), pytest.raises(UnsupportedError):
        model(input_ids=step, past_key_values=cache)


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("use_cache", False),
        ("cache_implementation", "static"),
        ("prompt_lookup_num_tokens", 3),
        ("assistant_early_exit", 2),
    ],
)
@pytest.mark.parametrize("where", ["call", "config of the call", "config of the model"])
def test_options_of_another_cache_are_refused_wherever_they_stand(
    option: str, value: object, where: str
) -> None:
    model = tiny.make_model("llava")
    config = copy.deepcopy(model.generation_config)
    call, options = _call(model), dict(GREEDY)
    if where == "call":
        options[option] = value
    else:
        setattr(config, option, value)
        if where == "config of the model":
            model.generation_config = config
        else:
            config.max_new_tokens, options = 2, {"generation_config": config}
    with foveate.attach(model, "snapkv:keep=1/4"):
        with pytest.raises(UnsupportedError, match=option):
            model.generate(**call, **options)


def test_an_old_default_cache_of_a_checkpoint_is_no_hindrance() -> None:
    """Older Gemma checkpoints say "hybrid", which transformers unsets when it is the default."""
    model = tiny.make_model("llava")
    call = _call(model)
    with foveate.attach(model, "fastv:layer=2,keep=1/2"):
        want = model.generate(**call, **GREEDY)
        model.generation_config.cache_implementation = "hybrid"
        assert model.generate(**call, **GREEDY).equal(want)


def test_the_engine_looks_at_the_models_own_options_too() -> None:
    engine = foveate.Engine.from_pretrained(nano_path())
    engine.model.generation_config.prompt_lookup_num_tokens = 3
    with pytest.raises(UnsupportedError, match="prompt_lookup_num_tokens"):
        engine.generate([foveate.Request("what is the code ?")], "fastv")


@pytest.mark.parametrize("plans", [("uniform:keep=1/2", INSIDE[0]), (INSIDE[0], "uniform:keep=1/2"),
                                   (INSIDE[0], INSIDE[1])])  # fmt: skip
def test_a_second_plan_on_an_attached_model_is_refused(plans: tuple[str, str]) -> None:
    """The outer plan was skipped in silence."""
    model = tiny.make_model("llava")
    with foveate.attach(model, plans[0]):
        with pytest.raises(UnsupportedError, match="attached already"):
            with foveate.attach(model, plans[1]):
                pass
        with foveate.attach(model, "none"):
            pass
    with foveate.attach(model, plans[1]):
        model.generate(**_call(model), **GREEDY)


def test_an_engine_does_not_run_on_a_model_that_is_attached_to_a_plan() -> None:
    engine = foveate.Engine.from_pretrained(nano_path())
    request = foveate.Request("what is the code ?")
    with foveate.attach(engine.model, "visionzip:keep=1/2"):
        with pytest.raises(UnsupportedError, match="attached already"):
            engine.generate([request], "fastv")
    with foveate.attach(engine.model, "none"):
        assert engine.generate([request], "fastv")[0].error is None


def test_continuous_batching_does_not_either() -> None:
    engine = foveate.Engine.from_pretrained(nano_path())
    with (
        foveate.attach(engine.model, "uniform:keep=1/4", processor=engine.processor),
        pytest.raises(UnsupportedError, match="attached already"),
        serving(engine, "snapkv:keep=1/4"),
    ):
        pass


def test_labels_beside_tokens_that_leave_between_layers_are_refused() -> None:
    model = tiny.make_model("llava")
    call = _call(model)
    with foveate.attach(model, INSIDE[0]), pytest.raises(UnsupportedError, match="labels"):
        model(**call, labels=call["input_ids"])
    with foveate.attach(model, INSIDE[1]), torch.no_grad():
        assert model(**call, labels=call["input_ids"]).loss.isfinite()


def test_the_plan_of_an_open_block_cannot_be_exchanged() -> None:
    model = tiny.make_model("llava")
    with foveate.attach(model, INSIDE[0]) as found, pytest.raises(AttributeError):
        state: Any = found
        state.plan = foveate.Plan()


@pytest.mark.parametrize("plan", [["fastv"], 3, 0.5])
def test_a_plan_of_no_known_form_is_refused(plan: Any) -> None:
    with pytest.raises(PlanError, match=type(plan).__name__):
        foveate.Plan.parse(plan)


@pytest.mark.parametrize(
    "requests", [foveate.Request("what ?"), "what ?", ["what ?"], [foveate.Request("a ?"), None]]
)
def test_what_is_no_list_of_requests_is_refused(requests: Any) -> None:
    engine = foveate.Engine.from_pretrained(nano_path())
    with pytest.raises(InputError, match=r"foveate\.Request"):
        engine.generate(requests)
