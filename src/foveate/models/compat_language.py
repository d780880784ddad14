"""Private transformers names around the language model: its attention functions, layer arguments,
caches and DeepStack rows. Checked against transformers 5.23.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from foveate.core.errors import UnsupportedError
from foveate.models import compat

_NAMES = {"sdpa": "foveate_kv_sdpa", "eager": "foveate_kv_eager"}
CACHED_KINDS = ("full_attention", "sliding_attention", "chunked_attention")


class Attending(Protocol):
    """What takes over the decoder's attention while `routed` is open."""

    def attend(
        self,
        module: nn.Module,
        inner: Callable[..., Any],
        q: Tensor,
        k: Tensor,
        v: Tensor,
        mask: Tensor | None,
        kwargs: dict[str, Any],
    ) -> Any:
        """As an attention function of transformers: output (B, S, H, a) and weights or None."""


# By the id of a decoder's module who takes over its attention, the last one's turn. Configs and hooks of
# a model are one for all threads, and so is this; other models that are attached have their own.
_taken: dict[int, list[Attending]] = {}


def _routed(kind: str) -> Callable[..., Any]:
    def forward(
        module: nn.Module,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Tensor | None,
        **kwargs: Any,
    ) -> Any:
        inner = _inner(kind, module)
        stack = _taken.get(id(module))
        if not stack:
            return inner(module, query, key, value, attention_mask, **kwargs)
        return stack[-1].attend(module, inner, query, key, value, attention_mask, kwargs)

    return forward


def _inner(kind: str, module: nn.Module) -> Callable[..., Any]:
    if kind == "sdpa":
        from transformers.integrations.sdpa_attention import sdpa_attention_forward

        return sdpa_attention_forward
    found: Any = getattr(sys.modules[type(module).__module__], "eager_attention_forward", None)
    if found is None:
        raise UnsupportedError(
            f"{type(module).__name__} has no attention function of its own to fall back on"
        )
    return found  # the module's own


def _register() -> None:
    from transformers import AttentionInterface
    from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, AttentionMaskInterface

    for kind, name in _NAMES.items():
        AttentionInterface.register(name, _routed(kind))
        AttentionMaskInterface.register(name, ALL_MASK_ATTENTION_FUNCTIONS[kind])


@contextlib.contextmanager
def routed(model: Any, layers: Sequence[nn.Module], run: Attending) -> Iterator[None]:
    """Send the attention of these decoder layers through `run`; configs get their own back."""
    _register()
    found: list[Any] = [
        c for layer in layers for m in layer.modules() if (c := getattr(m, "config", None))
    ]
    found += [model.config.get_text_config()]
    configs = {id(c): c for c in found}
    before = {i: c._attn_implementation_internal for i, c in configs.items()}
    sdpa = getattr(type(compat.decoder_of(model)), "_supports_sdpa", True)
    modules = list({id(m): m for layer in layers for m in layer.modules()}.values())
    for m in modules:
        _taken.setdefault(id(m), []).append(run)
    try:
        for i, config in configs.items():
            kind = before[i] if before[i] in _NAMES else ("sdpa" if sdpa else "eager")
            config._attn_implementation_internal = _NAMES[kind]
        yield
    finally:
        for i, config in configs.items():
            config._attn_implementation_internal = before[i]
        for m in modules:
            _leave(id(m), run)


def _leave(key: int, run: Attending) -> None:
    stack = _taken[key]  # blocks need not close in the order of their opening
    del stack[len(stack) - 1 - stack[::-1].index(run)]
    if not stack:
        del _taken[key]


def in_charge(module: nn.Module, run: Attending) -> bool:
    """Whether it is this run that takes over the attention of a decoder's module now."""
    stack = _taken.get(id(module))
    return stack is not None and stack[-1] is run


def layer_kinds(text_config: Any, count: int) -> list[str]:
    """What each decoder layer is: full_attention, sliding_attention, linear_attention …"""
    return list(getattr(text_config, "layer_types", None) or ["full_attention"] * count)


def kv_sources(text_config: Any, count: int) -> list[int]:
    """For each layer the layer whose keys and values it reads: itself, but in models that share."""
    modes = getattr(text_config, "kv_sharing_modes", None)
    if not modes:
        return list(range(count))
    kinds = layer_kinds(text_config, count)
    return [
        i
        if modes[i] != "reuse"
        else max(j for j in range(i) if modes[j] == "store" and kinds[j] == kinds[i])
        for i in range(count)
    ]


def window_of(text_config: Any, kind: str) -> tuple[str, int] | None:
    """("sliding", entries) or ("chunked", entries) for a layer kind that sees a part; None = all."""
    if kind == "sliding_attention" and getattr(text_config, "sliding_window", None):
        return "sliding", int(text_config.sliding_window)
    if kind == "chunked_attention" and getattr(text_config, "attention_chunk_size", None):
        return "chunked", int(text_config.attention_chunk_size)
    return None


def attention_of(layer: nn.Module) -> nn.Module | None:
    """The module of a decoder layer that calls the attention function; None in recurrent layers."""
    for module in layer.modules():
        if type(module).__name__.endswith("Attention") and hasattr(module, "layer_idx"):
            return module
    return None


def native_layers(text_config: Any) -> list[Any]:
    """The cache layers that transformers would use, to keep those that hold no entries per token."""
    from transformers import DynamicCache

    return list(DynamicCache(config=text_config).layers)


def is_entry_layer(layer: Any) -> bool:
    """Whether a native cache layer holds one key and value a token."""
    from transformers.cache_utils import DynamicLayer

    return (
        isinstance(layer, DynamicLayer)
        and type(layer).__name__.startswith("DynamicLayer")
        or (type(layer).__name__ == "DynamicSlidingWindowLayer")
    )


@contextlib.contextmanager
def deepstack_rows(
    lm: Any, fit: Callable[[Tensor, Tensor, Any], tuple[Tensor, Any] | None]
) -> Iterator[None]:
    """While open, the rows that DeepStack adds after the first layers go through `fit`.

    fit(hidden, mask (B, S), rows) gives the mask and rows of the shortened sequence, or None where
    nothing was dropped.
    """
    if not hasattr(lm, "_deepstack_process"):
        yield
        return
    original = lm._deepstack_process

    def process(hidden: Tensor, mask: Tensor, rows: Any) -> Any:
        fitted = fit(hidden, mask, rows)
        return original(hidden, *(fitted if fitted is not None else (mask, rows)))

    with compat.instance_attribute(lm, "_deepstack_process", process):
        yield


def gathered(x: Tensor, index: Tensor, dim: int, batch_dim: int) -> Tensor:
    """x picked along `dim` by index (B, k), one row of index for each of the batch."""
    rows = index.shape[0]
    if x.shape[batch_dim] == 1 and rows > 1:
        x = x.expand(*[rows if d == batch_dim else -1 for d in range(x.ndim)])
    dim = dim % x.ndim
    shape = [1] * x.ndim
    shape[batch_dim], shape[dim] = rows, index.shape[1]
    wide = index.reshape(shape).expand(
        *[index.shape[1] if d == dim else x.shape[d] for d in range(x.ndim)]
    )
    return x.gather(dim, wide)


def is_padded_row_mask(mask: Any, length: int) -> bool:
    """Whether a layer argument is a 2-D padding mask of that length."""
    return torch.is_tensor(mask) and mask.ndim == 2 and mask.shape[-1] == length
