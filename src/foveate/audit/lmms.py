"""lmms-eval's tasks on our engine, under a plan: what its requests say, in the engine's words.

lmms-eval (0.7) finds out-of-tree models by the entry point group "lmms_eval.models"; ours is
`manifest`, and the model class is in lmms_model.py, which alone imports lmms-eval's model base:

    python -m lmms_eval --model foveate --model_args pretrained=DIR,plan=visionzip:keep=1/4 --tasks …

Nothing here imports lmms-eval but `manifest`, so that the translation can be tested without it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from foveate.core.errors import InputError, UnsupportedError
from foveate.engine.request import Request

NAME = "foveate"
MAX_NEW_TOKENS = 64
"""Where a task names no bound; the engine's own default."""
_PASSED = ("top_p", "top_k", "num_beams", "repetition_penalty")
_OTHERS = ("max_new_tokens", "temperature", "do_sample", "until")


def manifest() -> Any:
    """What lmms-eval registers: the name "foveate" and the class that chats."""
    from lmms_eval.models.registry_v2 import ModelManifest

    return ModelManifest(
        model_id=NAME, chat_class_path="foveate.audit.lmms_model.FoveateModel", aliases=()
    )


@dataclass(frozen=True)
class Generation:
    """How a task wants its answers. options: for the engine's `generate`; until: strings that end
    an answer; ignored: settings of other models that do not apply here.
    """

    max_new_tokens: int
    options: Mapping[str, Any]
    until: tuple[str, ...]
    ignored: tuple[str, ...]

    def cut(self, text: str) -> str:
        """The text before the first of `until`, without blanks around it."""
        ends = [at for at in (text.find(stop) for stop in self.until) if at >= 0]
        return text[: min(ends)].strip() if ends else text.strip()


def generation(settings: Mapping[str, Any]) -> Generation:
    """A task's generation_kwargs. Greedy unless `do_sample` is set or the temperature is above 0.

    InputError for a bound or temperature out of range.
    """
    limit = settings.get("max_new_tokens")
    limit = MAX_NEW_TOKENS if limit is None else limit
    if isinstance(limit, bool) or not isinstance(limit, int) or limit < 1:
        raise InputError(f"max_new_tokens = {limit!r} is out of range: a whole number from 1")
    temperature = settings.get("temperature") or 0.0
    if isinstance(temperature, bool) or not isinstance(temperature, int | float) or temperature < 0:
        raise InputError(f"temperature = {temperature!r} is out of range: 0 or more")
    wanted = settings.get("do_sample")
    # lmms-eval's tasks write both; a temperature of 0 is greedy whatever do_sample says.
    sampled = temperature > 0 if wanted is None or "temperature" in settings else bool(wanted)
    options: dict[str, Any] = {"do_sample": sampled}
    if sampled and temperature > 0:
        options["temperature"] = float(temperature)
    for name in _PASSED:
        value = settings.get(name)
        if value is not None and (sampled or name in ("num_beams", "repetition_penalty")):
            options[name] = value
    until = settings.get("until") or ()
    stops = (until,) if isinstance(until, str) else tuple(str(stop) for stop in until)
    ignored = tuple(sorted(set(settings) - {*_PASSED, *_OTHERS}))
    return Generation(limit, options, tuple(stop for stop in stops if stop), ignored)


def request_of(
    messages: Sequence[Mapping[str, Any]],
    *,
    system: str | None = None,
    pictures_first: bool = False,
) -> Request:
    """One chat of lmms-eval as a request: pictures and videos, then the words of the last turn.

    The engine puts pictures before the words. A message with words before a picture is refused,
    unless pictures_first says that this order may be changed; how the words name the pictures is
    then up to the task. Earlier turns are text. UnsupportedError says what else cannot be.
    """
    turns = [dict(message) for message in messages]
    if turns and turns[0].get("role") == "system":
        words = _words(turns.pop(0))
        system = words if system is None else f"{system}\n{words}"
    if not turns or turns[-1].get("role") != "user":
        raise UnsupportedError("a chat must end with a user's turn, which is what is answered")
    images: list[Any] = []
    videos: list[Any] = []
    texts: list[str] = []
    for part in _parts(turns.pop()):
        kind = part.get("type")
        if kind == "text":
            texts.append(str(part.get("text", "")))
            continue
        if texts and any(t.strip() for t in texts) and not pictures_first:
            raise UnsupportedError(
                "this task puts words before a picture, and the engine puts pictures first: add "
                "pictures_first=True to --model_args to allow that, and say so beside the figures"
            )
        if kind == "image":
            images.append(part["url"])
        elif kind == "video":
            if part.get("start_time") is not None or part.get("end_time") is not None:
                raise UnsupportedError("a part of a video by time is not supported: cut it first")
            videos.append(part["url"])
        else:
            raise UnsupportedError(f"content of type {kind!r} is not supported: image, video, text")
    history = [{"role": str(turn["role"]), "content": _words(turn)} for turn in turns]
    return Request(
        "\n".join(t for t in texts if t),
        images=images,
        videos=videos,
        system=system,
        history=history,
    )


def _parts(message: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    content = message.get("content", "")
    return [{"type": "text", "text": content}] if isinstance(content, str) else list(content)


def _words(message: Mapping[str, Any]) -> str:
    parts = _parts(message)
    if any(part.get("type") != "text" for part in parts):
        raise UnsupportedError(
            "pictures in an earlier turn (few-shot examples with pictures) are not supported: run "
            "the task with --num_fewshot 0"
        )
    return "\n".join(str(part.get("text", "")) for part in parts)
