"""The drop-in: `with foveate.attach(model, plan): model.generate(**inputs)`, any generate option,
the caller's own ids back.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from foveate.core.errors import InputError, UnsupportedError
from foveate.core.plan import Plan
from foveate.engine.cache import FeatureCache
from foveate.engine.compress import Compressed, compress, has_media, refuse_later_stages
from foveate.engine.select import TextTower
from foveate.models import compat
from foveate.models.adapter import AutoAdapter, adapter_for


class Attached:
    """What `attach` yields: the resolved plan, and the record of the last call's choices in `last`."""

    def __init__(self, adapter: AutoAdapter, plan: Plan) -> None:
        self.adapter = adapter
        self.plan = plan
        self.last: Compressed | None = None


class _Streamer:
    """Hands a user's streamer the caller's own prompt in place of the shortened one."""

    def __init__(self, inner: Any, prompt: Tensor) -> None:
        self.inner, self.prompt, self.first = inner, prompt, True

    def put(self, value: Tensor) -> None:
        if self.first:
            self.first = False
            value = self.prompt
        self.inner.put(value)

    def end(self) -> None:
        self.inner.end()


@contextlib.contextmanager
def attach(
    model: Any,
    plan: str | Plan,
    *,
    processor: Any = None,
    text_tower: Callable[[str], Any] | None = None,
    cache: FeatureCache | None = None,
) -> Iterator[Attached]:
    """Run `plan` inside the user's own generate() and forward() calls, until the block ends.

    The processor, if given, tells special tokens and tile markers. text_tower: the question's words
    to an embedding (e,) in the space of the encoder's features, for methods that compare the two.
    cache: a FeatureCache, so that pictures seen before are not encoded again, by plan "none" either.
    Sequences start with the caller's full input_ids; logits of forward() are those of the shortened
    sequence, its loss is over the caller's labels. Raises UnsupportedError before any compute if the
    model or the plan cannot be served.
    """
    parsed = Plan.parse(plan)
    refuse_later_stages(parsed)
    pixels = parsed.stage("pixels")
    if pixels is not None:
        raise UnsupportedError(
            f"{pixels.name} changes the picture before preprocessing, which has "
            "already happened when generate() is called: use foveate.Engine, or drop it from the plan"
        )
    inner: Any = compat.unwrap(model)
    adapter = adapter_for(inner)
    specials = special_ids(adapter, processor)
    tower = reading_ids(text_tower, processor)
    state = Attached(adapter, parsed.resolved(mrope=adapter.mrope))
    generate, forward = inner.generate, inner.forward
    own_forward = type(inner).forward

    def prepared(kwargs: dict[str, Any]) -> Compressed | None:
        if (parsed.is_identity and cache is None) or not has_media(adapter, kwargs):
            return None
        state.last = compress(
            adapter, parsed, kwargs, special_ids=specials, text_tower=tower, cache=cache
        )
        return state.last

    @functools.wraps(generate)
    def generate_with_plan(inputs: Any = None, *args: Any, **kwargs: Any) -> Any:
        if inputs is not None and "input_ids" not in kwargs:
            kwargs["input_ids"], inputs = inputs, None
        with torch.no_grad():
            short = prepared(kwargs)
        if short is None:
            return generate(inputs, *args, **kwargs)
        call = fit_lengths(inner, kwargs, short)
        if call.get("streamer") is not None:
            call["streamer"] = _Streamer(call["streamer"], kwargs["input_ids"].cpu())
        with compat.expanding_by_row(inner, short.expand):
            out = generate(inputs, *args, **call)
        return with_callers_ids(out, kwargs["input_ids"], call["input_ids"])

    @functools.wraps(own_forward)
    def forward_with_plan(*args: Any, **kwargs: Any) -> Any:
        bound = inspect.signature(forward).bind_partial(*args, **kwargs)
        values = dict(bound.arguments)
        values.update(values.pop("kwargs", {}))
        short = prepared(values)
        return forward(**short.kwargs) if short is not None else forward(*args, **kwargs)

    with contextlib.ExitStack() as stack:
        stack.enter_context(compat.instance_attribute(inner, "generate", generate_with_plan))
        # A hook of accelerate may have replaced forward on the instance; ours wraps whatever is
        # there.
        stack.enter_context(compat.instance_attribute(inner, "forward", forward_with_plan))
        yield state


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


def reading_ids(text_tower: Callable[[str], Any] | None, processor: Any) -> TextTower | None:
    """The user's text tower as a function of token ids; it needs the processor's tokenizer."""
    if text_tower is None:
        return None
    tokenizer = getattr(processor, "tokenizer", processor)
    if tokenizer is None:
        raise InputError("text_tower= needs processor=, whose tokenizer reads the question's ids")
    return lambda ids: text_tower(tokenizer.decode(ids))


def fit_lengths(model: Any, kwargs: dict[str, Any], short: Compressed) -> dict[str, Any]:
    """max_length and min_length count the caller's prompt: move them by the tokens that were
    removed.
    """
    call = dict(short.kwargs)
    removed = kwargs["input_ids"].shape[1] - call["input_ids"].shape[1]
    config = kwargs.get("generation_config")
    config = config if config is not None else model.generation_config
    for name in ("max_length", "min_length"):
        explicit = kwargs.get(name)
        value = explicit if explicit is not None else getattr(config, name, None)
        new = f"{name[:3]}_new_tokens"
        free = kwargs.get(new) is None and getattr(config, new, None) is None
        if isinstance(value, int) and value > 0 and free:
            call[name] = max(1, value - removed)
    return call


def with_callers_ids(out: Any, full: Tensor, short: Tensor) -> Any:
    """Generated sequences with the shortened prompt replaced by the caller's own."""
    sequences = out if torch.is_tensor(out) else out.sequences
    repeat = sequences.shape[0] // full.shape[0]
    prompt = full.to(sequences.device).repeat_interleave(repeat, 0)
    whole = torch.cat([prompt, sequences[:, short.shape[1] :]], 1)
    if torch.is_tensor(out):
        return whole
    out.sequences = whole
    return out
