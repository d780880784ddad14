"""Language models at published geometry, with random weights, for what acts inside them.

Each row of a batch is a short text, N visual tokens and a question; the visual tokens are random
vectors given in place of the tower's, so that only the language model is timed.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from bench.encode_models import smolvlm
from bench.geometry import onevision, prompt
from foveate.core import Plan, flops
from foveate.core.shapes import TextShape
from foveate.engine.compress import Compressed, compress
from foveate.engine.language_door import begin
from foveate.engine.language_run import LanguageRun
from foveate.models.adapter import AutoAdapter, adapter_for
from foveate.models.encoded import Encoded, EncoderTokens, Piece
from foveate.models.shapes import text_shape

TEXT = 60
FLOAT_BYTES = 4


@dataclass(frozen=True)
class Geometry:
    """A language model to measure on."""

    name: str
    title: str
    build: Callable[[], tuple[Any, AutoAdapter]]


def llava15(*, seed: int = 0) -> tuple[Any, AutoAdapter]:
    """LLaVA-1.5-7B's language model at a quarter of its width: 32 layers, 1024 wide, 8 heads of 128
    (4096 and 32 there); the tower is cut to one block, it is not timed.
    """
    from transformers import LlavaConfig, LlavaForConditionalGeneration

    torch.manual_seed(seed)
    config = LlavaConfig(
        vision_config={
            "model_type": "clip_vision_model",
            "hidden_size": 256,
            "intermediate_size": 1024,
            "num_hidden_layers": 1,
            "num_attention_heads": 4,
            "image_size": 336,
            "patch_size": 14,
        },
        text_config={
            "model_type": "llama",
            "hidden_size": 1024,
            "intermediate_size": 2752,
            "num_hidden_layers": 32,
            "num_attention_heads": 8,
            "num_key_value_heads": 8,
            "vocab_size": 32064,
            "max_position_embeddings": 32768,
        },
        image_token_index=32000,
        vision_feature_layer=-1,
    )
    model = LlavaForConditionalGeneration._from_config(config, attn_implementation="sdpa").eval()
    return model, adapter_for(model)


GEOMETRIES = {
    g.name: g
    for g in (
        Geometry("smolvlm", "SmolVLM-256M", smolvlm),
        Geometry("onevision", "LLaVA-OneVision-0.5B", onevision),
        Geometry("llava15", "LLaVA-1.5, a quarter of its width", llava15),
    )
}


class Inside:
    """One model; what prefill and decode benchmarks run on it."""

    def __init__(self, geometry: Geometry) -> None:
        self.geometry = geometry
        self.model, self.adapter = geometry.build()
        self.shape: TextShape = text_shape(self.model.config.get_text_config())
        self.weights_bytes = sum(p.nbytes for p in self.model.parameters())

    def call(self, n: int, batch: int, plan: Plan) -> Compressed:
        """The engine's call for `batch` rows of n visual tokens, before the language model."""
        token = self.adapter.token_id("image")
        assert token is not None
        rows = [prompt(n, token, TEXT, seed=i) for i in range(batch)]
        inputs: dict[str, Tensor] = {k: torch.cat([r[k] for r in rows]) for k in rows[0]}
        return compress(self.adapter, plan, inputs, encoded={"image": self._encoded(n, batch)})

    def _encoded(self, n: int, batch: int) -> Encoded:
        from transformers.modeling_outputs import BaseModelOutputWithPooling

        g = torch.Generator().manual_seed(1)
        parts = [torch.randn(n, self.shape.hidden, generator=g) for _ in range(batch)]
        pieces = [Piece(p, p, "image", (1, 1, n), picture=i) for i, p in enumerate(parts)]
        out = BaseModelOutputWithPooling(pooler_output=parts)
        return Encoded("image", out, pieces, EncoderTokens(blocks=0), tokenwise=False)

    def dense(self, n: int, batch: int) -> Callable[[], Any]:
        """transformers' own forward over everything, to be timed."""
        call = self.call(n, batch, Plan())
        return lambda: self.model(**call.kwargs, logits_to_keep=1, use_cache=True)

    def planned(self, n: int, batch: int, run: LanguageRun) -> Callable[[], Any]:
        """The same under an attached run: announcing, choosing and filing entries are inside."""
        call = self.call(n, batch, run.plan)

        def forward() -> Any:
            extra = begin(run, call)
            return self.model(**call.kwargs, **extra, logits_to_keep=1, use_cache=True)

        return forward

    def ratio(self, n: int, counts: list[int]) -> float:
        """FLOPs of a prefill with `counts` visual tokens at each layer, over those of all n."""
        rows = [TEXT + c for c in counts]
        whole = flops.prefill(self.shape, [TEXT + n] * len(counts)).total
        return flops.prefill(self.shape, rows).total / whole

    def dense_flops(self, n: int, batch: int) -> int:
        return batch * flops.prefill(self.shape, [TEXT + n] * len(self.shape.layers)).total

    def peak_bytes(self, n: int, batch: int) -> int:
        """About what a dense prefill holds: weights, KV, and the widest layer's activations."""
        tokens, text = batch * (TEXT + n), self.shape
        cached = sum(2 * x.kv_heads * x.head_dim for x in text.layers) * tokens
        wide = max(3 * x.mlp.inner + 4 * x.heads * x.head_dim for x in text.layers)
        return int(self.weights_bytes + FLOAT_BYTES * (cached + tokens * (wide + 4 * text.hidden)))
