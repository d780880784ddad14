"""Building lab-nano: a stock LlavaForConditionalGeneration from config, started so that a CPU can
train it.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

from .canvas import EDGES, MAX_SLOT, Layer
from .recipe import Geometry
from .tasks.bars import VALUE_OFFSET
from .tokenizer import BOS, EOS, IMAGE, MAX_LENGTH, PAD
from .words import (
    BOX_CELLS,
    COLOUR_LABELS,
    DIGITS,
    GLYPHS,
    KINDS,
    MAX_BAR,
    MAX_OBJECTS,
    NOTES,
    SHAPE_LABELS,
    SIDE,
    WORDS,
)

PLANE_SIZES = {
    Layer.GLYPH: len(GLYPHS) + 1,
    Layer.SLOT: MAX_SLOT + 1,
    Layer.SHAPE: len(SHAPE_LABELS) + 1,
    Layer.COLOUR: len(COLOUR_LABELS) + 1,
    Layer.WORD: VALUE_OFFSET + MAX_BAR + len(NOTES) + 1,
    Layer.HEAD: len(WORDS) + 1,
    **{edge: BOX_CELLS + 2 for edge in EDGES},
}
"""Classes of each label plane, background included."""

CLS_GLYPHS = [char for char in GLYPHS if char.isupper() or char in DIGITS]
CLS_SIZES = (
    len(COLOUR_LABELS),
    len(SHAPE_LABELS),
    len(KINDS),
    MAX_OBJECTS + 1,
    len(CLS_GLYPHS),
    len(WORDS),
)
"""What CLS must know: colours, shapes, kind of picture, number of things, characters and words
present.
"""


class Heads(nn.Module):
    """Training-only heads on the tower: what lies under each half of each patch, and the job of
    CLS.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.sizes = [PLANE_SIZES[layer] for layer in Layer]
        self.patch = nn.Linear(width, 2 * sum(self.sizes))
        self.cls = nn.Linear(width, sum(CLS_SIZES))


def build(
    geometry: Geometry, vocabulary: int, seed: int
) -> tuple[LlavaForConditionalGeneration, Heads]:
    """The model and its training heads, initialised from a seed.

    At these widths the stock deviation of 0.02 is far too small: projections start at a multiple of
    1/sqrt(fan in). The position embedding starts as 2-D sines, and each attention layer of the
    language model as match-and-copy: keys equal queries, so equal words attend to each other, and
    the output projection undoes the value projection.
    """
    torch.manual_seed(seed)
    side = SIDE // geometry.patch
    vision = CLIPVisionConfig(
        hidden_size=geometry.vision_width,
        intermediate_size=geometry.vision_ff,
        num_hidden_layers=geometry.vision_layers,
        num_attention_heads=geometry.vision_heads,
        projection_dim=geometry.vision_width,
        image_size=SIDE,
        patch_size=geometry.patch,
        hidden_act="gelu",
    )
    text = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=geometry.text_width,
        intermediate_size=geometry.text_ff,
        num_hidden_layers=geometry.text_layers,
        num_attention_heads=geometry.text_heads,
        num_key_value_heads=geometry.text_heads,
        max_position_embeddings=MAX_LENGTH,
        tie_word_embeddings=True,
        pad_token_id=PAD,
        bos_token_id=BOS,
        eos_token_id=EOS,
    )
    config = LlavaConfig(
        vision_config=vision,
        text_config=text,
        image_token_id=IMAGE,
        image_seq_length=side * side,
        vision_feature_layer=-1,
        vision_feature_select_strategy="default",
        tie_word_embeddings=True,
    )
    model = LlavaForConditionalGeneration(config)
    _start_tower(model, side, geometry.vision_width)
    _start_text(model, geometry.text_width)
    return model, Heads(geometry.vision_width)


def _scaled(linear: nn.Linear, gain: float) -> None:
    nn.init.normal_(linear.weight, std=gain * linear.in_features**-0.5)
    if linear.bias is not None:
        nn.init.zeros_(linear.bias)


def _start_tower(model: LlavaForConditionalGeneration, side: int, width: int) -> None:
    for module in (
        *model.model.vision_tower.modules(),
        *model.model.multi_modal_projector.modules(),
    ):
        if isinstance(module, nn.Linear):
            _scaled(module, 0.7)
        elif isinstance(module, nn.Conv2d):
            nn.init.normal_(module.weight, std=module.weight[0].numel() ** -0.5)
    positions = next(
        m for n, m in model.model.vision_tower.named_modules() if n.endswith("position_embedding")
    )
    nn.init.normal_(positions.weight, std=0.1)
    with torch.no_grad():
        positions.weight[1:] = 0.5 * sines(side, width)


def sines(side: int, width: int) -> Tensor:
    """2-D sine positions, (side * side, width): half the width for the row, half for the column."""
    waves = torch.pi * 2 ** torch.linspace(0, 3, width // 4)
    angle = ((torch.arange(side) + 0.5) / side)[:, None] * waves
    line = torch.cat([angle.sin(), angle.cos()], 1)
    rows, columns = line[:, None].expand(-1, side, -1), line[None].expand(side, -1, -1)
    return torch.cat([rows, columns], -1).flatten(0, 1)


def _start_text(model: LlavaForConditionalGeneration, width: int) -> None:
    for name, module in model.model.language_model.named_modules():
        if isinstance(module, nn.Linear):
            _scaled(module, 0.35 if name.endswith(("o_proj", "down_proj")) else 0.8)
    nn.init.normal_(model.get_input_embeddings().weight, std=0.1)
    for layer in model.model.language_model.layers:
        attention = layer.self_attn
        _scaled(attention.q_proj, 1.5)
        nn.init.orthogonal_(attention.v_proj.weight, 0.7)
        with torch.no_grad():
            attention.k_proj.weight.copy_(attention.q_proj.weight)
            attention.o_proj.weight.copy_(attention.v_proj.weight.T)


def see(model: LlavaForConditionalGeneration, pixels: Tensor) -> Tensor:
    """Tower output that LLaVA hands to its projector, CLS first: (batch, 1 + tokens, dim)."""
    states = model.model.vision_tower(pixels, output_hidden_states=True).hidden_states
    found: Tensor = states[model.config.vision_feature_layer]
    return found


def attend_in_float32(model: LlavaForConditionalGeneration) -> None:
    """Let attention compute in float32 under autocast, in place.

    Without bfloat16 matrix units the CPU's bfloat16 attention takes several times as long as that
    of float32, above all backward: it was half of a training step.
    """
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.integrations.sdpa_attention import sdpa_attention_forward
    from transformers.masking_utils import sdpa_mask

    def forward(
        module: nn.Module, query: Tensor, key: Tensor, value: Tensor, *rest: Any, **options: Any
    ) -> tuple[Tensor, None]:
        with torch.autocast(query.device.type, enabled=False):
            parts = (part.float() for part in (query, key, value))
            out = sdpa_attention_forward(module, *parts, *rest, **options)[0]
        return out.to(query.dtype), None

    AttentionInterface.register("lab_float32", forward)
    AttentionMaskInterface.register("lab_float32", sdpa_mask)
    model.set_attn_implementation("lab_float32")
