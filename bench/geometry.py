"""Random-weight models at published geometry, and encoder facts of any length, for measurements of
speed.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from foveate.core.views import Need
from foveate.models.adapter import AutoAdapter, adapter_for
from foveate.models.compat import Capture, observe
from foveate.models.encoded import Encoded, EncoderTokens, Piece, flatten_capture

HEADS, HEAD_DIM, WIDTH, BLOCKS = 16, 72, 1152, 27  # SigLIP-so400m


def onevision(*, layers: int = 24, seed: int = 0) -> tuple[Any, AutoAdapter]:
    """LLaVA-OneVision-0.5B's language model and projector; the tower is cut to one block, it is not
    timed.
    """
    from transformers import LlavaConfig, LlavaForConditionalGeneration

    torch.manual_seed(seed)
    config = LlavaConfig(
        vision_config={
            "model_type": "siglip_vision_model",
            "hidden_size": WIDTH,
            "intermediate_size": 4304,
            "num_hidden_layers": 1,
            "num_attention_heads": HEADS,
            "image_size": 336,
            "patch_size": 14,
            "vision_use_head": False,
        },
        text_config={
            "model_type": "qwen2",
            "hidden_size": 896,
            "intermediate_size": 4864,
            "num_hidden_layers": layers,
            "num_attention_heads": 14,
            "num_key_value_heads": 2,
            "vocab_size": 151936,
            "max_position_embeddings": 32768,
            "rope_theta": 1e6,
            "tie_word_embeddings": True,
        },
        image_token_index=151646,
        vision_feature_layer=-1,
        vision_feature_select_strategy="full",
    )
    model = LlavaForConditionalGeneration._from_config(config, attn_implementation="sdpa").eval()
    return model, adapter_for(model)


class Facts:
    """Random encoder output of n tokens: features, and q and k of one block, from which scores are
    computed.
    """

    def __init__(self, n: int, grid: tuple[int, int, int], seed: int = 0) -> None:
        g = torch.Generator().manual_seed(seed)
        self.n, self.grid = n, grid
        self.features = torch.randn(n, 896, generator=g)
        self.hidden = torch.randn(n, WIDTH, generator=g)
        self.q = torch.randn(1, HEADS, n, HEAD_DIM, generator=g)
        self.k = torch.randn(1, HEADS, n, HEAD_DIM, generator=g)

    def encoded(self, needs: frozenset[Need]) -> Encoded:
        """What the adapter would hand over; scoring (partial attention) happens here, inside the
        timed part.
        """
        place = torch.arange(self.n)
        tokens = EncoderTokens(blocks=BLOCKS, queries=self.n, feature_block=BLOCKS - 1)
        for need in needs:
            block = need.layer if need.layer >= 0 else BLOCKS + need.layer
            if need.what == "features":
                tokens.hidden[block] = self.hidden
                tokens.hidden[BLOCKS - 1] = self.hidden
        kinds: dict[int, set[str]] = {}
        for need in needs:
            if need.what in ("saliency", "received", "keys"):
                block = need.layer if need.layer >= 0 else BLOCKS + need.layer
                kinds.setdefault(block, set()).add("keys" if need.what == "keys" else "received")
        for block, want in kinds.items():
            capture = Capture(frozenset(want), 0)
            observe(capture, self.q, self.k, None, None)
            found = flatten_capture(capture, 0, 0)
            if found is not None:
                tokens.attention[block] = found
        kind = "video" if self.grid[0] > 1 else "image"
        piece = Piece(
            self.features,
            self.features,
            kind,
            self.grid,
            source=place,
            group=place,
            part=torch.zeros_like(place),
            picture=0,
        )
        from transformers.modeling_outputs import BaseModelOutputWithPooling

        out = BaseModelOutputWithPooling(pooler_output=[self.features])
        return Encoded("image", out, [piece], tokens, tokenwise=False)


def prompt(n: int, token: int, text: int = 60, seed: int = 0) -> dict[str, Tensor]:
    """One row: text, n placeholders, question."""
    g = torch.Generator().manual_seed(seed)
    words = torch.randint(100, 1000, (text,), generator=g)
    half = text // 2
    ids = torch.cat([words[:half], torch.full((n,), token), words[half:]])[None]
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


FRAMES = {
    576: (16, 6, 6),
    1024: (16, 8, 8),
    2880: (20, 12, 12),
    10240: (40, 16, 16),
    256: (4, 8, 8),
}


def grid_for(video: bool, n: int) -> tuple[int, int, int]:
    """A picture's grid, or frames for methods that compare frames."""
    return FRAMES[n] if video else grid_of(n)


def grid_of(n: int) -> tuple[int, int, int]:
    """A nearly square grid of exactly n tokens."""
    h = int(n**0.5)
    while n % h:
        h -= 1
    return (1, h, n // h)
