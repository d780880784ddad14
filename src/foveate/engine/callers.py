"""The caller's view of a shortened generate() call: streamers, criteria, processors, lengths and ids."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from foveate.engine.compress import Compressed

GENERATE_POSITIONS = (
    "inputs",
    "generation_config",
    "logits_processor",
    "stopping_criteria",
    "prefix_allowed_tokens_fn",
)


class CallersStreamer:
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


class ProcessorView:
    """Calls a logits processor with the caller's prompt before the new tokens.

    transformers reads the signature, so it is spelled out and not passed through.
    """

    def __init__(self, inner: Callable[..., Any], full: Tensor, short: int) -> None:
        self.inner, self.full, self.short = inner, full, short

    def seen(self, input_ids: Tensor) -> Tensor:
        each = input_ids.shape[0] // self.full.shape[0]
        prompt = self.full.to(input_ids.device).repeat_interleave(each, 0)
        return torch.cat([prompt, input_ids[:, self.short :]], 1)

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Any:
        return self.inner(self.seen(input_ids), scores)


class CriterionView(ProcessorView):
    """The same for a stopping criterion, which takes further arguments."""

    def __call__(self, input_ids: Tensor, scores: Any, **kwargs: Any) -> Any:
        return self.inner(self.seen(input_ids), scores, **kwargs)


def full_view(call: dict[str, Any], full: Tensor, short: int) -> None:
    """Wrap what the caller gave that reads token ids, in place."""
    from transformers import LogitsProcessorList, StoppingCriteriaList

    for name, kind, view in (
        ("stopping_criteria", StoppingCriteriaList, CriterionView),
        ("logits_processor", LogitsProcessorList, ProcessorView),
    ):
        if call.get(name):
            call[name] = kind([view(f, full, short) for f in call[name]])
    allowed = call.get("prefix_allowed_tokens_fn")
    if allowed is not None:

        def fn(row: int, ids: Tensor) -> Any:
            prompt = full[row].to(ids.device)
            return allowed(row, torch.cat([prompt, ids[short:]]))

        call["prefix_allowed_tokens_fn"] = fn
    if call.get("streamer") is not None:
        call["streamer"] = CallersStreamer(call["streamer"], full.cpu())


def fit_lengths(model: Any, kwargs: dict[str, Any], short: Compressed) -> dict[str, Any]:
    """The call with max_length and min_length, which count the caller's prompt, moved by what was removed.

    A value is looked for where transformers looks: the call, its generation_config, the model's.
    """
    call = dict(short.kwargs)
    removed = kwargs["input_ids"].shape[1] - call["input_ids"].shape[1]
    places = (kwargs.get("generation_config"), model.generation_config)

    def find(name: str) -> Any:
        values = [kwargs.get(name), *(getattr(p, name, None) for p in places)]
        return next((v for v in values if v is not None), None)

    for name in ("max_length", "min_length"):
        value = find(name)
        if isinstance(value, int) and value > 0 and find(f"{name[:3]}_new_tokens") is None:
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
