"""Where a server's plan comes from, what vLLM can serve of it, and that a server does not start where
it cannot.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from foveate.core.errors import FoveateError, PlanError, SettingError, UnsupportedError
from foveate.core.plan import Plan
from foveate.core.views import Need
from foveate.serve.vllm import plan_source as source
from foveate.serve.vllm import startup
from foveate.serve.vllm.families import FAMILIES

LLAVA = "LlavaForConditionalGeneration"
QWEN = "Qwen2_5_VLForConditionalGeneration"
QWEN3 = "Qwen3VLForConditionalGeneration"
INTERNVL = "InternVLForConditionalGeneration"


@pytest.fixture(autouse=True)
def no_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(source.PLAN_VARIABLE, raising=False)
    monkeypatch.delenv(source.QUESTION_VARIABLE, raising=False)


# --- one place --------------------------------------------------------------------------------------
def test_no_plan_means_not_active() -> None:
    assert source.configured({}) is None
    assert source.configured({"other": 1}) is None


def test_plan_from_additional_config_or_variable(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    given = {"foveate": {"plan": "visionzip:keep=1/4"}}
    assert source.configured(given) == ("visionzip:keep=1/4", False)
    assert source.configured({"foveate": {"plan": "none", "question": True}}) == ("none", True)
    monkeypatch.setenv(source.PLAN_VARIABLE, "visionzip:keep=1/4")
    assert source.configured({}) == ("visionzip:keep=1/4", False)
    assert source.configured(given) == ("visionzip:keep=1/4", False)
    file = tmp_path / "plan.toml"
    file.write_text(Plan.parse("divprune:keep=1/3").to_toml())
    monkeypatch.setenv(source.PLAN_VARIABLE, str(file))
    assert source.configured({}) == ("divprune:keep=1/3", False)


@pytest.mark.parametrize(
    "section,text",
    [
        ({"plan": "none", "plans": 1}, "did you mean plan"),
        ({"question": True}, 'needs a "plan"'),
        ("visionzip:keep=1/4", "must be an object"),
        ({"plan": "none", "question": "often"}, "must be true or false"),
    ],
)
def test_malformed_sections_say_what_to_write(section: Any, text: str) -> None:
    with pytest.raises(SettingError, match=text):
        source.configured({"foveate": section})


def test_two_different_plans_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(source.PLAN_VARIABLE, "divprune:keep=1/4")
    with pytest.raises(SettingError, match="two plans"):
        source.configured({"foveate": {"plan": "visionzip:keep=1/4"}})


# --- what vLLM can serve ------------------------------------------------------------------------------
@pytest.mark.parametrize(
    "plan,text",
    [
        ("fastv:layer=2,keep=1/2", "stage 'prefill'"),
        ("divprune:keep=1/2+snapkv:keep=1/4", "stage 'memory'"),
        ("pixelprune", "runs over whole pictures; take downscale"),
        ("tome:r=8", "stage 'tower'"),
        ("prumerge", "reserves them before encoding"),
        ("trimtokenator-lc:keep=1/4", "reserves them before encoding"),
        ("divprune:per_request=100", "caches each image for itself"),
        ("divprune:keep=1/4;positions=retain", "1-D positions"),
        ("cdpruner-clip:keep=1/4", "text tower"),
        ("cdpruner-lm:keep=1/4", "encoded anew for every question"),
        ("divprune:keep=1/4;question_turn=0", "question_turn"),
    ],
)
def test_what_cannot_be_served_is_refused(plan: str, text: str) -> None:
    with pytest.raises(UnsupportedError, match=text):
        source.Serving(plan, mrope=False).served()


@pytest.mark.parametrize(
    "plan",
    ["downscale:side=336", "resolution+divprune:keep=1/4", "tiles:keep=1/2", "frames:frames=4"],
)
def test_methods_that_change_what_is_looked_at_are_served(plan: str) -> None:
    assert source.Serving(plan, mrope=False).served().stage("pixels") is not None


@pytest.mark.parametrize(
    "member,value,text",
    [
        ("needs", frozenset({Need("features")}), "reads features before"),
        ("counts", "request", "caches each picture for itself"),
    ],
)
def test_a_pixel_method_that_vllm_cannot_feed_is_refused(
    member: str, value: Any, text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = Plan.parse("downscale:side=336")
    monkeypatch.setattr(type(plan.methods[0]), member, value)
    with pytest.raises(UnsupportedError, match=text):
        source.check_servable(plan, source.Serving("none", mrope=False))


def test_positions_are_decided_by_the_model() -> None:
    plan = "visionzip:keep=1/4"
    assert source.Serving(plan, mrope=False).served().positions == "renumber"
    assert source.Serving(plan, mrope=True).served().positions == "retain"
    kept = source.Serving(f"{plan};positions=retain", mrope=True).served()
    assert kept.positions == "retain"


def test_newlines_all_stay_where_there_are_any() -> None:
    plan = "visionzip:keep=1/4"
    assert source.Serving(plan, False, newlines=True).served().newlines == "all"
    assert source.Serving(plan, False).served().newlines == "auto"
    with pytest.raises(UnsupportedError, match="newlines=all"):
        source.Serving(f"{plan};newlines=rows", False, newlines=True).served()


def test_the_question_is_an_explicit_choice() -> None:
    plan = source.Serving("cdpruner-lm:keep=1/4", False, question=True).served()
    assert plan.stage("tokens").name == "cdpruner-lm"


@pytest.mark.parametrize("value", ["visionzip:keep=0", "zipvision:keep=1/2", "visionzip", 3, ""])
def test_bad_plans_of_requests_are_value_errors(value: Any) -> None:
    serving = source.Serving("none", mrope=False)
    if value == "":
        assert serving.requested(value).is_identity
        return
    with pytest.raises(source.RequestPlanError, match="foveate_plan") as caught:
        serving.requested(value)
    assert isinstance(caught.value, ValueError)


def test_a_request_names_no_file(tmp_path: Path) -> None:
    file = tmp_path / "plan.json"
    file.write_text(json.dumps({"methods": []}))
    with pytest.raises(source.RequestPlanError):
        source.Serving("none", mrope=False).requested(str(file))


def test_identity_differs_with_every_setting_and_version() -> None:
    texts = ["visionzip:keep=1/4", "visionzip:keep=1/3", "visionzip:keep=1/4;seed=1", "none"]
    keys = {source.identity(Plan.parse(t), v) for t in texts for v in ("1", "2")}
    assert len(keys) == 2 * len(texts)


# --- start-up -------------------------------------------------------------------------------------------
def config(architecture: str = LLAVA, plan: str | None = "visionzip:keep=1/4", **more: Any) -> Any:
    """What `check` reads of a VllmConfig."""
    vision = SimpleNamespace(num_hidden_layers=24, depth=24, model_type="clip_vision_model")
    hf = SimpleNamespace(vision_config=vision, vision_feature_layer=-2)
    multimodal = SimpleNamespace(video_pruning_rate=None, get_limit_per_prompt=lambda _: 0)
    made = SimpleNamespace(
        model_config=SimpleNamespace(
            architectures=[architecture],
            runner_type="generate",
            multimodal_config=multimodal,
            hf_config=hf,
        ),
        additional_config={} if plan is None else {"foveate": {"plan": plan}},
        compilation_config=SimpleNamespace(),
        parallel_config=SimpleNamespace(tensor_parallel_size=1),
        speculative_config=None,
    )
    for path, value in more.items():
        *owners, name = path.split("__")
        owner = made
        for o in owners:
            owner = getattr(owner, o)
        setattr(owner, name, value)
    return made


def test_a_server_with_a_plan_knows_it() -> None:
    made = config(QWEN)
    startup.check(made)
    assert startup.serving_of(made.model_config) == source.Serving("visionzip:keep=1/4", True)
    startup.check(made)  # copies of the config are checked again
    idle = config(plan=None)
    startup.check(idle)
    assert startup.serving_of(idle.model_config) is None


@pytest.mark.claim("V5")
@pytest.mark.parametrize(
    "more,text",
    [
        ({"plan": "visionzip:keep=2"}, "out of range"),
        ({"plan": "vizionzip:keep=1/2"}, "did you mean visionzip"),
        ({"architecture": "BunnyForCausalLM"}, "does not know BunnyForCausalLM"),
        ({"model_config__architectures": []}, "does not know this model"),
        ({"model_config__multimodal_config": None}, "without pictures"),
        ({"model_config__multimodal_config__video_pruning_rate": 0.5}, "set one of them"),
        ({"architecture": INTERNVL, "plan": "evs:keep=1/2"}, "one picture a frame"),
        ({"model_config__model_impl": "transformers"}, "another class"),
        ({"architecture": QWEN, "model_config__enable_prompt_embeds": True}, "prompt-embeds"),
        ({"compilation_config__compile_mm_encoder": True}, "switch it off"),
        ({"compilation_config__cudagraph_mm_encoder": True}, "switch it off"),
        ({"parallel_config__tensor_parallel_size": 2}, "tensor parallelism"),
        ({"plan": "fastvid:keep=1/2"}, "vLLM runs the first 23"),
        ({"model_config__hf_config__vision_feature_layer": [-2, -7]}, "side by side"),
        ({"lora_config": SimpleNamespace(enable_tower_connector_lora=True)}, "LoRA"),
        ({"architecture": QWEN, "speculative_config": object()}, "speculative"),
        ({"architecture": QWEN, "parallel_config__pipeline_parallel_size": 2}, "first stage"),
        ({"plan": "downscale:side=336"}, "takes pictures of one size"),
        ({"plan": "tiles:keep=1/2"}, "needs every part"),
        ({"plan": "tiles:keep=1/2", "architecture": QWEN}, "needs every part"),
        ({"plan": "frames:frames=4"}, "chooses frames of videos"),
        (
            {
                "plan": "downscale:keep=1/4",
                "architecture": QWEN,
                "model_config__multimodal_config__get_limit_per_prompt": lambda m: 9,
            },
            "limit-mm-per-prompt",
        ),
    ],
)
def test_a_server_that_would_not_hold_back_tokens_does_not_start(
    more: dict[str, Any], text: str
) -> None:
    """A broken plan, a model that is not known, a setting that passes the plug-in by: an error."""
    with pytest.raises((PlanError, UnsupportedError), match=text) as caught:
        startup.check(config(**more))
    assert isinstance(caught.value, FoveateError)


def test_a_family_whose_videos_would_pass_whole_does_not_start() -> None:
    """None that the plug-in knows today, but a further one may be."""
    family = replace(FAMILIES[QWEN], videos=False)
    many = {"model_config__multimodal_config__get_limit_per_prompt": lambda m: 9}
    with pytest.raises(UnsupportedError, match="limit-mm-per-prompt"):
        startup.refuse_settings(config(QWEN, **many), family)
    startup.refuse_settings(config(QWEN), family)


@pytest.mark.parametrize("architecture", [LLAVA, QWEN, QWEN3, INTERNVL])
def test_vllms_limit_for_videos_is_no_obstacle_where_none_pass_whole(architecture: str) -> None:
    """vLLM names 999 videos for every model, also for those that take pictures alone."""
    limit = {"model_config__multimodal_config__get_limit_per_prompt": lambda m: 999}
    made = config(architecture, **limit)
    startup.check(made)
    assert startup.serving_of(made.model_config) is not None


def test_a_requests_field_is_no_place_for_a_servers_plan() -> None:
    given = {"foveate_plan": "visionzip:keep=1/4"}
    for plan in (None, "none"):
        made = config(plan=plan, model_config__multimodal_config__mm_processor_kwargs=given)
        with pytest.raises(SettingError, match="single requests"):
            startup.check(made)


def test_an_empty_plan_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(SettingError, match="empty"):
        source.configured({"foveate": {"plan": ""}})
    monkeypatch.setenv(source.PLAN_VARIABLE, "")
    with pytest.raises(SettingError, match="empty"):
        source.configured({})


def test_parts_and_drafters_are_passed_over() -> None:
    draft = config("LlamaForCausalLMEagle3", model_config__runner_type="draft")
    startup.check(draft)
    assert startup.serving_of(draft.model_config) is None
