"""A vision-language model that answers the lab's samples, through the engine."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from PIL import Image

from foveate.core.errors import InputError
from foveate.core.plan import Plan
from foveate.engine.engine import Engine
from foveate.engine.prompt import chat_text
from foveate.engine.request import Answer, Request

from .evaluate import MAX_NEW_TOKENS
from .nano import check_model
from .tasks import Sample

Pictures = Image.Image | Sequence[Image.Image]
"""The picture or the pictures of one question."""

Generate = Callable[[Sequence[Sequence[Image.Image]], Sequence[str]], list[str]]
"""What the evaluator drives: one answer for the pictures and the words of each question."""


def request_of(sample: Sample) -> Request:
    """A sample as the engine takes it; several pictures stay in order."""
    return Request(sample.question, images=list(sample.images))


def ask(
    engine: Engine,
    tested: Sequence[Sample],
    plan: str | Plan | None = None,
    *,
    batch_size: int = 16,
    max_new_tokens: int = MAX_NEW_TOKENS,
    progress: Callable[[int], None] | None = None,
) -> list[Answer]:
    """The engine's greedy answers to samples, in order; an answer may carry an error of its own.

    `batch_size` counts pictures: samples of several pictures run in smaller batches.
    """
    most = max((len(sample.images) for sample in tested), default=1)
    return engine.generate(
        [request_of(sample) for sample in tested],
        plan,
        batch_size=max(1, batch_size // most),
        max_new_tokens=max_new_tokens,
        progress=progress,
    )


class Reader:
    """A local model folder, asked greedily in batches. Calling it is a `Generate`.

    Errors: CheckpointError for a folder that is missing something or cut short, UnsupportedError
    for a model that takes no pictures.
    """

    def __init__(self, folder: Path, batch: int = 25) -> None:
        if batch < 1:
            raise InputError(f"batch must be 1 or more, got {batch}")
        check_model(folder)
        self.engine = Engine.from_pretrained(folder)
        self.model = self.engine.model
        self.processor = self.engine.processor
        self.device = self.model.device
        self.batch = batch

    def prompt(self, question: str, pictures: int = 1) -> str:
        """The chat prompt of one question about a number of pictures."""
        return chat_text(self.processor, Request(question), pictures, 0)

    def __call__(self, images: Sequence[Pictures], questions: Sequence[str]) -> list[str]:
        if len(images) != len(questions):
            raise InputError(
                f"{len(images)} pictures for {len(questions)} questions: there must be one for each"
            )
        requests = [
            Request(question, images=[shown] if isinstance(shown, Image.Image) else list(shown))
            for shown, question in zip(images, questions, strict=True)
        ]
        answers = self.engine.generate(
            requests, batch_size=self.batch, max_new_tokens=MAX_NEW_TOKENS
        )
        for answer in answers:
            if answer.error is not None:
                raise answer.error
        return [answer.text for answer in answers]
