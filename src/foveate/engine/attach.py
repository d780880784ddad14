"""The drop-in: `with foveate.attach(model, plan): model.generate(**inputs)`, any generate option,
the caller's own ids back.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

from foveate.core.errors import InputError, UnsupportedError
from foveate.core.plan import Plan
from foveate.engine.cache import FeatureCache
from foveate.engine.callers import (
    GENERATE_POSITIONS,
    fit_lengths,
    full_view,
    with_callers_ids,
)
from foveate.engine.compress import (
    Compressed,
    compress,
    has_media,
    refuse_later_stages,
    refuse_old_cache,
)
from foveate.engine.language_door import (
    begin,
    language_run,
    refuse_own_caches,
    refuse_unguided,
)
from foveate.engine.language_run import LanguageRun
from foveate.engine.patches import acts_on_patches, patches_of
from foveate.engine.select import TextTower
from foveate.models import compat
from foveate.models.adapter import AutoAdapter, adapter_for


class Attached:
    """What `attach` yields: the resolved plan, and the record of the last call's choices in `last`."""

    def __init__(self, adapter: AutoAdapter, plan: Plan) -> None:
        self.adapter = adapter
        self._plan = plan
        self.last: Compressed | None = None

    @property
    def plan(self) -> Plan:
        """For the length of the block; another plan takes another block."""
        return self._plan


@contextlib.contextmanager
def attach(
    model: Any,
    plan: str | Plan,
    *,
    processor: Any = None,
    text_tower: Callable[[str], Any] | str | Path | None = None,
    cache: FeatureCache | None = None,
) -> Iterator[Attached]:
    """Run `plan` inside the user's own generate() and forward() calls, until the block ends.

    The processor, if given, tells special tokens, tile markers and how pictures were normalised.
    text_tower, for methods that compare words and patches: the folder or hub id of the CLIP or SigLIP
    model that the vision tower was taken from, a JointSpace, or a function of the question's words
    that answers (e,) in the width of the encoder's features.
    cache: a FeatureCache, so that pictures seen before are not encoded again, by plan "none" either.
    Sequences start with the caller's full input_ids; logits of forward() are those of the shortened
    sequence, its loss is over the caller's labels. Raises UnsupportedError before any compute if the
    model or the plan cannot be served.
    """
    parsed = Plan.parse(plan)
    refuse_later_stages(parsed)
    refuse_unguided(parsed)
    pixels = parsed.stage("pixels")
    if pixels is not None and not acts_on_patches(parsed):
        raise UnsupportedError(
            f"{pixels.name} changes the picture before preprocessing, which has "
            "already happened when generate() is called: use foveate.Engine, or drop it from the plan"
        )
    inner: Any = compat.unwrap(model)
    adapter = adapter_for(inner)
    if parsed.methods:
        refuse_attached(inner)
    patches_of(adapter, parsed, processor)  # refuses what this tower cannot do
    specials = special_ids(adapter, processor)
    tower = reading_ids(text_tower, processor)
    state = Attached(adapter, parsed.resolved(mrope=adapter.mrope))
    run: LanguageRun | None = None
    generate, forward = inner.generate, inner.forward
    own_forward = type(inner).forward
    lock = threading.RLock()  # config and hooks of a model are one for all threads

    def prepared(kwargs: dict[str, Any]) -> Compressed | None:
        if parsed.is_identity and cache is None:
            return None
        if not has_media(adapter, kwargs):
            refuse_old_cache(adapter, kwargs)
            return None
        state.last = compress(
            adapter,
            parsed,
            kwargs,
            special_ids=specials,
            text_tower=tower,
            cache=cache,
            processor=processor,
        )
        return state.last

    @functools.wraps(generate)
    def generate_with_plan(*args: Any, **kwargs: Any) -> Any:
        kwargs = {**dict(zip(GENERATE_POSITIONS, args, strict=False)), **kwargs}
        rest = args[len(GENERATE_POSITIONS) :]
        if kwargs.get("inputs") is not None and "input_ids" not in kwargs:
            kwargs["input_ids"] = kwargs.pop("inputs")
        with lock:
            if run is not None:
                run.idle()
                refuse_own_caches(kwargs, inner.generation_config)
            with torch.no_grad():
                short = prepared({**compat.with_inferred_mask(inner, kwargs)})
            if short is None:
                inputs = kwargs.pop("inputs", None)
                return generate(inputs, **kwargs) if not rest else generate(*args, **kwargs)
            call = fit_lengths(inner, kwargs, short)
            full_view(call, kwargs["input_ids"], call["input_ids"].shape[1])
            if run is not None:
                call.update(begin(run, short, specials))
            with compat.expanding_by_row(inner, short.expand):
                out = generate(**call)
        return with_callers_ids(out, kwargs["input_ids"], call["input_ids"])

    @functools.wraps(own_forward)
    def forward_with_plan(*args: Any, **kwargs: Any) -> Any:
        bound = inspect.signature(forward).bind_partial(*args, **kwargs)
        values = dict(bound.arguments)
        values.update(values.pop("kwargs", {}))
        if not has_media(adapter, values):
            return forward(*args, **kwargs)
        if run is not None and run.method is not None and values.get("labels") is not None:
            raise UnsupportedError(
                f"labels beside {run.method.name}: tokens leave between layers, so that some labels "
                "have no logits. Leave labels out and take the loss from the logits yourself, or drop "
                f"{run.method.name} from the plan"
            )
        with lock:
            short = prepared(values)
            if short is None:
                return forward(*args, **kwargs)
            call = dict(short.kwargs)
            if run is not None:
                call.update(begin(run, short, specials, cached=call.get("use_cache") is not False))
            out = forward(**call)
            compat.continue_positions(adapter, short.kwargs)
        return out

    # For refuse_attached(); a block without methods inside another leaves that one's mark. A function
    # may carry attributes; the type of functions does not say so.
    generate_with_plan.foveate_plan = parsed if parsed.methods else attached_plan(inner)  # type: ignore[attr-defined]
    with contextlib.ExitStack() as stack:
        stack.enter_context(compat.kept_state(inner.base_model))
        run = stack.enter_context(language_run(adapter, parsed))
        stack.enter_context(compat.instance_attribute(inner, "generate", generate_with_plan))
        # A hook of accelerate may have replaced forward on the instance; ours wraps whatever is
        # there.
        stack.enter_context(compat.instance_attribute(inner, "forward", forward_with_plan))
        yield state


def attached_plan(model: Any) -> Plan | None:
    """The plan of the block that a model is in, None outside of any and for plans without methods."""
    found: Plan | None = getattr(model.generate, "foveate_plan", None)
    return found


def refuse_attached(model: Any) -> None:
    """UnsupportedError where a plan acts on the model already: of two only one would be followed."""
    outer = attached_plan(model)
    if outer is not None:
        raise UnsupportedError(
            f"the model is attached already, to the plan {outer}: leave that block first, or give "
            "one plan with the methods of both"
        )


def special_ids(adapter: AutoAdapter, processor: Any) -> frozenset[int]:
    """Ids that are no words of a question; also sets the tile marker of families that have one."""
    found: set[int] = set()
    for config in (adapter.config, adapter.text_config):
        for name, value in vars(config).items():
            if name.endswith(("_token_id", "_token_index")) and isinstance(value, int):
                found.add(value)
    tokenizer = getattr(processor, "tokenizer", processor)
    if tokenizer is not None:
        found |= set(tokenizer.all_special_ids)
        if hasattr(adapter, "global_marker"):
            marker = tokenizer.convert_tokens_to_ids("<global-img>")
            unknown = getattr(tokenizer, "unk_token_id", None)
            adapter.global_marker = marker if marker not in (None, unknown) else None
    return frozenset(found)


class _Reading:
    """A text tower as a function of token ids; `patches` where the tower has one."""

    def __init__(self, tower: Callable[[str], Any], tokenizer: Any) -> None:
        self.tower, self.tokenizer = tower, tokenizer
        if hasattr(tower, "patches"):
            self.patches = tower.patches

    def __call__(self, ids: list[int]) -> Any:
        return self.tower(self.tokenizer.decode(ids))


def reading_ids(
    text_tower: Callable[[str], Any] | str | Path | None, processor: Any
) -> TextTower | None:
    """The user's text tower as a function of token ids; it needs the processor's tokenizer.

    A folder or hub id is loaded as a JointSpace. InputError for a bare model without its tokenizer.
    """
    if text_tower is None:
        return None
    if hasattr(text_tower, "get_text_features"):
        raise InputError(
            "text_tower= is a model without its tokenizer: give its folder or hub id, or "
            "foveate.models.joint.JointSpace(model, tokenizer)"
        )
    tokenizer = getattr(processor, "tokenizer", processor)
    if tokenizer is None:
        raise InputError("text_tower= needs processor=, whose tokenizer reads the question's ids")
    if isinstance(text_tower, str | Path):
        from foveate.models.joint import JointSpace

        text_tower = JointSpace.from_pretrained(text_tower)
    return _Reading(text_tower, tokenizer)
