"""The chat text of a request: the model's own template, with a guard against placeholders typed by
a user.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from foveate.core.errors import InputError
from foveate.engine.request import Request

_NAMES = (
    "image_token",
    "video_token",
    "boi_token",
    "eoi_token",
    "vision_start_token",
    "vision_end_token",
)


def reserved(processor: Any) -> set[str]:
    """Strings that stand for pictures in a prompt and must not occur in a user's words."""
    found = {getattr(processor, n, None) for n in _NAMES}
    found |= {getattr(getattr(processor, "tokenizer", None), n, None) for n in _NAMES}
    return {str(x) for x in found if isinstance(x, str) and x}


def check_words(processor: Any, request: Request) -> None:
    """InputError if the user's own text holds a placeholder, or there is nothing to answer."""
    for name in ("images", "videos"):
        given = getattr(request, name)
        if isinstance(given, (str, bytes)) or not isinstance(given, Sequence):
            raise InputError(
                f"{name}: give a list, also for a single one; got {type(given).__name__}"
            )
    if not isinstance(request.system, (str, type(None))):
        raise InputError("system: give text")
    texts = [request.question, request.system or ""]
    for message in request.history:
        if not isinstance(message, Mapping):
            raise InputError('history: give messages such as {"role": "user", "content": "..."}')
        content = message.get("content", "")
        if message.get("role") not in ("user", "assistant", "system") or not isinstance(
            content, str
        ):
            raise InputError(
                "history: each message needs a role (user, assistant, system) and content as text"
            )
        texts.append(content)
    if not isinstance(request.question, str) or not request.question.strip():
        raise InputError("the question is empty; say what is to be answered")
    for token in reserved(processor):
        if any(token in t for t in texts):
            raise InputError(
                f"the text contains {token!r}, which this model reads as a picture; pictures belong "
                "in `images`, the text must not name the placeholder"
            )


def chat_text(processor: Any, request: Request, images: int, videos: int) -> str:
    """Prompt text with one placeholder a picture; a model without chat template gets a plain
    prompt.
    """
    template = getattr(processor, "chat_template", None)
    template = template or getattr(getattr(processor, "tokenizer", None), "chat_template", None)
    content: list[dict[str, str]] = [{"type": "image"}] * images + [{"type": "video"}] * videos
    if not template:
        marks = [getattr(processor, "image_token", "<image>")] * images
        marks += [getattr(processor, "video_token", "<video>")] * videos
        lines = [request.system, *(m["content"] for m in request.history), *marks, request.question]
        return "\n".join(x for x in lines if x)
    messages: list[dict[str, Any]] = []
    if request.system:
        messages.append({"role": "system", "content": [{"type": "text", "text": request.system}]})
    for message in request.history:
        text = [{"type": "text", "text": message["content"]}]
        messages.append({"role": message["role"], "content": text})
    content = [*content, {"type": "text", "text": request.question}]
    messages.append({"role": "user", "content": content})
    try:
        out: str = processor.apply_chat_template(
            messages, add_generation_prompt=True, tokenize=False
        )
    except Exception as error:  # templates raise jinja's errors, and those of their own words
        raise InputError(f"the model's chat template refuses this conversation: {error}") from None
    return out
