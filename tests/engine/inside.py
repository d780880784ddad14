"""Plans inside the language model against a full-length, cache-free forward that hides, in the layers
that dropped them, the columns of dropped tokens.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from foveate.core import Plan
from foveate.engine.compress import Compressed, compress
from foveate.engine.language_door import begin
from foveate.engine.language_run import LanguageRun
from foveate.models.adapter import AutoAdapter
from tests.engine.reference import decoder_layers

STEPS = 16


def generated(
    model: Any,
    adapter: AutoAdapter,
    plan: Plan,
    call: dict[str, Any],
    steps: int = STEPS,
    guidance: list[Any] | None = None,
    **options: Any,
) -> tuple[Any, Compressed, RecordedRun]:
    """Greedy steps of a call under a plan, with logits, what entered, and the run for its record.

    guidance: scores of the visual tokens of each row, for methods that follow a guide.
    """
    avoid = [t for t in (adapter.token_id("image"), adapter.token_id("video")) if t is not None]
    short = compress(adapter, plan, call)
    for row, scores in zip(short.rows, guidance or [], strict=False):
        row.guidance = scores
    run = RecordedRun(adapter, plan)
    with run.attached():
        kwargs = {**short.kwargs, **begin(run, short)}
        if "mm_encoder_outputs" in kwargs:
            kwargs["mm_encoder_outputs"] = short.expand(None, 1)
        with run.record.keeping(run):
            out = model.generate(
                **kwargs,
                max_new_tokens=steps,
                min_new_tokens=steps,
                do_sample=False,
                suppress_tokens=avoid,
                return_dict_in_generate=True,
                output_logits=True,
                **options,
            )
    return out, short, run


class Record:
    """Which prompt places were present at each layer, by row, of the last prefill."""

    def __init__(self) -> None:
        self.present: list[list[Any]] = []

    @contextlib.contextmanager
    def keeping(self, run: LanguageRun) -> Iterator[None]:
        layers = len(run.layers)

        def hook(*_: Any) -> None:
            prefill = run.prefill
            if prefill is not None:
                here = [prefill.versions[prefill.at_layer[run.sources[i]]] for i in range(layers)]
                rows = len(prefill.meta)
                self.present = [[v.present[b] for v in here] for b in range(rows)]

        handle = run.layers[-1].register_forward_hook(hook)
        try:
            yield
        finally:
            handle.remove()


class RecordedRun(LanguageRun):
    """A run that remembers what was present."""

    def __init__(self, adapter: AutoAdapter, plan: Plan) -> None:
        super().__init__(adapter, plan)
        self.record = Record()


@contextlib.contextmanager
def hidden_by_layer(model: Any, gone: list[Tensor], mask_of: Any = None) -> Iterator[None]:
    """While open, no query of layer i sees the key columns gone[i] (bool over the full length);
    mask_of(mask, gone, length) may build another mask.
    """

    def hook(index: int) -> Any:
        def inner(_: Any, args: Any, kwargs: dict[str, Any]) -> Any:
            states = args[0] if args else kwargs["hidden_states"]
            length = states.shape[-2]
            mask = kwargs.get("attention_mask")
            columns = gone[index]
            if mask is not None and mask.ndim == 4 and mask.shape[-1] != columns.shape[0]:
                return args, kwargs
            if mask_of is not None:
                kwargs["attention_mask"] = mask_of(mask, columns, length)
                return args, kwargs
            seen = torch.zeros_like(columns) | ~columns
            causal = torch.ones(length, length, dtype=torch.bool).tril()[None, None]
            if mask is None:
                mask = causal
            elif mask.ndim == 2:
                mask = mask[:, None, None].bool() & causal
            if mask.dtype == torch.bool:
                # A token that left is computed on in this reference; nobody reads it.
                mask = (mask & seen) | torch.eye(length, dtype=torch.bool)
            else:
                mask = mask.masked_fill(~seen, torch.finfo(mask.dtype).min)
            kwargs["attention_mask"] = mask
            return args, kwargs

        return inner

    handles = [
        layer.register_forward_pre_hook(hook(i), with_kwargs=True)
        for i, layer in enumerate(decoder_layers(model))
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def reference_logits(
    model: Any,
    adapter: AutoAdapter,
    row: dict[str, Any],
    mm: dict[str, Any],
    sequence: Tensor,
    present: list[Any],
    positions: Tensor,
    shift: int = 0,
    mask_of: Any = None,
) -> Tensor:
    """Logits (steps, V) of the last prompt token and all but the last new token of one row.

    sequence (n + steps,) is its prompt and new tokens; positions (p, n) those of the prompt. `shift`
    moves one visual token's position: the planted fault.
    """
    n = row["input_ids"].shape[1]
    ids = sequence[:-1][None]
    extra = ids.shape[1] - n
    tail = torch.stack([positions[:, -1] + 1 + j for j in range(extra)], -1)
    places = torch.cat([positions, tail], -1)
    if shift:
        visual = [
            i for i, x in enumerate(row["input_ids"][0].tolist()) if x == adapter.token_id("image")
        ]
        # A method may end without any: then one of the deepest layer that has some.
        stays = next(s for p in reversed(present) if (s := sorted(set(visual) & set(p.tolist()))))
        places = places.clone()
        places[:, stays[len(stays) // 2]] += shift
    places = places[:, None] if places.shape[0] > 1 else places
    gone = []
    for kept in present:
        columns = torch.ones(n + extra, dtype=torch.bool)
        columns[torch.as_tensor(kept)] = False
        columns[n:] = False
        gone.append(columns)
    call: dict[str, Any] = {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "position_ids": places,
    }
    for key in ("token_type_ids", "mm_token_type_ids"):
        if key in row:
            fill = 1 if "paligemma" in adapter.model_type else 0
            call[key] = torch.cat([row[key], torch.full((1, extra), fill)], 1)
    with hidden_by_layer(model, gone, mask_of):
        return model(**call, **mm, use_cache=False).logits[0, n - 1 :]
