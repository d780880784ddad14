"""Sizes of vision towers and projectors by family, for `foveate.models.shapes`.

Two tables: towers that take passes of one size, by the type of the vision config, joined with the
projector that the family puts behind them; and packed towers, whose own merger projects.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from foveate.core.errors import UnsupportedError
from foveate.core.shapes import LayerShape, MLPShape, VisionShape

Linears = tuple[tuple[int, int], ...]

_REASONS = {
    "molmo2": "its projector pools patches with attention",
    "aria": "its projector is a cross-attention with queries of its own",
    "idefics2": "its projector is a perceiver with latents of its own",
    "janus": "its aligner's depth and its image decoder are not described",
    "ovis2": "its tower ends in a visual vocabulary",
    "llama4": "its pixel shuffle sits inside the tower",
    "video_llama_3": "the merge size travels with each picture, not with the config",
    "got_ocr2": "its tower has relative positions and convolutions of its own",
}


def tower_shape(config: Any, vision: Any, width: int) -> VisionShape:
    """The tower of `config` with its projector to the language model's `width`."""
    family = str(config.model_type)
    if getattr(vision, "model_type", None) in _PACKED:
        if family not in _MERGED:
            raise _refuse(family, f"{vision.model_type} in this family is not described")
        return _PACKED[vision.model_type](vision)
    if family not in _PROJECTORS:
        raise _refuse(family, _REASONS.get(family, "its vision side is not described"))
    return _PROJECTORS[family](config, _bare(family, vision), width)


def _bare(family: str, vision: Any) -> VisionShape:
    """A tower whose projector is a module of its own."""
    kind = str(vision.model_type)
    if kind in _SPECIAL:
        return _passes(vision)
    if kind == "pixtral":
        return _pixtral(vision)
    if kind == "paddleocr_vl_vision":
        return _paddle(vision)
    raise _refuse(family, f"a tower of type {kind} is not described")


def _refuse(family: str, why: str) -> UnsupportedError:
    return UnsupportedError(
        f"FLOPs of the vision side of {family} cannot be counted: {why}; measure with "
        "torch.utils.flop_counter.FlopCounterMode"
    )


# --- towers of passes -----------------------------------------------------------------------------
_SPECIAL = {
    "clip_vision_model": 1, "internvl_vision": 1,
    "siglip_vision_model": 0, "idefics3_vision": 0, "smolvlm_vision": 0,
}  # fmt: skip


def _passes(vision: Any) -> VisionShape:
    """CLIP, SigLIP and their like: plain blocks, all patches of a pass attend to each other."""
    kind = str(vision.model_type)
    (rows, columns), (high, wide) = _pair(vision.image_size), _pair(vision.patch_size)
    return VisionShape(
        hidden=vision.hidden_size,
        patch_inputs=getattr(vision, "num_channels", 3) * high * wide,
        layer=_block(vision.hidden_size, vision.num_attention_heads, vision.intermediate_size),
        layers=vision.num_hidden_layers,
        projector=(),
        pass_patches=(rows // high) * (columns // wide),
        special=_SPECIAL[kind],
        pooled=kind == "siglip_vision_model" and getattr(vision, "vision_use_head", True),
    )


def _pixtral(vision: Any) -> VisionShape:
    """Gated blocks; all pictures of a call are one sequence, and a mask keeps them apart."""
    width = vision.hidden_size
    return VisionShape(
        hidden=width,
        patch_inputs=vision.num_channels * vision.patch_size**2,
        layer=_block(width, vision.num_attention_heads, vision.intermediate_size, gated=True),
        layers=vision.num_hidden_layers,
        projector=(),
        joint=True,
    )


def _paddle(vision: Any) -> VisionShape:
    """SigLIP blocks over packed pictures, a patch being one frame high."""
    width = vision.hidden_size
    return VisionShape(
        hidden=width,
        patch_inputs=vision.num_channels * vision.patch_size**2,
        layer=_block(width, vision.num_attention_heads, vision.intermediate_size),
        layers=vision.num_hidden_layers,
        projector=(),
    )


def _block(width: int, heads: int, inner: int, gated: bool = False) -> LayerShape:
    return LayerShape(heads, heads, width // heads, MLPShape(int(inner), gated=gated))


def _pair(value: Any) -> tuple[int, int]:
    if isinstance(value, int):
        return value, value
    first, second = value
    return int(first), int(second)


# --- projectors behind them -----------------------------------------------------------------------
def _two_layers(config: Any, tower: VisionShape, width: int) -> VisionShape:
    """LLaVA: two linear layers on every patch; several tower layers may be put side by side."""
    layers = getattr(config, "vision_feature_layers", None)
    layers = config.vision_feature_layer if layers is None else layers
    inputs = tower.hidden * (1 if isinstance(layers, int) else len(layers))
    # VipLLaVA has no such setting: it always leaves the first token out.
    keeps_all = getattr(config, "vision_feature_select_strategy", "default") == "full"
    if not keeps_all and not tower.special:
        raise _refuse(
            config.model_type,
            "the first token of each pass is left out, and this tower has no special token",
        )
    special = keeps_all and bool(tower.special)
    return replace(tower, projector=((inputs, width), (width, width)), projects_special=special)


def _aligner(config: Any, tower: VisionShape, width: int) -> VisionShape:
    return replace(tower, projector=((tower.hidden, width), (width, width)))


def _one_layer(config: Any, tower: VisionShape, width: int) -> VisionShape:
    return replace(tower, projector=((tower.hidden, int(config.projection_dim)),))


def _pooled(config: Any, tower: VisionShape, width: int) -> VisionShape:
    """Gemma 3: the mean of each square of patches, then one matrix."""
    merge = (tower.pass_patches or 0) // config.mm_tokens_per_image
    return replace(tower, projector=((tower.hidden, width),), merge=merge)


def _shuffled(factor: int, tower: VisionShape, *rest: tuple[int, int]) -> VisionShape:
    """factor x factor patches are put side by side; `rest`: the layers after the first's inputs."""
    merge = factor * factor
    (_, first), *others = rest
    return replace(tower, projector=((merge * tower.hidden, first), *others), merge=merge)


def _internvl(config: Any, tower: VisionShape, width: int) -> VisionShape:
    factor = round(1 / config.downsample_ratio)
    return _shuffled(factor, tower, (0, width), (width, width))


def _connector(config: Any, tower: VisionShape, width: int) -> VisionShape:
    return _shuffled(config.scale_factor, tower, (0, width))


def _gated_shuffle(config: Any, tower: VisionShape, width: int) -> VisionShape:
    """Aya and Command A: the second layer sees half the inner width, for the first is gated."""
    inner = int(getattr(config, "alignment_intermediate_size", None) or width)
    return _shuffled(config.downsample_factor, tower, (0, inner), (inner // 2, width))


def _mistral3(config: Any, tower: VisionShape, width: int) -> VisionShape:
    layers = config.vision_feature_layer
    inputs = tower.hidden * (1 if isinstance(layers, int) else len(layers))
    rest = ((0, inputs), (inputs, width), (width, width))
    return _shuffled(config.spatial_merge_size, tower, *rest)


def _paddle_merger(config: Any, tower: VisionShape, width: int) -> VisionShape:
    factor = config.vision_config.spatial_merge_size
    inner = tower.hidden * factor * factor
    return _shuffled(factor, tower, (0, inner), (inner, width))


_PROJECTORS: dict[str, Callable[[Any, VisionShape, int], VisionShape]] = {
    "llava": _two_layers,
    "vipllava": _two_layers,
    "llava_next": _two_layers,
    "llava_onevision": _two_layers,
    "deepseek_vl": _aligner,
    "paligemma": _one_layer,
    "gemma3": _pooled,
    "internvl": _internvl,
    "idefics3": _connector,
    "smolvlm": _connector,
    "aya_vision": _gated_shuffle,
    "cohere2_vision": _gated_shuffle,
    "mistral3": _mistral3,
    "paddleocr_vl": _paddle_merger,
}


# --- packed towers with a merger ------------------------------------------------------------------
def _packed(vision: Any, width: int, layer: LayerShape, projector: Linears) -> VisionShape:
    patch = vision.in_channels * vision.temporal_patch_size * vision.patch_size**2
    merge = vision.spatial_merge_size**2
    return VisionShape(width, patch, layer, vision.depth, projector, merge)


def _merger(vision: Any, width: int, out: int) -> Linears:
    inner = width * vision.spatial_merge_size**2
    return ((inner, inner), (inner, out))


def _qwen2_vl(vision: Any) -> VisionShape:
    width = vision.embed_dim
    layer = _block(width, vision.num_heads, int(width * vision.mlp_ratio))
    return _packed(vision, width, layer, _merger(vision, width, vision.hidden_size))


def _qwen2_5_vl(vision: Any) -> VisionShape:
    width = vision.hidden_size
    layer = _block(width, vision.num_heads, vision.intermediate_size, gated=True)
    tower = _packed(vision, width, layer, _merger(vision, width, vision.out_hidden_size))
    # Windows hold whole merged tokens.
    side = vision.window_size // vision.spatial_merge_size // vision.patch_size
    full = tuple(vision.fullatt_block_indexes)
    return replace(tower, window=side * vision.spatial_merge_size, full=full)


def _qwen3_vl(vision: Any) -> VisionShape:
    width = vision.hidden_size
    layer = _block(width, vision.num_heads, vision.intermediate_size)
    mergers = 1 + len(vision.deepstack_visual_indexes)
    return _packed(vision, width, layer, mergers * _merger(vision, width, vision.out_hidden_size))


def _glm(vision: Any, inner: int, merger: int) -> VisionShape:
    """A strided convolution merges patches; a linear layer and a gated MLP follow."""
    width, out = vision.hidden_size, vision.out_hidden_size
    layer = _block(width, vision.num_heads, inner, gated=True)
    merged = width * vision.spatial_merge_size**2
    projector = ((merged, out), (out, out), (out, merger), (out, merger), (merger, out))
    return _packed(vision, width, layer, projector)


def _glm4v(vision: Any) -> VisionShape:
    return _glm(vision, vision.out_hidden_size, vision.intermediate_size)


def _glm_ocr(vision: Any) -> VisionShape:
    return _glm(vision, vision.intermediate_size, vision.out_hidden_size * vision.in_channels)


_PACKED: dict[str, Callable[[Any], VisionShape]] = {
    "qwen2_vl_vision": _qwen2_vl,
    "qwen2_5_vl_vision": _qwen2_5_vl,
    "qwen2_5_omni_vision_encoder": _qwen2_5_vl,
    "qwen3_vl_vision": _qwen3_vl,
    "qwen3_vl_moe_vision": _qwen3_vl,
    "qwen3_omni_moe_vision_encoder": _qwen3_vl,
    "glm4v_vision": _glm4v,
    "glm4v_moe_vision": _glm4v,
    "glm_ocr_vision": _glm_ocr,
}
_MERGED = frozenset({
    "qwen2_vl", "qwen2_5_vl", "qwen2_5_omni_thinker", "qwen3_vl", "qwen3_vl_moe",
    "qwen3_omni_moe_thinker", "glm4v", "glm46v", "glm4v_moe", "glm_ocr",
})  # fmt: skip
