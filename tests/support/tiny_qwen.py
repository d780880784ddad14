"""Packed towers: the Qwen-VL line, GLM-V and PaddleOCR-VL with M-RoPE, and VideoLLaMA 3."""

from __future__ import annotations

from functools import partial
from typing import Any

from transformers import PretrainedConfig

from tests.support.tiny_pictures import Packed
from tests.support.tiny_spec import (
    AUDIO,
    HIDDEN,
    IMAGE,
    IMAGE_END,
    IMAGE_START,
    VIDEO,
    VIDEO_END,
    VIDEO_START,
    VISION_END,
    VISION_START,
    Settings,
    Tiny,
    config,
    mrope,
    text,
    tower,
)
from tests.support.tiny_videos import PackedVideo

_PATCH = 3 * 2 * 4 * 4  # colours, frames of a temporal patch, height and width of a patch
_IDS = {
    "image_token_id": IMAGE,
    "video_token_id": VIDEO,
    "vision_start_token_id": VISION_START,
    "vision_end_token_id": VISION_END,
}
_GLM_IDS = {
    "image_token_id": IMAGE,
    "video_token_id": VIDEO,
    "image_start_token_id": IMAGE_START,
    "image_end_token_id": IMAGE_END,
    "video_start_token_id": VIDEO_START,
    "video_end_token_id": VIDEO_END,
}
_EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}


def _eyes(**changes: Any) -> Settings:
    """A packed tower; each family reads the names it knows (depth, in_channels or in_chans, …)."""
    return {
        "depth": 3,
        "hidden_size": 32,
        "num_heads": 4,
        "in_channels": 3,
        "in_chans": 3,
        "patch_size": 4,
        "spatial_merge_size": 2,
        "temporal_patch_size": 2,
        "intermediate_size": 48,
        "out_hidden_size": HIDDEN,
        **changes,
    }


def _windowed() -> Settings:
    return _eyes(fullatt_block_indexes=[1], window_size=16)


def _deepstack() -> Settings:
    return _eyes(deepstack_visual_indexes=[0, 1, 2], num_position_embeddings=64)


def _ears(**changes: Any) -> Settings:
    return {
        "d_model": 32,
        "encoder_layers": 1,
        "encoder_attention_heads": 4,
        "encoder_ffn_dim": 48,
        "output_dim": HIDDEN,
        "num_mel_bins": 16,
        **changes,
    }


def _interleaved(model_type: str, **changes: Any) -> Settings:
    rope = mrope(mrope_interleaved=True)
    return text(model_type, head_dim=16, rope_parameters=rope, **changes)


def qwen2_vl() -> PretrainedConfig:
    mind = text("qwen2_vl_text", rope_parameters=mrope())
    eyes = _eyes(embed_dim=32, hidden_size=HIDDEN)  # here hidden_size is the width of the output
    return config("Qwen2VLConfig", vision_config=eyes, text_config=mind, **_IDS)


def qwen2_5_vl() -> PretrainedConfig:
    mind = text("qwen2_5_vl_text", rope_parameters=mrope())
    return config("Qwen2_5_VLConfig", vision_config=_windowed(), text_config=mind, **_IDS)


def qwen2_5_omni() -> PretrainedConfig:
    return config(
        "Qwen2_5OmniThinkerConfig",
        vision_config=_windowed(),
        audio_config=_ears(),
        text_config=text("qwen2_5_omni_text", rope_parameters=mrope()),
        image_token_index=IMAGE,
        video_token_index=VIDEO,
        audio_token_index=AUDIO,
        image_token_id=IMAGE,
        vision_start_token_id=VISION_START,
    )


def qwen3_vl() -> PretrainedConfig:
    mind = _interleaved("qwen3_vl_text")
    return config("Qwen3VLConfig", vision_config=_deepstack(), text_config=mind, **_IDS)


def qwen3_vl_moe() -> PretrainedConfig:
    mind = _interleaved("qwen3_vl_moe_text", **_EXPERTS)
    return config("Qwen3VLMoeConfig", vision_config=_deepstack(), text_config=mind, **_IDS)


def qwen3_omni_moe() -> PretrainedConfig:
    return config(
        "Qwen3OmniMoeThinkerConfig",
        vision_config=_deepstack(),
        audio_config=_ears(downsample_hidden_size=16),
        text_config=_interleaved("qwen3_omni_moe_text", **_EXPERTS),
        image_token_id=IMAGE,
        video_token_id=VIDEO,
        audio_token_id=AUDIO,
        vision_start_token_id=VISION_START,
    )


def qwen3_5() -> PretrainedConfig:
    rope = mrope(mrope_section=[1, 1, 2], mrope_interleaved=True, partial_rotary_factor=0.25)
    mind = text(
        "qwen3_5_text",
        head_dim=32,
        linear_key_head_dim=16,
        linear_value_head_dim=16,
        linear_num_key_heads=2,
        linear_num_value_heads=4,
        layer_types=["linear_attention", "linear_attention", "full_attention"] * 2,
        rope_parameters=rope,
    )
    eyes = _eyes(num_position_embeddings=64)
    return config("Qwen3_5Config", vision_config=eyes, text_config=mind, **_IDS)


def _glm(name: str, text_type: str, **changes: Any) -> PretrainedConfig:
    mind = text(text_type, rope_parameters=mrope(partial_rotary_factor=1.0), **changes)
    eyes = _eyes(image_size=32)
    return config(name, vision_config=eyes, text_config=mind, **_GLM_IDS)


glm4v = partial(_glm, "Glm4vConfig", "glm4v_text")
glm46v = partial(_glm, "Glm46VConfig", "glm4v_text")
glm_ocr = partial(_glm, "GlmOcrConfig", "glm_ocr_text", head_dim=16)
glm4v_moe = partial(
    _glm,
    "Glm4vMoeConfig",
    "glm4v_moe_text",
    head_dim=16,
    moe_intermediate_size=32,
    n_routed_experts=4,
    num_experts_per_tok=2,
    n_shared_experts=1,
    first_k_dense_replace=1,
    n_group=1,
    topk_group=1,
)


def paddleocr_vl() -> PretrainedConfig:
    eyes = tower(num_hidden_layers=2, image_size=32, patch_size=4, spatial_merge_size=2)
    mind = text("paddleocr_vl_text", head_dim=16, rope_parameters=mrope())
    return config("PaddleOCRVLConfig", vision_config=eyes, text_config=mind, **_IDS)


def video_llama_3() -> PretrainedConfig:
    return config(
        "VideoLlama3Config",
        vision_config=tower(num_hidden_layers=2, patch_size=4),
        text_config=text("qwen2"),
        image_token_id=IMAGE,
        video_token_id=VIDEO,
    )


def _qwen(name: str, build: Any, **changes: Any) -> Tiny:
    around = (VISION_START, VISION_END)
    return Tiny(name, build, Packed((_PATCH,)), PackedVideo(_PATCH), around_run=around, **changes)


def _glm_family(name: str, build: Any) -> Tiny:
    # GLM writes video frames with the image placeholder; tokens around the video tell them apart.
    return Tiny(
        name,
        build,
        Packed((_PATCH,)),
        PackedVideo(_PATCH),
        around_run=(IMAGE_START, IMAGE_END),
        around_video=(VIDEO_START, VIDEO_END),
        frame_runs=True,
        video_id=IMAGE,
    )


FAMILIES = (
    _qwen("qwen2_vl", qwen2_vl),
    _qwen("qwen2_5_vl", qwen2_5_vl),
    _qwen("qwen2_5_omni", qwen2_5_omni, seconds_per_grid=1.0),
    _qwen("qwen3_vl", qwen3_vl, frame_runs=True),
    _qwen("qwen3_vl_moe", qwen3_vl_moe, frame_runs=True),
    _qwen("qwen3_omni_moe", qwen3_omni_moe, seconds_per_grid=1.0),
    _qwen("qwen3_5", qwen3_5, frame_runs=True, recurrent=True),
    _glm_family("glm4v", glm4v),
    _glm_family("glm46v", glm46v),
    _glm_family("glm_ocr", glm_ocr),
    Tiny(
        "paddleocr_vl",
        paddleocr_vl,
        Packed((3, 4, 4)),
        around_run=(VISION_START, VISION_END),
    ),
    Tiny(
        "video_llama_3",
        video_llama_3,
        Packed((48,), merge=2),
        PackedVideo(48, merge=2),
        frame_runs=True,
    ),
    _glm_family("glm4v_moe", glm4v_moe),
)
