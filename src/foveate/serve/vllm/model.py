"""The model side: what the plan keeps of each picture, as `embed_multimodal` hands it to vLLM."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from foveate.core import arrays
from foveate.core.choice import choose
from foveate.core.errors import FoveateError, StateError
from foveate.core.plan import Plan
from foveate.core.views import EncoderView, Need, Question, Reduction, Segment
from foveate.serve.vllm.families import Family
from foveate.serve.vllm.layouts import Layout, Span
from foveate.serve.vllm.plan_source import Serving
from foveate.serve.vllm.processor import MODALITIES, plan_field, read, words_field
from foveate.serve.vllm.startup import serving_of
from foveate.serve.vllm.tower import ENCODER, Reading

_log = logging.getLogger("foveate")


class PlannedModel:
    """Stands before vLLM's model class in the order of resolution; without a plan at start-up it
    passes everything on. What `super()` and the inherited names give is vLLM's, hence the ignores.
    """

    family: ClassVar[Family]
    config: Any

    def __init__(self, *, vllm_config: Any, prefix: str = "") -> None:
        super().__init__(vllm_config=vllm_config, prefix=prefix)  # type: ignore[call-arg]
        self._foveate: Serving | None = serving_of(vllm_config.model_config)
        if self._foveate is None:
            return
        self._tower = self.family.tower_of(self, vllm_config.model_config.hf_config)
        self._tower.check(needs_of(self._foveate.served()))

    # --- encode ---------------------------------------------------------------------------------
    def embed_multimodal(self, **kwargs: Any) -> Any:
        """One tensor (kept, width) a picture or video; with M-RoPE the last columns hold positions."""
        if self._foveate is None:
            return super().embed_multimodal(**kwargs)  # type: ignore[misc]
        found = {m: kwargs.pop(plan_field(m), None) for m in MODALITIES}
        given = {m: texts for m, texts in found.items() if texts is not None}
        items = max((len(texts) for texts in given.values()), default=0)
        fields = [item_fields(kwargs, i) for i in range(items)]
        for m in MODALITIES:
            kwargs.pop(words_field(m), None)
        if len(given) != 1:
            raise StateError(
                f"a batch of pictures or videos came with {len(given)} lists of plans, not one: this "
                "version of vLLM does not hand on what the processor adds"
            )
        ((modality, texts),) = given.items()
        orders = [read(t) for t in texts]
        plans = [self._foveate.served(text) for text, _ in orders]
        questions = [self._question(ids) for _, ids in orders]
        needs = frozenset(n for p in plans for n in needs_of(p))
        self._tower.check(needs)
        with self._tower.reading(needs) as reading:
            out = super().embed_multimodal(**kwargs)  # type: ignore[misc]
        layouts = [
            self.family.layout(self.config, fields[i], int(f.shape[0]), modality)
            for i, f in enumerate(out)
        ]
        start = (0, 0)
        kept = []
        for i, (features, plan, layout) in enumerate(zip(out, plans, layouts, strict=True)):
            try:
                rows = self._keep(features, plan, layout, reading, start, fields[i], questions[i])
            except FoveateError as error:
                # Raising here would end the requests of everybody. What a request can cause is refused
                # before; what is left are features that are not finite, which vLLM would hand on.
                _log.error("plan %s: %s; requests about this item end with an error", plan, error)
                rows = self._void(features, plan, layout, fields[i])
            kept.append(rows)
            start = (start[0] + layout.encoder_tokens, start[1] + layout.passes)
        return tuple(kept)

    def _keep(
        self,
        features: Tensor,
        plan: Plan,
        layout: Layout,
        reading: Reading,
        start: tuple[int, int],
        fields: Mapping[str, Any],
        question: Question | None,
    ) -> Tensor:
        """(kept, width) of one picture's features (n, width), in the order of the placeholders."""
        width = self.family.width(self.config)
        needs = needs_of(plan)
        segments, bodies, begin = [], [], 0
        order = self.family.order(self, layout)
        for ordinal, span in enumerate(layout.spans):
            body = features[begin : begin + span.length]
            begin += span.length
            bodies.append(body)
            view = None
            if needs:
                view = self._tower.view(reading, span, needs, start, order, self.family.tokenwise)
            segments.append(
                Segment(
                    image=span.image,
                    ordinal=ordinal,
                    kind=span.kind,
                    grid=span.grid,
                    features=taken(body[:, :width], span.free if span.fixed is not None else None),
                    encoder=view,
                )
            )
        method = plan.stage("tokens")
        if method is not None and method.video_only and not any(s.grid[0] > 1 for s in segments):
            method = None  # beside videos, pictures stay whole
        reductions = choose(method, segments, question, plan.seed)
        parts = []
        for body, span, segment, reduction in zip(
            bodies, layout.spans, segments, reductions, strict=True
        ):
            rows, anchors = self._rows(body, span, segment, reduction, width)
            parts.append(self._placed(rows, anchors, span, plan, fields))
        return torch.cat(parts)

    def _question(self, ids: tuple[int, ...]) -> Question | None:
        """The words that a method which reads the question sees; None where no ids were sent."""
        if not ids:
            return None
        device = next(self.parameters()).device  # type: ignore[attr-defined]
        words = torch.tensor(ids, device=device)
        language: Any = self.get_language_model()  # type: ignore[attr-defined]
        return Question(turn=-1, ids=words, embeddings=language.embed_input_ids(words))

    def _void(
        self, features: Tensor, plan: Plan, layout: Layout, fields: Mapping[str, Any]
    ) -> Tensor:
        """NaN in the place of tokens that cannot be chosen."""
        parts = []
        for span, k in zip(layout.spans, layout.kept(plan), strict=True):
            rows = features.new_full((k, int(features.shape[1])), torch.nan)
            parts.append(self._placed(rows, np.arange(k), span, plan, fields))
        return torch.cat(parts)

    def _placed(
        self, rows: Tensor, anchors: np.ndarray, span: Span, plan: Plan, fields: Mapping[str, Any]
    ) -> Tensor:
        """Rows (k, width) with what vLLM needs to know of their places, and the words that stand between
        a video's frames; nothing of both with 1-D positions.
        """
        return rows

    def _rows(
        self, body: Tensor, span: Span, segment: Segment, reduction: Reduction, width: int
    ) -> tuple[Tensor, np.ndarray]:
        """Kept rows of one span and their anchors: reduced features, what goes with the anchors
        (DeepStack), and fixed tokens in their places.
        """
        view = segment.encoder
        if reduction.space == "encoder" and not reduction.is_identity and view is not None:
            chosen = self._projected(reduction, view)
        else:
            chosen = arrays.apply(reduction, segment.features)
        anchors = span.free[reduction.anchor]
        if body.shape[1] > width:
            rest = taken(body[:, width:], anchors)
            chosen = torch.cat([chosen.to(rest.dtype), rest], 1)
        if span.fixed is not None:
            ends = np.flatnonzero(span.fixed)
            spots = np.searchsorted(anchors, ends)
            picks = np.insert(np.arange(anchors.size), spots, anchors.size + np.arange(ends.size))
            chosen = taken(torch.cat([chosen.to(body.dtype), taken(body, ends)]), picks)
            anchors = np.insert(anchors, spots, ends)
        return chosen.to(body.dtype), anchors

    def _projected(self, reduction: Reduction, view: EncoderView) -> Tensor:
        """Encoder tokens merged and projected afterwards, for projectors that act token by token."""
        tokens: Any = view.features
        group = view.group.cpu().numpy()
        there = np.flatnonzero(group >= 0)
        order = np.empty_like(there)
        order[group[there]] = there
        merged = arrays.apply(reduction, taken(tokens, order), view.special)
        return self.family.project(self, merged)


def needs_of(plan: Plan) -> frozenset[Need]:
    """What the plan's method reads of the encoder."""
    method = plan.stage("tokens")
    if method is None:
        return frozenset()
    return frozenset(n for n in method.needs if n.what in ENCODER)


def taken(x: Tensor, index: np.ndarray | None) -> Tensor:
    """Rows of x; all of them where the index is None."""
    if index is None:
        return x
    return x[torch.as_tensor(index, device=x.device)]


def item_fields(kwargs: Mapping[str, Any], i: int) -> dict[str, Any]:
    """The i-th item's part of each input that holds one row an item, as layouts read them. Inputs that
    are laid end to end (patches, tiles) or shared by all items are not for layouts to read.
    """
    return {
        name: value[i]
        for name, value in kwargs.items()
        if isinstance(value, list | tuple | Tensor)
        and getattr(value, "ndim", 1) > 0
        and i < len(value)
    }
