"""What goes into the engine and what comes out of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from foveate.core.errors import FoveateError
from foveate.core.report import Report
from foveate.core.views import Grid


@dataclass(frozen=True)
class Request:
    """One question about any number of pictures and videos.

    images: paths, bytes, data URLs, PIL pictures or arrays; videos: paths, folders or lists of
    frames.
    history: earlier turns as {"role", "content"} messages of text, before this question.
    """

    question: str
    images: Sequence[Any] = ()
    videos: Sequence[Any] = ()
    system: str | None = None
    history: Sequence[Mapping[str, Any]] = ()
    id: str | None = None


@dataclass(frozen=True)
class KeptSegment:
    """Which tokens of a segment stayed: anchors (k,) index the grid (t, h, w) row by row.

    deep: the anchors of those that the deepest layer with visual tokens still has, where a method
    drops tokens inside the language model; None where none does.
    """

    image: int
    kind: str
    grid: Grid
    tokens: int
    anchors: np.ndarray
    deep: np.ndarray | None = None


@dataclass(frozen=True)
class Answer:
    """A request's answer and record, or the error that kept it from one; the other requests still
    run.
    """

    text: str
    token_ids: tuple[int, ...] = ()
    report: Report | None = None
    kept: tuple[KeptSegment, ...] = ()
    pictures: tuple[Any, ...] = ()
    notes: tuple[str, ...] = ()
    error: FoveateError | None = None
    id: str | None = None

    @property
    def ok(self) -> bool:
        return self.error is None


@dataclass
class Prepared:
    """A request whose media were read: PIL pictures, videos, chat text, notes of what was done on
    the way.
    """

    request: Request
    pictures: list[Any]
    videos: list[Any]
    text: str
    notes: list[str] = field(default_factory=list)
