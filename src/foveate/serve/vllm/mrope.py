"""Models with M-RoPE: kept tokens carry their own (t, h, w) behind their features, and vLLM asks the
model for positions before and after encoding.

vLLM has the two calls for its own pruning of videos, where text behind a picture is found again after
encoding; here it stands right from the start, see foveate.serve.vllm.positions.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from foveate.core.plan import Plan
from foveate.serve.vllm.layouts import Span
from foveate.serve.vllm.model import PlannedModel, taken
from foveate.serve.vllm.positions import (
    CHANNELS,
    Run,
    after_encoding,
    before_encoding,
    digits,
    facts,
    undigits,
)
from foveate.serve.vllm.processor import plan_field, read, words_field
from foveate.serve.vllm.reach import check_tables, extent_of, frames_of
from foveate.serve.vllm.startup import serving_of

_MARK = "_foveate_wraps"


class PlannedMRopeModel(PlannedModel):
    """Positions by the rule of foveate.serve.vllm.positions."""

    def __init__(self, *, vllm_config: Any, prefix: str = "") -> None:
        if serving_of(vllm_config.model_config) is not None:
            # vLLM's runners ask for positions after encoding where config and model say so, and its
            # rotary tables then reach to the positions of tokens that are not there.
            config: Any = vllm_config.model_config.multimodal_config
            object.__setattr__(config, "is_multimodal_pruning_enabled", _always)
        super().__init__(vllm_config=vllm_config, prefix=prefix)
        if self._foveate is None:
            return
        check_tables(self, self.config)
        self.supports_multimodal_pruning = True
        self.is_multimodal_pruning_enabled = False  # vLLM's own, of videos

    def _placed(
        self, rows: Tensor, anchors: np.ndarray, span: Span, plan: Plan, fields: Mapping[str, Any]
    ) -> Tensor:
        frames = frames_of(self.family, self.config, span, fields.get(words_field("video")))
        if frames is None:
            about = facts(self.family.cells(self.config, span, fields)[anchors])
        else:
            picks, about = frames.rows(anchors, span.grid)
            words = rows.new_zeros(frames.words.size, rows.shape[1])
            rows = taken(torch.cat([rows, words]), picks)
        channels = torch.as_tensor(digits(about), device=rows.device).to(rows.dtype)
        return torch.cat([rows, channels], 1)

    def get_mrope_input_positions(
        self, input_tokens: list[int], mm_features: list[Any]
    ) -> tuple[Tensor, int]:
        """(3, S) before encoding, and what a later token's place is ahead of its number."""
        if self._foveate is None:
            return super().get_mrope_input_positions(input_tokens, mm_features)  # type: ignore[misc]  # vLLM's own
        runs, renumber = [], False
        for feature in sorted(mm_features, key=lambda f: f.mm_position.offset):
            modality, at = feature.modality, feature.mm_position
            fields = {k: v.data for k, v in feature.data.items()}
            plan = self._foveate.served(read(fields[plan_field(modality)])[0])
            renumber |= plan.positions == "renumber"
            place = self.family.placeholder(self.config, modality)
            part = np.asarray(input_tokens[at.offset : at.offset + at.length]) == place
            (span,) = self.family.layout(self.config, fields, int(part.sum()), modality).spans
            frames = frames_of(self.family, self.config, span, fields.get(words_field("video")))
            first = at.offset + int(part.argmax())
            words = 0 if frames is None else int(frames.words.size)
            extent = extent_of(self.family, self.config, span, fields, frames)
            runs.append(Run(first, int(part.sum()) + words, extent))
        positions = before_encoding(len(input_tokens), runs, renumber=renumber)
        delta = int(positions.max()) + 1 - len(input_tokens) if len(input_tokens) else 0
        return torch.from_numpy(positions), delta

    def recompute_mrope_positions(
        self,
        input_ids: Any,
        multimodal_embeddings: Sequence[Tensor],
        mrope_positions: Tensor,
        num_computed_tokens: int,
    ) -> tuple[Sequence[Tensor], Tensor, int]:
        """Features without their positions, which are written where they belong."""
        positions = mrope_positions
        items = [undigits(m[:, -CHANNELS:]) for m in multimodal_embeddings]
        if items:
            ids = torch.as_tensor(input_ids, device=positions.device)
            visual = torch.zeros_like(ids, dtype=torch.bool)
            for modality in self.family.modalities:
                visual |= ids == self.family.placeholder(self.config, modality)
            positions = after_encoding(positions, visual, items, num_computed_tokens)
        delta = int(positions.max()) + 1 - int(positions.shape[1])
        features = [
            self._worded(m[:, :-CHANNELS], about[:, 4])
            for m, about in zip(multimodal_embeddings, items, strict=True)
        ]
        return features, positions, delta

    def _worded(self, features: Tensor, words: Tensor) -> Tensor:
        """Rows (k, width) with the embeddings of those that are words (k,). They are looked up here and
        not beside the encoder, which may run in a process without a language model.
        """
        if self.family.between is None or not bool(words.any()):
            return features
        there = words.nonzero().flatten()
        language: Any = self.get_language_model()  # type: ignore[attr-defined]  # vLLM's own
        embeddings = language.embed_input_ids(words[there] - 1)
        out = features.clone()  # what is cached stays as it is
        out[there, : embeddings.shape[1]] = embeddings.to(out.dtype)
        return out


def _always() -> bool:
    return True


def let_cpu_runner_prune() -> None:
    """vLLM's CPU runner never asks whether the model has positions to give after encoding, as its GPU
    runner does when it has loaded a model; so it asks here.
    """
    from vllm.v1.worker.cpu_model_runner import CPUModelRunner

    original = CPUModelRunner.load_model
    if hasattr(original, _MARK):
        return

    @functools.wraps(original)
    def load_model(self: Any, *args: Any, **kwargs: Any) -> None:
        original(self, *args, **kwargs)
        model = self.get_model()
        if isinstance(model, PlannedMRopeModel) and model._foveate is not None:
            self.is_multimodal_pruning_enabled = True

    setattr(load_model, _MARK, True)
    CPUModelRunner.load_model = load_model
