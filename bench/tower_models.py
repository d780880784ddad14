"""Models whose vision tower runs whole: lab-nano, SmolVLM-256M's geometry with one tile, and a
CLIP-L/14 tower at 336 px in front of a small Llama. The last two have random weights.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from bench.geometry import prompt


@dataclass(frozen=True)
class Case:
    """A model and one call: a picture, 60 words and the placeholders of all visual tokens."""

    name: str
    title: str
    build: Callable[[], tuple[Any, dict[str, torch.Tensor]]]
    repeats: int


def nano() -> tuple[Any, dict[str, torch.Tensor]]:
    """The bundled model: 112 px, 196 patches, 6 blocks of width 128, 6 layers of 192."""
    from transformers import AutoModelForImageTextToText

    from foveate.lab import nano_path

    model = AutoModelForImageTextToText.from_pretrained(nano_path(), attn_implementation="sdpa")
    return model.eval(), call_of(model, model.config.image_token_index, 196, 112, words=12)


def smolvlm() -> tuple[Any, dict[str, torch.Tensor]]:
    """SigLIP-B/16 at 512 px (1024 patches, 12 x 768), 64 tokens, 30 layers of 576."""
    from transformers import SmolVLMConfig, SmolVLMForConditionalGeneration

    torch.manual_seed(0)
    config = SmolVLMConfig(
        image_token_id=49190,
        scale_factor=4,
        pad_token_id=2,
        vision_config={
            "hidden_size": 768,
            "intermediate_size": 3072,
            "num_hidden_layers": 12,
            "num_attention_heads": 12,
            "image_size": 512,
            "patch_size": 16,
        },
        text_config={
            "model_type": "llama",
            "hidden_size": 576,
            "intermediate_size": 1536,
            "num_hidden_layers": 30,
            "num_attention_heads": 9,
            "num_key_value_heads": 3,
            "vocab_size": 49280,
            "max_position_embeddings": 8192,
            "rope_theta": 1e5,
            "pad_token_id": 2,
        },
    )
    model = SmolVLMForConditionalGeneration._from_config(config, attn_implementation="sdpa")
    call = call_of(model, 49190, 64, 512)
    return model.eval(), {**call, "pixel_values": call["pixel_values"][None]}


def llava() -> tuple[Any, dict[str, torch.Tensor]]:
    """CLIP-L/14 at 336 px (576 patches, 24 x 1024) as LLaVA-1.5 has it, read at block -2; the
    language model is scaled to 32 layers of 960.
    """
    from transformers import LlavaConfig, LlavaForConditionalGeneration

    torch.manual_seed(0)
    config = LlavaConfig(
        vision_config={
            "model_type": "clip_vision_model",
            "hidden_size": 1024,
            "intermediate_size": 4096,
            "num_hidden_layers": 24,
            "num_attention_heads": 16,
            "image_size": 336,
            "patch_size": 14,
            "projection_dim": 768,
        },
        text_config={
            "model_type": "llama",
            "hidden_size": 960,
            "intermediate_size": 2560,
            "num_hidden_layers": 32,
            "num_attention_heads": 15,
            "num_key_value_heads": 5,
            "vocab_size": 32064,
            "max_position_embeddings": 4096,
            "tie_word_embeddings": True,
        },
        image_token_index=32000,
        vision_feature_layer=-2,
        vision_feature_select_strategy="default",
    )
    model = LlavaForConditionalGeneration._from_config(config, attn_implementation="sdpa")
    return model.eval(), call_of(model, 32000, 576, 336)


def call_of(
    model: Any, token: int, tokens: int, side: int, words: int = 60
) -> dict[str, torch.Tensor]:
    """One row: words around `tokens` placeholders, and a picture of noise, `side` pixels wide."""
    vocabulary = model.config.text_config.vocab_size
    row = prompt(tokens, token, text=words)
    row["input_ids"] = torch.where(
        row["input_ids"] == token, token, 10 + row["input_ids"] % (min(vocabulary, 1000) - 20)
    )
    noise = torch.randn(1, 3, side, side, generator=torch.Generator().manual_seed(3))
    return {**row, "pixel_values": noise}


CASES = {
    c.name: c
    for c in (
        Case("lab-nano", "lab-nano", nano, 9),
        Case("smolvlm", "SmolVLM-256M, one tile", smolvlm, 3),
        Case("clip-l", "CLIP-L/14-336 with 32 x 960", llava, 3),
    )
}
