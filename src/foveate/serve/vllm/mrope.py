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
from foveate.serve.vllm.model import PlannedModel
from foveate.serve.vllm.positions import (
    CHANNELS,
    Run,
    after_encoding,
    before_encoding,
    digits,
    undigits,
)
from foveate.serve.vllm.processor import plan_field, read

_MARK = "_foveate_wraps"


class PlannedMRopeModel(PlannedModel):
    """Positions by the rule of foveate.serve.vllm.positions."""

    channels = CHANNELS

    def __init__(self, *, vllm_config: Any, prefix: str = "") -> None:
        super().__init__(vllm_config=vllm_config, prefix=prefix)
        if self._foveate is None:
            return
        # vLLM's runners ask for positions after encoding where both say so. The model itself was built
        # before, so that its own pruning stays off.
        self.supports_multimodal_pruning = True
        config: Any = vllm_config.model_config.multimodal_config
        object.__setattr__(config, "is_multimodal_pruning_enabled", _always)

    def _placed(
        self, rows: Tensor, anchors: np.ndarray, span: Span, plan: Plan, fields: Mapping[str, Any]
    ) -> Tensor:
        if plan.positions == "renumber":
            own = np.full((anchors.size, 3), -1)
        else:
            own = self.family.cells(self.config, span, fields)[anchors]
        channels = torch.as_tensor(digits(own), device=rows.device).to(rows.dtype)
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
            layout = self.family.layout(self.config, fields, int(part.sum()), modality)
            cells = [self.family.cells(self.config, s, fields) for s in layout.spans]
            runs += placed_runs(part, at.offset, layout.kept(plan), cells)
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
        if len(multimodal_embeddings):
            ids = torch.as_tensor(input_ids, device=positions.device)
            visual = torch.zeros_like(ids, dtype=torch.bool)
            for modality in self.family.modalities:
                visual |= ids == self.family.placeholder(self.config, modality)
            own = torch.cat([undigits(m[:, -CHANNELS:]) for m in multimodal_embeddings])
            positions = after_encoding(positions, visual, own, num_computed_tokens)
        delta = int(positions.max()) + 1 - int(positions.shape[1])
        return [m[:, :-CHANNELS] for m in multimodal_embeddings], positions, delta


def placed_runs(
    part: np.ndarray, offset: int, kept: Sequence[int], cells: Sequence[np.ndarray]
) -> list[Run]:
    """The runs of an item's placeholders, `part` (length,) bool from `offset` on, one a span."""
    spots = np.flatnonzero(part) + offset
    runs, seen = [], 0
    for k, own in zip(kept, cells, strict=True):
        first = int(spots[seen]) if seen < spots.size else offset
        t, h, w = (int(x) + 1 for x in own.max(axis=0))
        runs.append(Run(first, k, (t, h, w)))
        seen += k
    return runs


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
