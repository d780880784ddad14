"""Families that resemble no other: Idefics, LFM2-VL, MiniCPM-V, Molmo 2, GOT-OCR 2, Aria."""

from __future__ import annotations

from functools import partial

from transformers import PretrainedConfig

from tests.support.tiny_pictures import Crops, Shaped, Square, Strip, TiledRows
from tests.support.tiny_spec import HIDDEN, IMAGE, VIDEO, Settings, Tiny, config, text, tower
from tests.support.tiny_videos import CropVideo, StripVideo


def _tile_tower(model_type: str | None = None) -> Settings:
    kind = {} if model_type is None else {"model_type": model_type}
    return tower(**kind, image_size=32, patch_size=8)


def _idefics3(name: str, vision_type: str) -> PretrainedConfig:
    return config(
        name,
        vision_config=_tile_tower(vision_type),
        text_config=text("llama"),
        image_token_id=IMAGE,
        scale_factor=2,
        pad_token_id=0,
    )


def idefics2() -> PretrainedConfig:
    perceiver = {
        "hidden_size": HIDDEN,
        "resampler_n_latents": 6,
        "resampler_depth": 1,
        "resampler_n_heads": 2,
        "resampler_head_dim": 16,
        "num_key_value_heads": 2,
    }
    return config(
        "Idefics2Config",
        vision_config=_tile_tower(),
        perceiver_config=perceiver,
        text_config=text("mistral", sliding_window=None),
        image_token_id=IMAGE,
    )


def lfm2_vl() -> PretrainedConfig:
    eyes = tower(
        model_type="siglip2_vision_model",
        num_hidden_layers=2,
        patch_size=4,
        num_patches=64,
        vision_use_head=False,
    )
    layers = ["conv", "conv", "full_attention"] * 2
    return config(
        "Lfm2VlConfig",
        vision_config=eyes,
        text_config=text("lfm2", layer_types=layers, conv_L_cache=3),
        image_token_id=IMAGE,
        downsample_factor=2,
        projector_hidden_size=48,
    )


def _minicpm(name: str) -> PretrainedConfig:
    mind = text(
        "qwen3_5_text",
        head_dim=16,
        linear_key_head_dim=16,
        linear_value_head_dim=16,
        linear_num_key_heads=2,
        linear_num_value_heads=4,
        layer_types=["linear_attention", "linear_attention", "full_attention"] * 2,
    )
    return config(
        name,
        vision_config=tower(image_size=64, patch_size=8),
        text_config=mind,
        image_token_id=IMAGE,
        video_token_id=VIDEO,
        insert_layer_id=1,  # the merger in mid-tower; the vision config takes it from here
    )


def molmo2() -> PretrainedConfig:
    heads = {"num_key_value_heads": 4, "head_dim": 8}
    adapter = {
        "vision_feature_layer": [-1, 0],
        "hidden_size": 32,
        "num_attention_heads": 4,
        "intermediate_size": 48,
        "text_hidden_size": HIDDEN,
        **heads,
    }
    return config(
        "Molmo2Config",
        vision_config=tower(image_size=[28, 28], patch_size=7, **heads),
        adapter_config=adapter,
        text_config=text("molmo2_text", head_dim=16, additional_vocab_size=16),
        image_patch_id=IMAGE,
        image_token_id=IMAGE,
    )


def got_ocr2() -> PretrainedConfig:
    eyes = {
        "hidden_size": 32,
        "output_channels": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "image_size": 64,
        "patch_size": 4,
        "window_size": 4,
        "global_attn_indexes": [1],
        "mlp_dim": 48,
        "initializer_range": 0.02,  # the default of 1e-10 makes a tower that sees nothing
    }
    return config(
        "GotOcr2Config",
        vision_config=eyes,
        text_config=text("qwen2"),
        image_token_index=IMAGE,
        image_seq_length=4,
    )


def aria() -> PretrainedConfig:
    mind = text("aria_text", moe_num_experts=4, moe_topk=2, moe_num_shared_experts=1)
    return config(
        "AriaConfig",
        vision_config=_tile_tower("idefics3_vision"),
        text_config=mind,
        image_token_index=IMAGE,
        projector_patch_to_query_dict={16: 8},
    )


def _minicpm_family(name: str, config_name: str) -> Tiny:
    return Tiny(name, partial(_minicpm, config_name), Strip(), StripVideo(), recurrent=True)


FAMILIES = (
    Tiny("idefics2", idefics2, TiledRows((2, 1)), run_tokens=6),
    Tiny(
        "idefics3",
        partial(_idefics3, "Idefics3Config", "idefics3_vision"),
        TiledRows((5, 3)),
        run_tokens=4,
    ),
    Tiny(
        "smolvlm",
        partial(_idefics3, "SmolVLMConfig", "smolvlm_vision"),
        TiledRows((5, 3)),
        run_tokens=4,
    ),
    Tiny("lfm2_vl", lfm2_vl, Shaped(), recurrent=True),
    _minicpm_family("minicpmv4_6", "MiniCPMV4_6Config"),
    # Molmo 2 writes video frames with the image placeholder, and marks both as images.
    Tiny(
        "molmo2",
        molmo2,
        Crops(),
        CropVideo(),
        frame_runs=True,
        video_id=IMAGE,
        video_type=1,
        # A gated projector without a norm before it: small values come out squared.
        enlarge=(("image_projector", 10.0),),
    ),
    Tiny("got_ocr2", got_ocr2, Square(64), attention="eager"),
    _minicpm_family("minicpmv4_7", "MiniCPMV4_7Config"),
    Tiny("aria", aria, Square(32, mask=True)),
)
