"""One request of continuous batching between submit and its answer."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from foveate.engine.engine import Ready, Run
from foveate.engine.kv_cache import SequenceKV
from foveate.engine.language_pass import RowMeta
from foveate.engine.request import Request

OnToken = Callable[[str, int, str], None]
"""(id, token id, the text that it added), called in the thread that steps."""


class Prefix(NamedTuple):
    """The first `tokens` tokens of a prompt, named by `key`; `whole`: they are all of it."""

    key: str
    tokens: int
    whole: bool


@dataclass
class Job:
    """What is known of a request: `ready` until it is encoded, `run` and `meta` from then on,
    `sequence` while it holds KV; `ids` and `said` grow with the answer.
    """

    id: str
    request: Request
    ready: Ready | None
    max_new_tokens: int
    on_token: OnToken | None
    run: Run | None = None
    meta: RowMeta | None = None
    sequence: SequenceKV | None = None
    ids: list[int] = field(default_factory=list)
    said: str = ""
    start_s: float = 0.0
    first_s: float | None = None
    prefix: Prefix | None = None  # what it may share with others
    notes: tuple[str, ...] = ()

    @property
    def call(self) -> dict[str, Any]:
        """The shortened call of its prompt."""
        assert self.run is not None
        return self.run.short.kwargs
