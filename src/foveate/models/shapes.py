"""The sizes that decide what a model costs, read from its config, for `foveate.core.flops`.

Only families whose parts are known here are described: a decoder of plain attention layers (full or
sliding window; gated MLPs, or experts with a fixed number active), and towers that either take
passes of one size or pack pictures of any size. Everything else is refused with the reason.

The padding of a batch of requests is not in the figures.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from foveate.core.errors import UnsupportedError
from foveate.core.shapes import LayerShape, MLPShape, ModelShape, TextShape, VisionShape
from foveate.models.tower_shapes import tower_shape

_GATED = frozenset({
    "llama", "mistral", "qwen2", "qwen3", "gemma", "gemma2", "gemma3_text", "cohere2",
    "qwen2_vl_text", "qwen2_5_vl_text", "qwen2_5_omni_text", "qwen3_vl_text",
    "glm4v_text", "glm_ocr_text", "paddleocr_vl_text",
})  # fmt: skip
_REASONS = {
    "qwen3_5_text": "its decoder has layers of linear attention",
    "lfm2": "its decoder has convolution layers",
    "gemma3n_text": "its decoder has AltUp, LAuReL and per-layer embeddings",
    "gemma4_text": "its decoder has per-layer embeddings and two head widths",
    "llama4_text": "its decoder attends in chunks",
    "aria_text": "its experts are not described",
}


def model_shape(config: Any, element_bytes: int) -> ModelShape:
    """The shape of a vision-language model.

    config: of the whole model. element_bytes: bytes of one number in the KV cache, such as
    `model.dtype.itemsize`.

    Errors: UnsupportedError for a family, or a setting of it, whose cost is not known.
    """
    text = config.get_text_config()
    decoder = text_shape(text)
    vision = getattr(config, "vision_config", None)
    if vision is None:
        raise UnsupportedError(
            f"{config.model_type}: its config has no vision_config, so the cost of its pictures is "
            "not known; count the language model alone with text_shape()"
        )
    return ModelShape(tower_shape(config, vision, text.hidden_size), decoder, element_bytes)


def text_shape(config: Any) -> TextShape:
    """The language model of a text config; UnsupportedError where its layers are not known."""
    kind = str(config.model_type)
    feedforward = _FEEDFORWARD.get(kind)
    if feedforward is None:
        why = _REASONS.get(kind, "this type of decoder is not described")
        raise UnsupportedError(
            f"FLOPs of {kind} cannot be counted: {why}; measure with "
            "torch.utils.flop_counter.FlopCounterMode"
        )
    heads = int(config.num_attention_heads)
    kv_heads = int(getattr(config, "num_key_value_heads", None) or heads)
    head_dim = int(getattr(config, "head_dim", None) or config.hidden_size // heads)
    layers = tuple(
        LayerShape(heads, kv_heads, head_dim, feedforward(config, i), _window(config, i))
        for i in range(config.num_hidden_layers)
    )
    return TextShape(int(config.hidden_size), int(config.vocab_size), layers)


def _window(config: Any, layer: int) -> int | None:
    """The sliding window of a layer in tokens, None where it sees all."""
    window = getattr(config, "sliding_window", None)
    kinds = getattr(config, "layer_types", None)
    if kinds is None:
        return None if window is None else int(window)
    kind = kinds[layer]
    if kind == "full_attention":
        return None
    if kind == "sliding_attention" and window is not None:
        return int(window)
    raise UnsupportedError(
        f"FLOPs of {config.model_type} cannot be counted: layer {layer} is of type {kind!r}, known "
        "are full_attention and sliding_attention with a window"
    )


# --- feed-forward parts ---------------------------------------------------------------------------
def _gated(config: Any, layer: int) -> MLPShape:
    return MLPShape(int(config.intermediate_size))


def _experts(config: Any, total: int, shared: int = 0) -> MLPShape:
    """Routed experts; every token goes through `num_experts_per_tok` of them, none is dropped."""
    return MLPShape(
        int(config.moe_intermediate_size),
        active=int(config.num_experts_per_tok),
        router=total,
        shared=shared * int(config.moe_intermediate_size),
    )


def _qwen3_moe(config: Any, layer: int) -> MLPShape:
    dense = layer in (getattr(config, "mlp_only_layers", None) or ())
    if dense or (layer + 1) % (getattr(config, "decoder_sparse_step", None) or 1):
        return _gated(config, layer)
    # Configs write one number under either name.
    total = getattr(config, "num_experts", None) or config.num_local_experts
    return _experts(config, int(total))


def _glm4v_moe(config: Any, layer: int) -> MLPShape:
    if layer < config.first_k_dense_replace:
        return _gated(config, layer)
    return _experts(config, int(config.n_routed_experts), int(config.n_shared_experts))


_FEEDFORWARD: dict[str, Callable[[Any, int], MLPShape]] = {
    **dict.fromkeys(_GATED, _gated),
    "qwen3_vl_moe_text": _qwen3_moe,
    "qwen3_omni_moe_text": _qwen3_moe,
    "glm4v_moe_text": _glm4v_moe,
}


def vision_shape(config: Any) -> VisionShape:
    """The tower and projector of a model's config alone; errors as for `model_shape`."""
    return tower_shape(config, config.vision_config, config.get_text_config().hidden_size)
