"""Every touch of a transformers name that is private or may move sits here, with the reason.

Checked against transformers 5.23. Nothing in this module changes a model for longer than the `with`
block it opens.
"""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Callable, Iterator, Mapping
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from foveate.core.errors import UnsupportedError

TAP = "foveate_tap"


def unwrap(model: Any) -> Any:
    """The Hugging Face model inside torch.compile and PEFT wrappers, whose own generate() it
    serves.
    """
    seen = 0
    while seen < 8:
        seen += 1
        if hasattr(model, "_orig_mod"):
            model = model._orig_mod
        elif hasattr(model, "peft_config") and hasattr(model, "get_base_model"):
            model = model.get_base_model()
        else:
            return model
    raise UnsupportedError("the model is wrapped more than eight times; pass the inner model")


def decoder_of(model: Any) -> Any:
    """The text stack that owns `layers`; Llama 4 hides it one level deeper."""
    lm = model.get_decoder()
    return lm if hasattr(lm, "layers") else lm.model


def accepts_encoder_outputs(model: Any) -> bool:
    """Whether forward() takes features encoded beforehand, which every door builds on."""
    return "mm_encoder_outputs" in inspect.signature(type(model).forward).parameters


@contextlib.contextmanager
def kept_state(base: Any) -> Iterator[None]:
    # get_rope_index leaves `rope_deltas` on the module; explicit position_ids make it moot, so put
    # it back.
    had = "rope_deltas" in vars(base)
    before = vars(base).get("rope_deltas")
    try:
        yield
    finally:
        if had:
            base.rope_deltas = before
        else:
            vars(base).pop("rope_deltas", None)


def position_ids(model: Any, input_ids: Tensor, kwargs: Mapping[str, Any]) -> Tensor:
    """Positions that generate() itself would use for these full inputs: (B, S), or (4, B, S) with
    M-RoPE.
    """
    with kept_state(model.base_model):
        out: Tensor = model._prepare_position_ids_for_generation(
            input_ids, {"input_ids": input_ids, **kwargs}
        )
    return (
        out if out.shape[-2] == input_ids.shape[0] else out.expand(input_ids.shape[0], -1).clone()
    )


def greedy_processors(model: Any, prompt: Tensor) -> Any:
    """What generate(do_sample=False) does to the scores of a prompt (1, n) before it takes the best: a
    list of logits processors after the model's generation config, mostly empty.
    """
    config, _ = model._prepare_generation_config(None, do_sample=False)
    model._prepare_special_tokens(config, True, device=prompt.device)
    return model._get_logits_processor(
        generation_config=config,
        input_ids_seq_length=int(prompt.shape[1]),
        encoder_input_ids=prompt,
        device=prompt.device,
        model_kwargs={},
    )


def with_inferred_mask(model: Any, kwargs: Mapping[str, Any]) -> Mapping[str, Any]:
    """generate()'s inputs with the mask that it would infer from the pad token, if none was given."""
    ids = kwargs.get("input_ids")
    if kwargs.get("attention_mask") is not None or not torch.is_tensor(ids):
        return kwargs
    config = kwargs.get("generation_config") or model.generation_config
    pad = kwargs.get("pad_token_id", config.pad_token_id)
    eos = kwargs.get("eos_token_id", config.eos_token_id)
    eos = [] if eos is None else eos if isinstance(eos, list) else [eos]
    if pad is None or pad in eos or not bool((ids == pad).any()):
        return kwargs
    return {**kwargs, "attention_mask": (ids != pad).long()}


def continue_positions(adapter: Any, short: Mapping[str, Any]) -> None:
    """Let a decode loop of the user's own go on where a shortened M-RoPE prefill ended.

    These models count a step's position from the cache's length plus `rope_deltas`, which the
    native prefill sets on the module; attach puts the old value back when it closes.
    """
    positions = short.get("position_ids")
    if adapter.mrope and torch.is_tensor(positions) and positions.ndim == 3:
        axes = positions[1:] if positions.shape[0] == 4 else positions  # the first counts text
        last = axes.amax(0).amax(-1, keepdim=True)
        adapter.base.rope_deltas = last + 1 - positions.shape[-1]


@contextlib.contextmanager
def expanding_by_row(model: Any, expand: Callable[[Any, int], Any]) -> Iterator[None]:
    """While open, beams and num_return_sequences copy encoder outputs row by row through `expand`.

    The stock helper finds row borders by comparing token counts and goes wrong for several rows
    whose
    features arrive as one tensor, and for segments that keep no token.
    """

    def expand_outputs(input_ids: Any, outputs: Any, expand_size: int = 1, **_: Any) -> Any:
        return expand(outputs, expand_size)

    with instance_attribute(model, "_expand_multimodal_outputs", expand_outputs):
        yield


@contextlib.contextmanager
def instance_attribute(owner: Any, name: str, value: Any) -> Iterator[None]:
    """Set an attribute in the instance `__dict__` and leave the dict as it was."""
    there = name in vars(owner)
    before = vars(owner).get(name)
    vars(owner)[name] = value
    try:
        yield
    finally:
        if there:
            vars(owner)[name] = before
        else:
            vars(owner).pop(name, None)


def window_order(config: Any, grids: Tensor) -> Tensor:
    """Qwen2.5 towers: for each place in window order, the group of merge² patches that stands
    there.
    """
    from transformers.vision_utils import get_vision_window_index

    order, _ = get_vision_window_index(
        grids,
        spatial_merge_size=config.spatial_merge_size,
        window_size=config.window_size,
        patch_size=config.patch_size,
    )
    return torch.as_tensor(order)


# --- attention tap
# -----------------------------------------------------------------------------------


@dataclass
class Capture:
    """What one attention module showed, call by call: tensors on the CPU or device as they came,
    float32.
    """

    want: frozenset[str]
    specials: int
    received: list[Tensor] = field(default_factory=list)
    cls: list[Tensor] = field(default_factory=list)
    keys: list[Tensor] = field(default_factory=list)
    query: list[Tensor] = field(default_factory=list)
    padded: bool = False


Attentive = Callable[[nn.Module, Tensor], Tensor]


@dataclass(frozen=True)
class _Tap:
    """One open `tapped` block. spread: tokens (B, H, S, a) as blocks opened inside this one see
    them.
    """

    captures: dict[int, Capture]
    bias: Callable[[nn.Module, Tensor], Tensor | None] | None
    spread: Attentive | None


_taps: ContextVar[tuple[_Tap, ...]] = ContextVar("foveate_taps", default=())


def _asking(mask: Tensor | None, length: int) -> Tensor | None:
    """(B, 1, S): which queries are tokens and not padding: those that some query may see as a key."""
    if mask is None or mask.shape[-1] != length:
        return None
    seen = mask if mask.dtype == torch.bool else mask > torch.finfo(mask.dtype).min / 2
    return seen.any(-2).to(torch.float32)


@torch.no_grad()
def observe(
    capture: Capture, q: Tensor, k: Tensor, mask: Tensor | None, scaling: float | None
) -> None:
    """Attention rows that were asked for, from this call's q and k (B, H, S, a), in float32 and in
    blocks.
    """
    with torch.autocast(q.device.type, enabled=False):
        q32, k32 = q.float(), k.float()
        if k32.shape[1] != q32.shape[1]:
            k32 = k32.repeat_interleave(q32.shape[1] // k32.shape[1], dim=1)
        scale = scaling if scaling is not None else q.shape[-1] ** -0.5
        if "keys" in capture.want:
            capture.keys.append(k32.transpose(1, 2))
        if "query" in capture.want and capture.specials:
            capture.query.append(q32[:, :, : capture.specials].transpose(1, 2))

        def rows(items: slice, start: int, stop: int) -> Tensor:
            logits = q32[items, :, start:stop] @ k32[items].transpose(-1, -2)
            logits *= scale
            if mask is None:
                return torch.softmax(logits, -1)
            part = mask if mask.shape[0] == 1 else mask[items]
            part = part[..., start:stop, :] if part.shape[-2] > 1 else part
            ok = part if part.dtype == torch.bool else None
            logits = logits.masked_fill(~ok, -torch.inf) if ok is not None else logits + part
            return torch.softmax(logits, -1).nan_to_num(0.0)

        if "cls" in capture.want and capture.specials:
            capture.cls.append(rows(slice(None), 0, 1)[:, :, 0])
        if "received" in capture.want:
            total = torch.zeros_like(q32[:, :, :, 0])
            passes, heads, length = total.shape
            # Blocks that stay in a processor's cache: whole passes, or rows of a single one.
            block = max(1, 2**21 // max(1, heads * length))
            each = max(1, block // max(1, length))
            asks = _asking(mask, length)
            capture.padded |= asks is not None and not bool(asks.all())
            for i in range(0, passes, each):
                items = slice(i, i + each)
                for start in range(0, length, block):
                    part = rows(items, start, min(start + block, length))
                    if asks is not None:  # a padded patch attends too, but nobody asked
                        asked = asks if asks.shape[0] == 1 else asks[items]
                        part = part * asked[..., start : start + part.shape[2], None]
                    total[items] += part.sum(-2)
            capture.received.append(total)


def _tap_forward(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    **kwargs: Any,
) -> Any:
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    undo: list[Attentive] = []
    for tap in _taps.get():
        extra = tap.bias(module, query) if tap.bias is not None else None
        if extra is not None:
            attention_mask = extra if attention_mask is None else _added(attention_mask, extra)
            kwargs["is_causal"] = False
        capture = tap.captures.get(id(module))
        if capture is not None:
            q, k, mask = query, key, attention_mask
            for spread in undo:
                q, k, mask = spread(module, q), spread(module, k), None
            observe(capture, q, k, mask, kwargs.get("scaling"))
        if tap.spread is not None:
            undo.append(tap.spread)
    return sdpa_attention_forward(module, query, key, value, attention_mask, **kwargs)


def _added(mask: Tensor, extra: Tensor) -> Tensor:
    if mask.dtype == torch.bool:
        return extra.expand(mask.shape).masked_fill(~mask, torch.finfo(extra.dtype).min)
    return mask + extra


def _register_tap() -> None:
    from transformers import AttentionInterface
    from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, AttentionMaskInterface

    AttentionInterface.register(TAP, _tap_forward)
    AttentionMaskInterface.register(TAP, ALL_MASK_ATTENTION_FUNCTIONS["sdpa"])


@contextlib.contextmanager
def tapped(
    modules: list[nn.Module],
    captures: dict[int, Capture],
    bias: Callable[[nn.Module, Tensor], Tensor | None] | None = None,
    spread: Attentive | None = None,
) -> Iterator[None]:
    """Route these attention modules through the tap while open; configs get their implementation
    back.

    `bias` adds to the attention logits. Blocks nest: one opened inside another observes queries and
    keys after the outer one's `spread`, which undoes a merge of tokens (towers without masks only).
    Writes the internal field of the config, since the public setter also rewrites sub-configs.
    """
    _register_tap()
    found: list[Any] = [getattr(m, "config", None) for m in modules]
    configs = {id(c): c for c in found if c is not None}
    if not configs:
        raise UnsupportedError(
            "the vision tower's attention has no configuration to switch; methods that need encoder "
            "attention cannot run on it: choose one that reads features alone, such as divprune"
        )
    before = {i: c._attn_implementation_internal for i, c in configs.items()}
    token = _taps.set((*_taps.get(), _Tap(captures, bias, spread)))
    try:
        for config in configs.values():
            config._attn_implementation_internal = TAP
        yield
    finally:
        for i, config in configs.items():
            config._attn_implementation_internal = before[i]
        _taps.reset(token)


@contextlib.contextmanager
def recorded(blocks: Mapping[int, nn.Module]) -> Iterator[dict[int, list[Tensor]]]:
    """Collect the hidden states that these tower blocks put out while open, call by call.

    Own hooks, because `output_hidden_states=True` makes transformers leave hooks on the tower for
    good.
    """
    found: dict[int, list[Tensor]] = {i: [] for i in blocks}

    def keep(index: int) -> Callable[[nn.Module, Any, Any], None]:
        def hook(_: nn.Module, __: Any, out: Any) -> None:
            found[index].append(out[0] if isinstance(out, tuple) else out)

        return hook

    handles = [module.register_forward_hook(keep(i)) for i, module in blocks.items()]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()


def attention_modules(vision: nn.Module) -> list[nn.Module]:
    """One attention module a tower block, in depth order."""
    named = [m for m in vision.modules() if type(m).__name__.endswith("Attention")]
    leaves = [
        m
        for m in named
        if not any(c is not m and type(c).__name__.endswith("Attention") for c in m.modules())
    ]
    return leaves


def tower_blocks(vision: nn.Module) -> list[nn.Module]:
    """The tower's blocks in depth order: the modules that each hold exactly one attention module."""
    owners: list[nn.Module] = []
    leaves = {id(m) for m in attention_modules(vision)}
    for child in vision.modules():
        if isinstance(child, nn.ModuleList) and len(child) > 0:
            holds = [sum(id(m) in leaves for m in block.modules()) for block in child]
            if all(h == 1 for h in holds) and len(child) > len(owners):
                owners = list(child)
    return owners
