"""What happens when a server starts: families take their places, and the plan is checked before
anything is loaded.

vLLM builds one VllmConfig for an engine, in every kind of server, and hands it to its other
processes; so the check sits at the end of its construction. A plan that cannot be served, or a model
that the plug-in does not know, stops the start: nothing is served uncompressed in silence.
"""

from __future__ import annotations

import functools
import logging
from typing import Any

from foveate.core.errors import SettingError, UnsupportedError
from foveate.serve.vllm.families import FAMILIES, Family, family_of
from foveate.serve.vllm.plan_source import (
    PLAN_VARIABLE,
    REQUEST_FIELD,
    SECTION,
    Serving,
    configured,
)
from foveate.serve.vllm.showing import refuse
from foveate.serve.vllm.void import count_nans, let_scheduler_end_void

_log = logging.getLogger("foveate")
_KEY = "foveate_serving"  # in the instance dict of ModelConfig: travels with it to every process
_MARK = "_foveate_wraps"
_stock: dict[str, Any] = {}


def install() -> None:
    """Register the families and put the check in place; may be called again."""
    from vllm import ModelRegistry
    from vllm.config import VllmConfig
    from vllm.platforms import current_platform

    for architecture in FAMILIES:
        known = ModelRegistry.models.get(architecture)
        if known is None or architecture in _stock:
            continue
        _stock[architecture] = known
        ModelRegistry.register_model(architecture, f"foveate.serve.vllm.models:{architecture}")
    if not hasattr(VllmConfig.__post_init__, _MARK):
        VllmConfig.__post_init__ = _checked(VllmConfig.__post_init__)
    let_scheduler_end_void()
    if current_platform.is_cpu():
        from foveate.serve.vllm.mrope import let_cpu_runner_prune

        let_cpu_runner_prune()


def stock_class(architecture: str) -> Any:
    """vLLM's own model class of an architecture."""
    return _stock[architecture].load_model_cls()


def serving_of(model_config: Any) -> Serving | None:
    """What this server serves, None where no plan was set."""
    found: Serving | None = vars(model_config).get(_KEY)
    return found


def _checked(original: Any) -> Any:
    @functools.wraps(original)
    def post_init(self: Any, *args: Any, **kwargs: Any) -> None:
        original(self, *args, **kwargs)
        check(self)

    setattr(post_init, _MARK, True)
    return post_init


def check(vllm_config: Any) -> None:
    """Decide once for an engine's config what it serves; PlanError or UnsupportedError if it cannot."""
    model = vllm_config.model_config
    # Copies for a part of the model or for a drafter keep what was decided for the whole.
    if model is None or _KEY in vars(model) or getattr(model, "runner_type", "") == "draft":
        return
    found = configured(vllm_config.additional_config)
    multimodal = getattr(model, "multimodal_config", None)
    if REQUEST_FIELD in (getattr(multimodal, "mm_processor_kwargs", None) or {}):
        raise SettingError(
            f"--mm-processor-kwargs: {REQUEST_FIELD} is a field of single requests; a server's plan is "
            f"set in --additional-config or {PLAN_VARIABLE}"
        )
    if found is None:
        return
    text, question = found
    architectures = list(getattr(model, "architectures", ()))
    known = [a for a in architectures if a in FAMILIES]
    family = family_of(known[0] if known else (architectures or ["this model"])[0])
    alone = vllm_config.parallel_config.tensor_parallel_size == 1
    serving = Serving(text, family.mrope, family.newlines, question, alone)
    plan = serving.served()
    refuse_settings(vllm_config, family)
    family.check(model.hf_config, plan)
    pixels = plan.stage("pixels")
    if pixels is not None:
        videos = family.videos and bool(model.multimodal_config.get_limit_per_prompt("video"))
        refuse(pixels, family, None, videos)
    vars(model)[_KEY] = serving
    count_nans()
    _log.warning(
        "Foveate serves %s with plan %s (positions %s)", family.architecture, plan, plan.positions
    )


def refuse_settings(vllm_config: Any, family: Family) -> None:
    """UnsupportedError for settings of vLLM under which pictures would pass by the plug-in."""
    multimodal = vllm_config.model_config.multimodal_config
    if multimodal is None:
        raise UnsupportedError(
            f"a Foveate plan was set, but vLLM runs this model without pictures; remove "
            f"{PLAN_VARIABLE} and {SECTION} from --additional-config"
        )
    impl = getattr(vllm_config.model_config, "model_impl", "auto")
    if impl not in ("auto", "vllm"):
        raise UnsupportedError(
            f"--model-impl {impl} runs the model in another class than the plug-in's, which would serve "
            "all visual tokens; leave it out to serve a plan"
        )
    if family.mrope and getattr(vllm_config.model_config, "enable_prompt_embeds", False):
        raise UnsupportedError(
            "--enable-prompt-embeds with M-RoPE models is not served together with a Foveate plan: "
            "vLLM hands such embeddings over as if they carried positions; switch it off"
        )
    # vLLM names a limit for videos whether the model takes any or not.
    held = family.videos or family.pictures_only
    if not held and multimodal.get_limit_per_prompt("video"):
        raise UnsupportedError(
            f"Foveate's plug-in does not hold back tokens of videos of {family.architecture}, so that "
            "they would be served whole: switch videos off with "
            "--limit-mm-per-prompt '{\"video\": 0}', or serve the frames as pictures"
        )
    if getattr(multimodal, "video_pruning_rate", None):
        raise UnsupportedError(
            "--video-pruning-rate and a Foveate plan both choose visual tokens; set one of them (the "
            "plans evs and vidcom2 hold the same rules)"
        )
    compilation = vllm_config.compilation_config
    for name in ("compile_mm_encoder", "cudagraph_mm_encoder"):
        if getattr(compilation, name, False):
            raise UnsupportedError(
                f"{name} runs the vision encoder past the plug-in; switch it off to serve a plan"
            )
    lora = getattr(vllm_config, "lora_config", None)
    if getattr(lora, "enable_tower_connector_lora", False):
        raise UnsupportedError(
            "LoRA on the vision tower or its connector counts encoder tokens by what enters the "
            "language model, which a plan changes; switch enable_tower_connector_lora off"
        )
    if family.mrope and vllm_config.speculative_config is not None:
        raise UnsupportedError(
            "speculative decoding with M-RoPE models is not served together with a Foveate plan: the "
            "drafter looks one token ahead, where positions are not known yet"
        )
    if family.mrope and getattr(vllm_config.parallel_config, "pipeline_parallel_size", 1) > 1:
        raise UnsupportedError(
            "pipeline parallelism with M-RoPE models is not served together with a Foveate plan: vLLM "
            "tells the first stage alone where kept tokens stand; take --pipeline-parallel-size 1"
        )
