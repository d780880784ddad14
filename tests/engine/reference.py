"""Independent references: a full-length forward in which dropped columns are hidden from every
layer.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor


def decoder_layers(model: Any) -> Any:
    lm = model.get_decoder()
    return lm.layers if hasattr(lm, "layers") else lm.model.layers


@contextlib.contextmanager
def hidden_columns(model: Any, columns: np.ndarray) -> Iterator[None]:
    """While open, no query of any decoder layer sees these key columns (full-length, cache-free
    forward).
    """

    def hook(_: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        states = args[0] if args else kwargs["hidden_states"]
        length = states.shape[-2]
        seen = torch.ones(length, dtype=torch.bool)
        seen[torch.as_tensor(columns)] = False
        causal = torch.ones(length, length, dtype=torch.bool).tril()[None, None]
        mask = kwargs.get("attention_mask")
        if mask is None:
            mask = causal
        elif mask.ndim == 2:
            mask = mask[:, None, None].bool() & causal
        if mask.dtype == torch.bool:
            mask = mask & seen
        else:
            mask = mask.masked_fill(~seen, torch.finfo(mask.dtype).min)
        kwargs["attention_mask"] = mask
        return args, kwargs

    handles = [
        layer.register_forward_pre_hook(hook, with_kwargs=True) for layer in decoder_layers(model)
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextlib.contextmanager
def features_replaced(model: Any, modality: str, edit: Callable[[Any], None]) -> Iterator[None]:
    """While open, get_<modality>_features returns features changed by `edit`; all after it is the
    model's own.
    """
    base, name = model.base_model, f"get_{modality}_features"
    original = getattr(base, name)

    def edited(*args: Any, **kwargs: Any) -> Any:
        out = original(*args, **kwargs)
        edit(out)
        return out

    base.__dict__[name] = edited
    try:
        yield
    finally:
        del base.__dict__[name]


def relative(a: Tensor, b: Tensor) -> float:
    """max |a - b| over max |b|."""
    return float((a - b).abs().max() / b.abs().max())
