"""LLaVA and its relatives: a tower, a projector, and a plain decoder with 1-D positions."""

from __future__ import annotations

from typing import Any

from transformers import PretrainedConfig

from tests.support.tiny_pictures import PINPOINTS, Anyres, Sized, Square
from tests.support.tiny_spec import (
    HIDDEN,
    IMAGE,
    LAYERS,
    VIDEO,
    Settings,
    Tiny,
    clip,
    config,
    siglip,
    square_tower,
    text,
    tower,
)
from tests.support.tiny_videos import StackedVideo


def _mistral(**changes: Any) -> Settings:
    return text("mistral", sliding_window=None, **changes)


def _pixtral_tower() -> Settings:
    return tower(model_type="pixtral", image_size=56, patch_size=7, head_dim=8)


def llava() -> PretrainedConfig:
    return config(
        "LlavaConfig", vision_config=clip(), text_config=text("llama"), image_token_index=IMAGE
    )


def vipllava() -> PretrainedConfig:
    return config(
        "VipLlavaConfig",
        vision_config=clip(),
        text_config=text("llama"),
        image_token_index=IMAGE,
        vision_feature_layers=[-2, 1],
    )


def llava_next() -> PretrainedConfig:
    return config(
        "LlavaNextConfig",
        vision_config=clip(),
        text_config=_mistral(),
        image_token_index=IMAGE,
        image_grid_pinpoints=PINPOINTS,
    )


def llava_onevision() -> PretrainedConfig:
    return config(
        "LlavaOnevisionConfig",
        vision_config=siglip(),
        text_config=text("qwen2"),
        image_token_index=IMAGE,
        video_token_index=VIDEO,
        image_grid_pinpoints=PINPOINTS,
    )


def internvl() -> PretrainedConfig:
    return config(
        "InternVLConfig",
        vision_config=square_tower(image_size=[28, 28], patch_size=[7, 7]),
        text_config=text("qwen3", head_dim=16),
        image_token_id=IMAGE,
        image_seq_length=4,
    )


def pixtral() -> PretrainedConfig:
    return config(
        "LlavaConfig",
        vision_config=_pixtral_tower(),
        text_config=_mistral(head_dim=16),
        image_token_index=IMAGE,
        vision_feature_layer=-1,
        vision_feature_select_strategy="full",
    )


def mistral3() -> PretrainedConfig:
    return config(
        "Mistral3Config",
        vision_config=_pixtral_tower(),
        text_config=_mistral(head_dim=16),
        image_token_index=IMAGE,
        spatial_merge_size=2,
        vision_feature_layer=-1,
    )


def ovis2() -> PretrainedConfig:
    return config(
        "Ovis2Config",
        vision_config=square_tower(hidden_stride=2, vocab_size=64, num_visual_indicator_tokens=5),
        text_config=text("qwen2"),
        image_token_id=IMAGE,
        visual_indicator_token_ids=[281, 282, 283, 284, 285],
        hidden_size=HIDDEN,
        vocab_size=300,
    )


def deepseek_vl() -> PretrainedConfig:
    return config(
        "DeepseekVLConfig",
        vision_config=siglip(),
        text_config=text("llama"),
        image_token_id=IMAGE,
    )


def janus() -> PretrainedConfig:
    quantiser = {
        "embed_dim": 8,
        "latent_channels": 8,
        "num_embeddings": 16,
        "num_res_blocks": 1,
        "base_channels": 32,
        "channel_multiplier": [1, 1],
        "image_token_embed_dim": HIDDEN,
        "projection_dim": HIDDEN,
        "num_patches": 4,
        "num_hidden_layers": 1,
        "hidden_size": 32,
    }
    eyes = {
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "image_size": 28,
        "patch_size": 7,
        "projection_dim": HIDDEN,
        "mlp_ratio": 2.0,
        "depth": 2,
        "num_image_tokens": 16,
    }
    return config(
        "JanusConfig",
        vision_config=eyes,
        text_config=text("llama"),
        image_token_id=IMAGE,
        vq_config=quantiser,
    )


def llama4() -> PretrainedConfig:
    eyes = square_tower(
        intermediate_size=128,
        num_hidden_layers=2,
        vision_output_dim=32,
        projector_input_dim=32,
        projector_output_dim=32,
        pixel_shuffle_ratio=0.5,
    )
    mind = text(
        "llama4_text",
        head_dim=16,
        intermediate_size_mlp=64,
        num_local_experts=2,
        interleave_moe_layer_step=2,
        attention_chunk_size=4096,
        num_hidden_layers=LAYERS,
    )
    return config(
        "Llama4Config",
        vision_config=eyes,
        text_config=mind,
        image_token_index=IMAGE,
        boi_token_index=295,
        eoi_token_index=296,
    )


FAMILIES = (
    Tiny("llava", llava, Square()),
    Tiny("vipllava", vipllava, Square()),
    Tiny("llava_next", llava_next, Anyres()),
    Tiny("llava_onevision", llava_onevision, Anyres(), StackedVideo()),
    Tiny("internvl", internvl, Square()),
    Tiny("mistral3", mistral3, Sized()),
    Tiny("pixtral", pixtral, Sized()),
    Tiny("ovis2", ovis2, Square()),
    Tiny("llama4", llama4, Square()),
    Tiny("deepseek_vl", deepseek_vl, Square()),
    Tiny("janus", janus, Square()),
)
