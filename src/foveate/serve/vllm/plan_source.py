"""Where a plan comes from, and whether vLLM can serve it.

A server's plan is set in one place: `--additional-config '{"foveate": {"plan": "..."}}'`, or the
environment variable FOVEATE_VLLM_PLAN. "none" serves all visual tokens unless a request brings a plan
of its own through `mm_processor_kwargs={"foveate_plan": "..."}`. Without either the plug-in is not
active and vLLM's own code runs.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from foveate.core.errors import FoveateError, PlanError, SettingError, UnsupportedError, nearest
from foveate.core.method import PixelMethod, TokenMethod
from foveate.core.plan import Plan
from foveate.core.registry import origin

PLAN_VARIABLE = "FOVEATE_VLLM_PLAN"
QUESTION_VARIABLE = "FOVEATE_VLLM_QUESTION"
SECTION = "foveate"  # of --additional-config
REQUEST_FIELD = "foveate_plan"  # of a request's mm_processor_kwargs
_FIELDS = ("plan", "question")
_COUNTED = "its number of kept tokens is known before encoding: divprune, visionzip, uniform"


class RequestPlanError(PlanError):
    """A request's own plan cannot be served. A ValueError, which vLLM answers with status 400."""


@dataclass(frozen=True)
class Serving:
    """What a server was started with: the plan as text, the positions of its model, whether some of
    its placeholders carry layout (`newlines`), whether methods that read the question were allowed
    (`question`), and whether the whole encoder can be seen (`encoder`).
    """

    plan: str
    mrope: bool
    newlines: bool = False
    question: bool = False
    encoder: bool = True

    def served(self, text: str | None = None) -> Plan:
        """The plan of a request that brings `text`, or the server's own; PlanError or
        UnsupportedError if vLLM cannot serve it.
        """
        return _served(self.plan if text is None else text, self)

    def requested(self, value: Any) -> Plan:
        """`served` of what a request sent; RequestPlanError says what is wrong with it."""
        if not isinstance(value, str):
            raise RequestPlanError(
                f"{REQUEST_FIELD} must be the text of a plan such as 'visionzip:keep=1/4'; "
                f"got {type(value).__name__}"
            )
        try:
            return self.served(value)
        except FoveateError as error:
            raise RequestPlanError(f"{REQUEST_FIELD} {value!r}: {error}") from None


def configured(additional: Any) -> tuple[str, bool] | None:
    """Plan text and question opt-in of a server from its additional_config and the environment, or
    None if it has neither. SettingError if the two disagree or hold unknown fields.
    """
    section = additional.get(SECTION) if isinstance(additional, Mapping) else None
    if section is not None and not isinstance(section, Mapping):
        raise SettingError(
            f'--additional-config: "{SECTION}" must be an object such as '
            f'{{"plan": "visionzip:keep=1/4"}}; got {section!r}'
        )
    for key in section or {}:
        if key not in _FIELDS:
            raise SettingError(f"--additional-config: {SECTION}.{key}; {nearest(key, _FIELDS)}")
    given = (section or {}).get("plan")
    variable = os.environ.get(PLAN_VARIABLE)
    if section is not None and given is None:
        raise SettingError(f'--additional-config: "{SECTION}" needs a "plan"; "none" keeps all')
    if given is not None and variable and str(given) != variable:
        raise SettingError(
            f"two plans: --additional-config says {str(given)!r}, {PLAN_VARIABLE} says {variable!r}; "
            "set one of them"
        )
    text = given if given is not None else variable
    if text is None:
        return None
    if not str(text).strip():
        raise SettingError(
            f'the plan of --additional-config or {PLAN_VARIABLE} is empty; say "none" to keep all '
            "tokens, or leave it out to run vLLM without the plug-in"
        )
    asked = (section or {}).get("question", os.environ.get(QUESTION_VARIABLE, "false"))
    if str(asked).lower() not in ("true", "false", "1", "0"):
        raise SettingError(f"{SECTION}.question must be true or false; got {asked!r}")
    return str(Plan.load(str(text))), str(asked).lower() in ("true", "1")


@functools.lru_cache(maxsize=256)
def _served(text: str, serving: Serving) -> Plan:
    plan = Plan.parse(text)  # never a file: the text may come from a request
    check_servable(plan, serving)
    if serving.newlines:
        if plan.newlines == "rows":
            raise UnsupportedError(
                "newlines=rows: how many rows keep a token is known only after encoding, but vLLM "
                "reserves places before; say newlines=all, or leave it out"
            )
        plan = replace(plan, newlines="all")
    return plan.resolved(mrope=serving.mrope)


def check_servable(plan: Plan, serving: Serving) -> None:
    """UnsupportedError unless vLLM can serve the plan on such a server."""
    for step in plan.methods:
        if not isinstance(step, TokenMethod | PixelMethod):
            raise UnsupportedError(
                f"{step.name} acts at stage {step.stage!r}; inside vLLM only methods run that change "
                "what is looked at (stage 'pixels') or choose the visual tokens that enter the "
                "language model (stage 'tokens')"
            )
        if isinstance(step, PixelMethod):
            _check_pixels(step)
    if plan.question_turn != -1:
        raise UnsupportedError("question_turn other than -1 is not served by vLLM; drop it")
    if plan.positions == "retain" and not serving.mrope:
        raise UnsupportedError(
            "positions=retain: this model has 1-D positions, which vLLM numbers consecutively; say "
            "positions=auto or renumber"
        )
    method: TokenMethod | None = plan.stage("tokens")
    if method is None:
        return
    if method.counts != "image":
        raise UnsupportedError(
            f"{method.name} decides while it reads the features how many tokens an image keeps, but "
            f"vLLM reserves them before encoding; choose a method of which {_COUNTED}"
        )
    if method.budget.per_request is not None:
        raise UnsupportedError(
            f"{method.name}: per_request shares a budget over the images of a request, but vLLM "
            "caches each image for itself; set keep or per_image"
        )
    needs = {n.what for n in method.needs}
    if "clip" in needs:
        raise UnsupportedError(
            f"{method.name} needs a text tower of its own, which vLLM does not load; choose the "
            "variant that reads the language model, or a method without the question"
        )
    if needs - {"question"} and not serving.encoder:
        raise UnsupportedError(
            f"{method.name} reads the vision encoder, whose heads or pictures tensor parallelism "
            "splits over several processes; choose a method that reads projected features alone, "
            "such as divprune, or --tensor-parallel-size 1"
        )
    if "question" in needs and not serving.question:
        raise UnsupportedError(
            f"{method.name} reads the question, so an image would be encoded anew for every question "
            "about it and share no prefix with the others; allow that with "
            f'"{SECTION}": {{"question": true}} in --additional-config, or choose a method that '
            "looks at the image alone"
        )


def _check_pixels(method: PixelMethod) -> None:
    if method.acts == "patches":
        raise UnsupportedError(
            f"{method.name} takes patches out of a packed vision encoder, which vLLM runs over whole "
            "pictures; take downscale or resolution for fewer patches, or a method of stage 'tokens'"
        )
    if method.needs:
        asked = ", ".join(sorted(n.what for n in method.needs))
        raise UnsupportedError(
            f"{method.name} reads {asked} before the picture is encoded, which vLLM does not give; "
            "choose a pixel method that reads pictures alone, such as downscale"
        )
    if method.counts == "request":
        raise UnsupportedError(
            f"{method.name} shares a budget over the pictures of a request, but vLLM caches each "
            "picture for itself; choose a method that looks at each alone, such as downscale"
        )


def identity(plan: Plan, version: str) -> str:
    """What makes two requests of one image differ for every cache: all settings of the plan,
    defaults included, and the versions whose methods choose: Foveate's, and that of the package that
    brings a third-party method.
    """
    origins = [origin(m.name) for m in plan.methods]
    return "-".join([plan.hash, version, *(o for o in origins if o is not None)])
