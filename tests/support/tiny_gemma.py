"""PaliGemma, Gemma 3, 3n and 4, and Cohere's models.

Here are the sliding windows, the bidirectional attention within pictures, and the shared KV.
"""

from __future__ import annotations

from functools import partial
from typing import Any

from torch import Tensor, nn
from transformers import PretrainedConfig
from transformers.modeling_outputs import BaseModelOutputWithPooling

from tests.support.tiny_pictures import Placed, Square
from tests.support.tiny_spec import (
    AUDIO,
    HIDDEN,
    IMAGE,
    IMAGE_END,
    IMAGE_START,
    LAYERS,
    LONG_WINDOW,
    MIXED_WINDOWS,
    VIDEO,
    VOCAB,
    Settings,
    Tiny,
    config,
    siglip,
    text,
    tower,
)
from tests.support.tiny_videos import PlacedVideo

SHORT_WINDOW = 16  # shorter than the prompts: sliding layers do forget


class ConvTower(nn.Module):
    """Stands in for Gemma 3n's MobileNet, whose package is not installed: (n, 32, 3, 3)."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 32, kernel_size=8, stride=8)

    def forward(self, pixel_values: Tensor, **_: Any) -> BaseModelOutputWithPooling:
        return BaseModelOutputWithPooling(last_hidden_state=self.conv(pixel_values))


def _windows(model_type: str, window: int, **changes: Any) -> Settings:
    return text(model_type, sliding_window=window, layer_types=MIXED_WINDOWS, **changes)


def _paligemma(mind: Settings) -> PretrainedConfig:
    return config(
        "PaliGemmaConfig",
        vision_config=siglip(projection_dim=HIDDEN),
        text_config=mind,
        image_token_index=IMAGE,
        projection_dim=HIDDEN,
        hidden_size=HIDDEN,
    )


def paligemma() -> PretrainedConfig:
    return _paligemma(text("gemma", head_dim=16))


def paligemma2() -> PretrainedConfig:
    return _paligemma(
        text("gemma2", head_dim=16, sliding_window=LONG_WINDOW, query_pre_attn_scalar=16)
    )


def gemma3(window: int = LONG_WINDOW) -> PretrainedConfig:
    return config(
        "Gemma3Config",
        vision_config=siglip(),
        text_config=_windows("gemma3_text", window, head_dim=16),
        mm_tokens_per_image=4,
        image_token_index=IMAGE,
        boi_token_index=IMAGE_START,
        eoi_token_index=IMAGE_END,
    )


def gemma3n() -> PretrainedConfig:
    mind = _windows(
        "gemma3n_text",
        LONG_WINDOW,
        head_dim=16,
        hidden_size_per_layer_input=8,
        vocab_size_per_layer_input=VOCAB,
        num_kv_shared_layers=2,
        altup_num_inputs=4,
        laurel_rank=8,
        activation_sparsity_pattern=[0.0] * LAYERS,
    )
    return config(
        "Gemma3nConfig",
        vision_config={"hidden_size": 32, "vocab_size": 8, "vocab_offset": VOCAB},
        audio_config={"hidden_size": 32, "vocab_size": 8, "vocab_offset": VOCAB + 8},
        text_config=mind,
        image_token_id=IMAGE,
        audio_token_id=AUDIO,
        vision_soft_tokens_per_image=9,
    )


def gemma4(
    window: int = LONG_WINDOW, bidirectional: str | None = None, shared_layers: int = 0
) -> PretrainedConfig:
    eyes = tower(
        num_hidden_layers=2,
        num_key_value_heads=4,
        head_dim=8,
        patch_size=4,
        pooling_kernel_size=2,
        position_embedding_size=64,
    )
    mind = _windows(
        "gemma4_text",
        window,
        head_dim=16,
        global_head_dim=16,
        hidden_size_per_layer_input=8,
        vocab_size_per_layer_input=VOCAB,
        num_kv_shared_layers=shared_layers,
        use_bidirectional_attention=bidirectional,
    )
    return config(
        "Gemma4Config",
        vision_config=eyes,
        audio_config=None,
        text_config=mind,
        image_token_id=IMAGE,
        video_token_id=VIDEO,
        audio_token_id=AUDIO,
    )


def aya_vision(window: int = LONG_WINDOW) -> PretrainedConfig:
    return config(
        "AyaVisionConfig",
        vision_config=siglip(),
        text_config=_windows("cohere2", window),
        image_token_index=IMAGE,
        downsample_factor=2,
    )


def cohere2_vision() -> PretrainedConfig:
    return config(
        "Cohere2VisionConfig",
        vision_config=siglip(),
        text_config=_windows("cohere2", LONG_WINDOW),
        image_token_id=IMAGE,
        downsample_factor=2,
        alignment_intermediate_size=64,
    )


def _gemma3(name: str, **changes: Any) -> Tiny:
    around = (IMAGE_START, IMAGE_END)
    return Tiny(name, partial(gemma3, **changes), Square(), around_run=around)


def _gemma4(name: str, **changes: Any) -> Tiny:
    build = partial(gemma4, **changes)
    return Tiny(name, build, Placed(), PlacedVideo(), frame_runs=True)


FAMILIES = (
    Tiny("paligemma", paligemma, Square(), marks_images=False),
    # Gemma 2 caps attention scores, which the fused kernel cannot.
    Tiny("paligemma2", paligemma2, Square(), attention="eager", marks_images=False),
    _gemma3("gemma3"),
    _gemma4("gemma4"),
    _gemma4("gemma4_bidir", bidirectional="vision"),
    _gemma4("gemma4_kvshare", shared_layers=3),
    Tiny("aya_vision", aya_vision, Square()),
    Tiny("cohere2_vision", cohere2_vision, Square()),
    Tiny("gemma3n", gemma3n, Square(), tower=ConvTower),
    _gemma3("gemma3_w16", window=SHORT_WINDOW),
    _gemma4("gemma4_w16", window=SHORT_WINDOW),
    Tiny("aya_vision_w16", partial(aya_vision, window=SHORT_WINDOW), Square()),
)
