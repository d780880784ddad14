"""Requests of the command line and their answers, with all tokens and with a plan."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from foveate.cli import console, options
from foveate.cli.sources import Item
from foveate.core.errors import CheckpointError, InputError, SettingError, UnsupportedError
from foveate.core.language import GuidedMethod
from foveate.core.plan import Plan

if TYPE_CHECKING:
    from foveate.engine.engine import Engine
    from foveate.engine.request import Answer, Request


@dataclass(frozen=True)
class Task:
    """One request of this command: what it is called, and what it looks at."""

    items: tuple[Item, ...]

    @property
    def source(self) -> str | list[str]:
        names = [i.label for i in self.items]
        return names[0] if len(names) == 1 else names

    @property
    def title(self) -> str:
        return ", ".join(Path(i.label).name or i.label for i in self.items) or "no picture"

    def request(self, question: str, system: str | None, history: Sequence[Any] = ()) -> Request:
        from foveate.engine.request import Request

        return Request(
            question,
            images=[i.source for i in self.items if not i.video],
            videos=[i.source for i in self.items if i.video],
            system=system,
            history=history,
        )


@dataclass(frozen=True)
class Asked:
    """How answers are wanted."""

    plan: Plan
    compare: bool = False
    max_new_tokens: int = options.MAX_NEW_TOKENS
    batch_size: int = 8
    warm_up: bool = True

    @property
    def wants_full(self) -> bool:
        return self.compare or self.plan.is_identity

    @property
    def wants_plan(self) -> bool:
        return self.compare or not self.plan.is_identity


# What a plan is refused with on one model: a layer that it does not have, weights of another model.
UNABLE = (UnsupportedError, SettingError, CheckpointError)
Pair = tuple["Answer | None", "Answer | None"]


def follows_guide(plan: Plan) -> bool:
    """Whether a plan follows a small sibling of the model."""
    return isinstance(plan.stage("prefill"), GuidedMethod)


def check_guide(plans: Sequence[Plan], guide: str | None) -> None:
    """InputError for a guide that no plan follows, before any model is loaded."""
    if guide is not None and not any(map(follows_guide, plans)):
        named = ", ".join(str(p) for p in plans)
        raise InputError(f"--guide is for plans that follow one, such as sgl:keep=1/2; not {named}")


def answer_all(
    engine: Engine, requests: list[Request], asked: Asked, *, stream: bool = False
) -> list[Pair]:
    """(answer with all tokens, answer with the plan) of each request; None for a run not asked for."""
    wanted = [p for p, w in ((Plan(), asked.wants_full), (asked.plan, asked.wants_plan)) if w]
    if asked.compare and asked.warm_up:
        with console.working("warming up"):
            for plan in wanted:
                engine.generate(requests[:1], plan, max_new_tokens=1)
    found: list[list[Answer]] = []
    with console.counted("answering", len(requests) * len(wanted)) as done:
        for plan in wanted:
            found.append(
                engine.generate(
                    requests,
                    plan,
                    max_new_tokens=asked.max_new_tokens,
                    batch_size=asked.batch_size,
                    streamer=_streamer(engine) if stream else None,
                    progress=done,
                )
            )
    if asked.compare:
        return list(zip(found[0], found[1], strict=True))
    if asked.wants_full:
        return [(a, None) for a in found[0]]
    return [(None, a) for a in found[0]]


def _streamer(engine: Engine) -> Any:
    from transformers import TextStreamer

    class Safe(TextStreamer):
        def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
            print(console.plain(text), flush=True, end="\n" if stream_end else "")

    return Safe(engine.processor.tokenizer, skip_prompt=True, skip_special_tokens=True)


def pictures_of(engine: Engine, task: Task, plan: Plan, answer: Answer) -> list[Any]:
    """Drawn pictures of one answer; video frames are read once more, the same ones.

    UnsupportedError where tokens have no place in the picture, or a plan dropped tiles or frames, whose
    places an answer does not record.
    """
    from PIL import Image

    from foveate.engine.sheet import answer_pictures
    from foveate.models.video import load_video

    method: Any = plan.stage("pixels")
    acts = getattr(method, "acts", None)
    parted = acts == "tiles" and any(s.kind == "tile" for s in answer.kept)
    if parted or (acts == "frames" and any(i.video for i in task.items)):
        raise UnsupportedError(
            f"{method.name} leaves out {acts}, and an answer does not record which: draw "
            "a plan without it"
        )
    videos = [
        [Image.fromarray(f) for f in load_video(i.source, max_frames=engine.max_frames).frames]
        for i in task.items
        if i.video
    ]
    return answer_pictures(answer, getattr(engine.processor, "image_processor", None), videos)


def heading(engine: Engine, plan: Plan) -> dict[str, str]:
    """Model and plan of a JSON result; the hash is that of the plan as this model resolves it."""
    resolved = plan.resolved(mrope=engine.adapter.mrope)
    return {"model": engine.name, "plan": str(plan), "plan_hash": resolved.hash}
