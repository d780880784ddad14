"""One request of continuous batching between submit and its answer."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor

from foveate.core.errors import FoveateError, InputError
from foveate.engine.engine import Ready, Run
from foveate.engine.kv_cache import SequenceKV
from foveate.engine.language_pass import RowMeta
from foveate.engine.request import Answer, Request

OnToken = Callable[[str, int, str], None]
"""(id, token id, the text that it added), called in the thread that steps; it may submit and cancel.
A request whose function raises ends with an error, the others go on.
"""


class Prefix(NamedTuple):
    """The first `tokens` tokens of a prompt, named by `key`; `whole`: they are all of it."""

    key: str
    tokens: int
    whole: bool


@dataclass
class Job:
    """What is known of a request: `ready` until it is encoded, `run` and `meta` from then on,
    `sequence` while it holds KV; `ids` and `said` grow with the answer. `scores`: what the model's
    generation config does to logits, None if nothing.
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
    scores: Any = None

    @property
    def call(self) -> dict[str, Any]:
        """The shortened call of its prompt."""
        assert self.run is not None
        return self.run.short.kwargs

    @property
    def prompt(self) -> Tensor:
        """Its ids (1, n)."""
        found: Tensor = self.call["input_ids"]
        return found

    def places(self, start: int, stop: int) -> Tensor:
        """Positions (1, s) or (p, 1, s) of answer tokens start to stop."""
        prompt = self.call["position_ids"]
        steps = torch.arange(start + 1, stop + 1, device=prompt.device)
        found: Tensor = prompt[..., -1:] + steps
        return found

    def best(self, logits: Tensor) -> int:
        """The next token, of its logits (1, V)."""
        found = logits.float()
        if self.scores:
            said = self.prompt.new_tensor([self.ids])
            found = self.scores(torch.cat([self.prompt, said], 1), found)
        return int(found.argmax(-1))

    def tell(self, token: int, text: str, last: bool) -> InputError | None:
        """Hand a token to the caller's function, with what the answer's `text` has more than before. A
        character that is not whole yet waits for its next token. The error, if the function raises.
        """
        assert self.on_token is not None
        piece = "" if text.endswith("\ufffd") and not last else text[len(self.said) :]
        self.said += piece
        try:
            self.on_token(self.id, token, piece)
        except Exception as error:  # a caller's function may raise anything
            found = InputError(
                f"on_token of request {self.id!r} raised {type(error).__name__}: {error}"
            )
            found.__cause__ = error
            return found
        return None

    def ended(self, text: str, error: FoveateError) -> Answer:
        """The answer of a request that ends with an error; what it held is let go."""
        self.sequence = self.run = self.ready = None
        return Answer(text, tuple(self.ids), error=error, id=self.id)
