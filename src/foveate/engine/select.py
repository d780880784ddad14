"""Ask a plan's token method for one request's reductions, and hold the answer to its contract."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from foveate.core.choice import choose
from foveate.core.errors import UnsupportedError
from foveate.core.method import TokenMethod
from foveate.core.plan import Plan
from foveate.core.views import Question, Reduction, Segment
from foveate.models.adapter import AutoAdapter

TextTower = Callable[[list[int]], Any]  # token ids of the question -> its embedding (e,) or (s, e)
_ENCODER = {"features", "cls", "received", "saliency", "keys", "query"}


def check_needs(method: TokenMethod, segments: Sequence[Segment], adapter: AutoAdapter) -> None:
    """UnsupportedError if this family cannot show what the method reads."""
    for need in method.needs:
        if need.what not in _ENCODER:
            continue
        for s in segments:
            view = s.encoder
            ok = view is not None and (
                need.layer in view.hidden if need.what == "features" else need.layer in view.at
            )
            if ok and need.what == "cls" and view is not None:
                ok = view.at[need.layer].cls is not None
            if not ok:
                raise UnsupportedError(
                    f"{method.name} reads encoder {need.what} of block {need.layer}, which "
                    f"{adapter.model_type} does not give for a segment of kind {s.kind!r}; choose a "
                    "method that reads projected features alone, such as divprune or uniform "
                    "(`foveate list` shows what each method needs)"
                )


def question_of(
    adapter: AutoAdapter,
    method: TokenMethod,
    ids: Tensor,
    last_visual: int,
    special: frozenset[int],
    text_tower: TextTower | None = None,
) -> Question | None:
    """The words after the last picture (or all words, if none follow), special tokens left out.

    ids (S,) of one row without padding. None unless the method asks for the question.
    """
    if not any(n.what in ("question", "clip") for n in method.needs):
        return None
    wants_clip = any(n.what == "clip" for n in method.needs)
    if wants_clip and text_tower is None:
        raise UnsupportedError(
            f"{method.name} needs a text tower that shares a space with the vision tower; give one "
            "as text_tower= to attach or Engine (--text-tower on the command line), or choose the "
            "variant that reads the language model"
        )
    visual = {adapter.token_id("image"), adapter.token_id("video")}
    host = ids.tolist()
    after = [i for i, x in enumerate(host) if i > last_visual and x not in visual | special]
    chosen = after or [i for i, x in enumerate(host) if x not in visual | special]
    words = ids[torch.as_tensor(chosen, dtype=torch.long, device=ids.device)]
    embeddings = adapter.model.get_input_embeddings()(words)
    clip = text_tower(words.tolist()) if wants_clip and text_tower is not None else None
    return Question(turn=-1, ids=words, embeddings=embeddings, clip=clip)


def in_joint_space(
    method: TokenMethod | None, segments: list[Segment], text_tower: TextTower | None
) -> list[Segment]:
    """The segments with their encoder tokens in the text tower's space, if the method asks for it.

    A tower without `patches` answers in the width of the encoder's features, which are then the space.
    """
    layer = next((n.layer for n in method.needs if n.what == "clip"), None) if method else None
    if layer is None or text_tower is None:
        return segments
    patches = getattr(text_tower, "patches", None)
    out = []
    for s in segments:
        hidden = s.encoder.hidden.get(layer) if s.encoder is not None else None
        if s.encoder is not None and hidden is not None:
            joint = hidden if patches is None else patches(hidden)
            s = replace(s, encoder=replace(s.encoder, joint=joint))
        out.append(s)
    return out


def reduce_request(
    plan: Plan,
    adapter: AutoAdapter,
    segments: list[Segment],
    question: Question | None,
) -> list[Reduction]:
    """One checked Reduction a segment; segments without tokens and plans without a token method
    pass whole.
    """
    method = plan.stage("tokens")
    if method is not None and any(s.n for s in segments):
        check_needs(method, segments, adapter)
    return choose(method, segments, question, plan.seed)
