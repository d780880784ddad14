"""A joint space of pictures and words: a CLIP or SigLIP model whose picture side is, in width and kind,
the vision tower of a vision-language model.

A checkpoint of a vision-language model holds the tower without the projection that brings its patches
to the words' space, and no text tower. Both come from the model that the tower was taken from (for
LLaVA-1.5: openai/clip-vit-large-patch14-336), which the user supplies.

CLIP: a patch goes through the final layer norm and the visual projection, as CDPruner's code has it.
SigLIP has no such projection but a pooling head, in which a learned query attends to the patches; a
patch is brought to the joint space by letting the head attend to it alone. That step is ours.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from foveate.core.errors import CheckpointError, InputError, UnsupportedError

_KINDS = ("clip", "siglip", "siglip2")


class JointSpace:
    """Words and patches in one space. Call it with a text for embeddings (s, e), a row for each part
    that the text tower's length allows; `patches` takes encoder tokens (m, c) to (m, e).
    """

    def __init__(self, model: Any, tokenizer: Any) -> None:
        kind = getattr(getattr(model, "config", None), "model_type", None)
        if kind not in _KINDS or not hasattr(model, "get_text_features"):
            raise UnsupportedError(
                f"{kind or type(model).__name__} is no CLIP or SigLIP model with a text tower; supply "
                "the one that the vision tower was taken from, such as "
                "openai/clip-vit-large-patch14-336 for LLaVA-1.5"
            )
        self.model, self.tokenizer = model.eval(), tokenizer
        named = dict(model.vision_model.named_modules())
        norms = [m for n, m in named.items() if n.split(".")[-1] == "post_layernorm"]
        self.projection: Any = getattr(model, "visual_projection", None)
        self.head: Any = getattr(model.vision_model, "head", None)
        if len(norms) != 1 or (self.projection is None and self.head is None):
            raise UnsupportedError(f"the picture side of this {kind} model cannot be read")
        self.norm: Any = norms[0]

    @classmethod
    def from_pretrained(cls, source: str | Path, *, revision: str | None = None) -> JointSpace:
        """From a local folder or a hub id, safetensors only; CheckpointError if it cannot be read."""
        from transformers import AutoConfig, AutoModel, AutoTokenizer

        where = str(source)
        pin: dict[str, Any] = {"revision": revision, "trust_remote_code": False}
        try:
            kind = AutoConfig.from_pretrained(where, **pin).model_type
            if kind not in _KINDS:
                raise UnsupportedError(
                    f"{where} is a {kind} model: a text tower comes with a CLIP or SigLIP model"
                )
            model = AutoModel.from_pretrained(
                where, dtype=torch.float32, use_safetensors=True, **pin
            )
            tokenizer = AutoTokenizer.from_pretrained(where, **pin)
        except (OSError, ValueError, RuntimeError, KeyError) as error:
            text = str(error).strip().splitlines() or [type(error).__name__]
            raise CheckpointError(f"{where}: the text tower cannot be loaded: {text[0]}") from None
        return cls(model, tokenizer)

    @property
    def width(self) -> int:
        """Width c of the encoder tokens that `patches` takes."""
        return int(self.norm.weight.shape[0])

    @torch.no_grad()
    def __call__(self, text: str) -> Tensor:
        ids, mask = self._parts(text)
        device = self.norm.weight.device
        out = self.model.get_text_features(
            input_ids=ids.to(device), attention_mask=None if mask is None else mask.to(device)
        )
        found: Tensor = out if torch.is_tensor(out) else out.pooler_output
        return found.float()

    @torch.no_grad()
    def patches(self, tokens: Tensor) -> Tensor:
        """Encoder tokens (m, c) of the layer before the last in the joint space (m, e), float32."""
        if int(tokens.shape[-1]) != self.width:
            raise UnsupportedError(
                f"the text tower's picture side has patches of width {self.width}, this model's tower "
                f"{int(tokens.shape[-1])}: supply the CLIP or SigLIP model that this vision tower was "
                "taken from, or use cdpruner-lm"
            )
        weight = self.norm.weight
        normed = self.norm(tokens.to(weight.device, weight.dtype))
        single = self.projection is None  # the head pools over patches: it is shown one at a time
        joint = self.head(normed[:, None]) if single else self.projection(normed)
        out: Tensor = joint.to(tokens.device).float()
        return out

    def _parts(self, text: str) -> tuple[Tensor, Tensor | None]:
        """Token ids (s, length) of the text in parts that fit, each with its own begin and end."""
        most = int(self.model.config.text_config.max_position_embeddings)
        bare = self._ids(text, special=False)
        before, after = self._around(text, bare)
        room = most - len(before) - len(after)
        if room < 1:
            raise InputError(f"this text tower takes {most} tokens, too few for a word")
        parts = [bare[i : i + room] for i in range(0, len(bare), room)] or [[]]
        rows = [before + part + after for part in parts]
        # SigLIP was trained on texts padded to its full length, which all tokens see.
        padded = self.model.config.model_type != "clip"
        length = most if padded else max(len(r) for r in rows)
        fill = self.tokenizer.pad_token_id
        fill = int(fill if fill is not None else rows[0][-1])
        out = torch.full((len(rows), length), fill)
        mask = torch.zeros(len(rows), length, dtype=torch.long)
        for i, row in enumerate(rows):
            out[i, : len(row)] = torch.tensor(row)
            mask[i, : len(row)] = 1
        return out, None if padded else mask

    def _ids(self, text: str, *, special: bool) -> list[int]:
        made = self.tokenizer(text, add_special_tokens=special, truncation=False, verbose=False)
        return [int(x) for x in made["input_ids"]]

    def _around(self, text: str, bare: list[int]) -> tuple[list[int], list[int]]:
        """What the tokenizer writes before and after a text."""
        full = self._ids(text, special=True)
        for start in range(len(full) - len(bare) + 1):
            if full[start : start + len(bare)] == bare:
                return full[:start], full[start + len(bare) :]
        raise InputError("the text tower's tokenizer writes special tokens inside the text")


__all__ = ["JointSpace"]
