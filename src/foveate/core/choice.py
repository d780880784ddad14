"""Ask a token method for one request's reductions, and hold its answer to the contract: what every
door does alike, whatever engine it serves.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from foveate.core.budget import Counts, resolve
from foveate.core.errors import PlanError, UnsupportedError
from foveate.core.method import TokenMethod
from foveate.core.rng import PlanRng
from foveate.core.views import Grid, Question, Reduction, Segment


def counts_of(method: TokenMethod, segments: Sequence[Segment]) -> Counts:
    """Tokens to keep of a request's segments, see `counts_for`."""
    return counts_for(method, [(s.image, s.grid, s.n) for s in segments])


def counts_for(method: TokenMethod, sizes: Sequence[tuple[int, Grid, int]]) -> Counts:
    """Tokens to keep, resolved once: by image, then segment; a method's floor applies to a segment
    it keeps. `sizes`: image, grid and tokens (fixed ones left out) of each segment.
    """
    images: dict[int, list[int]] = {}
    for i, (image, _, _) in enumerate(sizes):
        images.setdefault(image, []).append(i)
    order = [i for members in images.values() for i in members]
    tokens = [[sizes[i][2] for i in members] for members in images.values()]
    counts = resolve(method.budget, tokens, exact=method.counts == "image")
    parts = [0] * len(sizes)
    for i, k in zip(order, counts.per_segment, strict=True):
        _, grid, n = sizes[i]
        floored = method.count(grid, k) if 0 < k < n else k
        parts[i] = min(n, floored)
    return replace(counts, per_segment=tuple(parts), total=sum(parts))


def choose(
    method: TokenMethod | None, segments: list[Segment], question: Question | None, seed: int
) -> list[Reduction]:
    """One checked Reduction a segment; segments without tokens, and no method, pass whole.

    UnsupportedError for a method that compares frames where there are none, PlanError where the
    method's answer breaks its contract.
    """
    whole = [Reduction.pick(range(s.n), s.n) for s in segments]
    if method is None or not any(s.n for s in segments):
        return whole
    if method.video_only and not any(s.grid[0] > 1 for s in segments):
        raise UnsupportedError(
            f"{method.name} compares the frames of a video, and this request has none; for pictures "
            "choose a method such as divprune"
        )
    counts = counts_of(method, segments)
    if counts.total >= sum(s.n for s in segments) and method.counts != "adaptive":
        return whole
    answers: list[Reduction] = method.select(segments, counts, question, PlanRng(seed))
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
