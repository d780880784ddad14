"""Three corner methods for the engine matrix: a pick, a merge, an adaptive count. Not registered."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from foveate.core import Counts, Question, Reduction, Segment, TokenMethod


def _features(segment: Segment) -> np.ndarray:
    return np.asarray(segment.features.detach().float().cpu())


@dataclass(frozen=True)
class CornerPick(TokenMethod):
    """Keeps the k tokens of largest norm."""

    name: ClassVar[str] = "corner-pick"
    summary: ClassVar[str] = "test: pick by norm"

    def select(self, segments, counts: Counts, question: Question | None, rng):  # type: ignore[no-untyped-def]
        out = []
        for s, k in zip(segments, counts.per_segment, strict=True):
            order = np.argsort(-np.linalg.norm(_features(s), axis=1), kind="stable")
            out.append(Reduction.pick(order[:k], s.n))
        return out


@dataclass(frozen=True)
class CornerMerge(TokenMethod):
    """Splits the tokens into k runs and averages each with unequal weights; the anchor is the run's
    last token.
    """

    name: ClassVar[str] = "corner-merge"
    summary: ClassVar[str] = "test: merge runs"

    def select(self, segments, counts: Counts, question: Question | None, rng):  # type: ignore[no-untyped-def]
        out = []
        for s, k in zip(segments, counts.per_segment, strict=True):
            if k == 0:
                out.append(Reduction.pick([], s.n))
                continue
            runs = np.array_split(np.arange(s.n), k)
            rows = np.concatenate([np.full(len(r), i) for i, r in enumerate(runs)])
            weights = np.concatenate(
                [np.arange(1, len(r) + 1) / np.arange(1, len(r) + 1).sum() for r in runs]
            )
            out.append(Reduction.of([r[-1] for r in runs], rows, np.arange(s.n), weights, s.n))
        return out


@dataclass(frozen=True)
class CornerAdaptive(TokenMethod):
    """Keeps tokens above the segment's mean norm, whatever the budget says."""

    name: ClassVar[str] = "corner-adaptive"
    summary: ClassVar[str] = "test: adaptive count"
    counts = "adaptive"

    def select(self, segments, counts: Counts, question: Question | None, rng):  # type: ignore[no-untyped-def]
        out = []
        for s in segments:
            norm = np.linalg.norm(_features(s), axis=1)
            keep = np.flatnonzero(norm >= np.quantile(norm, 0.4))
            out.append(Reduction.pick(keep, s.n))
        return out


CORNERS = {"pick": CornerPick, "merge": CornerMerge, "adaptive": CornerAdaptive}
