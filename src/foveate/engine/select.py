"""Ask a plan's token method for one request's reductions, and hold the answer to its contract."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from foveate.core.budget import Counts, resolve
from foveate.core.errors import PlanError, UnsupportedError
from foveate.core.method import TokenMethod
from foveate.core.plan import Plan
from foveate.core.rng import PlanRng
from foveate.core.views import Question, Reduction, Segment
from foveate.models.adapter import AutoAdapter

TextTower = Callable[[list[int]], Any]  # token ids of the question -> its embedding (e,) or (s, e)
_ENCODER = {"features", "cls", "received", "saliency", "keys", "query"}


def counts_of(method: TokenMethod, segments: Sequence[Segment]) -> Counts:
    """Tokens to keep, resolved once: by image, then segment; a method's floor applies to a segment
    it keeps.
    """
    images: dict[int, list[int]] = {}
    for i, s in enumerate(segments):
        images.setdefault(s.image, []).append(i)
    order = [i for members in images.values() for i in members]
    sizes = [[segments[i].n for i in members] for members in images.values()]
    counts = resolve(method.budget, sizes, exact=method.counts == "image")
    parts = [0] * len(segments)
    for i, k in zip(order, counts.per_segment, strict=True):
        floored = method.count(segments[i].grid, k) if 0 < k < segments[i].n else k
        parts[i] = min(segments[i].n, floored)
    return replace(counts, per_segment=tuple(parts), total=sum(parts))


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
    whole = [Reduction.pick(range(s.n), s.n) for s in segments]
    if method is None or not any(s.n for s in segments):
        return whole
    check_needs(method, segments, adapter)
    if method.video_only and not any(s.grid[0] > 1 for s in segments):
        raise UnsupportedError(
            f"{method.name} compares the frames of a video, and this request has none; for pictures "
            "choose a method such as divprune"
        )
    counts = counts_of(method, segments)
    if counts.total >= sum(s.n for s in segments) and method.counts != "adaptive":
        return whole
    answers: list[Reduction] = method.select(segments, counts, question, PlanRng(plan.seed))
    _check(method, segments, counts, answers)
    return answers


def _check(
    method: TokenMethod, segments: Sequence[Segment], counts: Counts, answers: Sequence[Reduction]
) -> None:
    if len(answers) != len(segments):
        raise PlanError(
            f"{method.name} answered {len(answers)} reductions for {len(segments)} segments"
        )
    kept: dict[int, int] = {}
    for i, (segment, answer) in enumerate(zip(segments, answers, strict=True)):
        special = segment.encoder.special if segment.encoder is not None else None
        specials = int(special.shape[0]) if special is not None and answer.space == "encoder" else 0
        if answer.n != segment.n:
            raise PlanError(f"{method.name}: segment {i} has {segment.n} tokens, not {answer.n}")
        answer.check(specials)
        if answer.space == "encoder" and (segment.encoder is None or not segment.encoder.tokenwise):
            raise PlanError(
                f"{method.name} answered in encoder space where tokens are not mapped singly"
            )
        if answer.space not in ("projected", "encoder"):
            raise PlanError(f"{method.name} answered in space {answer.space!r} at the token stage")
        if method.counts == "image" and answer.k != counts.per_segment[i]:
            raise PlanError(
                f"{method.name} kept {answer.k} tokens of segment {i}; "
                f"its budget says {counts.per_segment[i]}"
            )
        kept[segment.image] = kept.get(segment.image, 0) + answer.k
    if method.counts == "request" and sum(kept.values()) != counts.total:
        raise PlanError(
            f"{method.name} kept {sum(kept.values())} tokens; its budget says {counts.total}"
        )
    empty = [i for i, k in kept.items() if k == 0]
    if empty:
        raise PlanError(f"{method.name} kept no token of image {empty[0]}; at least one is needed")
