"""The two geometries of the grid: language models with random weights at published sizes, and
random encoder output of any length with the tower's own layout.

LLaVA-OneVision-0.5B is one picture of N tokens, each of one patch of SigLIP-so400m. SmolVLM-256M is
N / 64 tiles of 8 x 8 tokens, each tile one pass of SigLIP-B/16 at 512 px (32 x 32 patches), sixteen
patches to a token. Methods that compare frames get the same tokens as one video.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from bench.geometry import WIDTH, Facts, grid_for, onevision
from foveate.core.views import Need
from foveate.models.adapter import AutoAdapter, adapter_for
from foveate.models.compat import Capture, observe
from foveate.models.encoded import Encoded, EncoderTokens, Piece, flatten_capture

TILE, SIDE = 64, 32  # projected tokens of a tile; patches along one side of it
ATTENTION = ("saliency", "received", "keys")


@dataclass(frozen=True)
class Geometry:
    """A model to measure on: `layers` and `dim` of its language model, `width` of its tower."""

    name: str
    title: str
    layers: int
    dim: int
    width: int
    build: Callable[[], tuple[Any, AutoAdapter]]
    facts: Callable[[int, bool], Any]


def smolvlm(*, layers: int = 30, seed: int = 0) -> tuple[Any, AutoAdapter]:
    """SmolVLM-256M's language model (30 x 576); the tower is cut to one block, it is not timed.

    The class is Llava's, so that any number of tiles may stand in one row without a processor.
    """
    from transformers import LlavaConfig, LlavaForConditionalGeneration

    torch.manual_seed(seed)
    config = LlavaConfig(
        vision_config={
            "model_type": "siglip_vision_model",
            "hidden_size": 768,
            "intermediate_size": 3072,
            "num_hidden_layers": 1,
            "num_attention_heads": 12,
            "image_size": 512,
            "patch_size": 16,
            "vision_use_head": False,
        },
        text_config={
            "model_type": "llama",
            "hidden_size": 576,
            "intermediate_size": 1536,
            "num_hidden_layers": layers,
            "num_attention_heads": 9,
            "num_key_value_heads": 3,
            "vocab_size": 49280,
            "max_position_embeddings": 32768,
            "rope_theta": 1e5,
            "tie_word_embeddings": True,
        },
        image_token_index=49190,
        vision_feature_layer=-1,
        vision_feature_select_strategy="full",
    )
    model = LlavaForConditionalGeneration._from_config(config, attn_implementation="sdpa").eval()
    return model, adapter_for(model)


class Tiles:
    """Random output of a tower that sees n / 64 tiles (or n / 64 frames of one video)."""

    heads, head_dim, width, blocks = 12, 64, 768, 12

    def __init__(self, n: int, video: bool, dim: int = 576, seed: int = 0) -> None:
        if n % TILE:
            raise ValueError(f"{n} tokens are not whole tiles of {TILE}")
        g = torch.Generator().manual_seed(seed)
        tiles, patches = n // TILE, SIDE * SIDE
        self.n, self.tiles, self.video = n, tiles, video
        self.grid = (tiles, 8, 8) if video else (1, 8, 8)
        self.features = torch.randn(n, dim, generator=g)
        self.hidden = torch.randn(tiles * patches, self.width, generator=g)
        shape = (tiles, self.heads, patches, self.head_dim)
        self.q, self.k = (torch.randn(shape, generator=g) for _ in range(2))
        row, column = torch.meshgrid(torch.arange(SIDE), torch.arange(SIDE), indexing="ij")
        self.group = (row // 4 * 8 + column // 4).flatten()  # four by four patches to a token

    def encoded(self, needs: frozenset[Need]) -> Encoded:
        """What the adapter would hand over; scoring (partial attention) happens here."""
        patches = SIDE * SIDE
        tokens = EncoderTokens(blocks=self.blocks, queries=patches, feature_block=self.blocks - 1)
        want: dict[int, set[str]] = {}
        for need in needs:
            block = need.layer if need.layer >= 0 else self.blocks + need.layer
            if need.what == "features":
                tokens.hidden[block] = tokens.hidden[self.blocks - 1] = self.hidden
            if need.what in ATTENTION:
                want.setdefault(block, set()).add("keys" if need.what == "keys" else "received")
        for block, what in want.items():
            capture = Capture(frozenset(what), 0)
            observe(capture, self.q, self.k, None, None)
            found = flatten_capture(capture, 0, 0)
            if found is not None:
                tokens.attention[block] = found
        from transformers.modeling_outputs import BaseModelOutputWithPooling

        pieces = self._video() if self.video else self._pictures()
        out = BaseModelOutputWithPooling(pooler_output=[p.features for p in pieces])
        return Encoded("image", out, pieces, tokens, tokenwise=False)

    def _piece(self, start: int, tiles: int, kind: Any, grid: tuple[int, int, int]) -> Piece:
        patches = SIDE * SIDE
        features = self.features[start * TILE : (start + tiles) * TILE]
        passes = torch.arange(tiles).repeat_interleave(patches)
        return Piece(
            features,
            features,
            kind,
            grid,
            source=torch.arange(start * patches, (start + tiles) * patches),
            group=self.group.repeat(tiles) + passes * TILE,
            part=passes + start,
            picture=0,
        )

    def _pictures(self) -> list[Piece]:
        return [self._piece(i, 1, "tile", (1, 8, 8)) for i in range(self.tiles)]

    def _video(self) -> list[Piece]:
        return [self._piece(0, self.tiles, "video", self.grid)]


def bare(n: int, dim: int) -> Encoded:
    """n projected tokens without anything behind them: what an engine is natively fed."""
    from transformers.modeling_outputs import BaseModelOutputWithPooling

    features: Tensor = torch.randn(n, dim, generator=torch.Generator().manual_seed(1))
    piece = Piece(features, features, "image", (1, 1, n), picture=0)
    out = BaseModelOutputWithPooling(pooler_output=[features])
    return Encoded("image", out, [piece], EncoderTokens(blocks=0), tokenwise=False)


def text_embedding(width: int) -> Tensor:
    """A question's embedding (width,) in the space of the tower's features."""
    return torch.randn(width, generator=torch.Generator().manual_seed(2))


GEOMETRIES = {
    g.name: g
    for g in (
        Geometry(
            "onevision",
            "LLaVA-OneVision-0.5B",
            24,
            896,
            WIDTH,
            onevision,
            lambda n, video: Facts(n, grid_for(video, n)),
        ),
        Geometry("smolvlm", "SmolVLM-256M", 30, 576, 768, smolvlm, Tiles),
    )
}
