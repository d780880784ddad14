"""What comes back from a chat endpoint: server-sent events, pieces of text, usage. No sockets here.

Of the event stream format (WHATWG HTML, server-sent events) this reads what the API uses: `data`
lines, joined by newlines, ended by an empty line; comments and other fields are passed over.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from foveate.audit.records import ErrorKind, Observed

MAX_ANSWER_BYTES = 256 << 20
"""Ten times what a hundred thousand tokens take; a stream without end would fill the memory."""


class AnswerError(Exception):
    """The answer is no answer. kind: as in Observed.error."""

    def __init__(self, kind: ErrorKind, detail: str) -> None:
        super().__init__(detail)
        self.kind: ErrorKind = kind


def check_size(read_bytes: int) -> None:
    """AnswerError if an answer is longer than any honest one."""
    if read_bytes > MAX_ANSWER_BYTES:
        raise AnswerError("protocol", f"an answer of more than {MAX_ANSWER_BYTES} bytes")


class EventReader:
    """Cuts a stream of bytes into the data of its events."""

    def __init__(self) -> None:
        self._rest = b""
        self._data: list[bytes] = []
        self._read_bytes = 0

    def feed(self, chunk: bytes) -> Iterator[bytes]:
        """The events that `chunk` completes. AnswerError if the stream has no end."""
        self._read_bytes += len(chunk)
        check_size(self._read_bytes)
        lines = (self._rest + chunk if self._rest else chunk).split(b"\n")
        self._rest = lines.pop()
        for line in lines:
            if line.startswith(b"data:"):
                self._data.append(line[5:].strip())
            elif self._data and line in (b"", b"\r"):
                data = b"\n".join(self._data) if len(self._data) > 1 else self._data[0]
                self._data.clear()
                yield data


@dataclass
class Answer:
    """One answer as it comes. `event` takes the data of an event, `whole` an answer in one piece."""

    sent_s: float
    first_s: float | None = None
    chunk_s: list[float] = field(default_factory=list)
    text: list[str] = field(default_factory=list)
    model: str | None = None
    finish: str | None = None
    done: bool = False
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    visual_tokens: int | None = None
    kv_bytes: int | None = None

    def event(self, data: bytes, now_s: float) -> None:
        """AnswerError if it is not what the API promises, or reports an error itself."""
        if data == b"[DONE]":
            self.done = True
            return
        found = _object(data)
        for choice in self._head(found):
            delta = choice.get("delta")
            if not isinstance(delta, dict):
                raise AnswerError("protocol", f"a choice without delta: {_short(data)}")
            piece = delta.get("content")
            # What a model thinks before it answers is tokens, though no text of the answer.
            if piece or delta.get("reasoning_content") or delta.get("reasoning"):
                if self.first_s is None:
                    self.first_s = now_s
                self.chunk_s.append(now_s)
            self._text(piece, choice)

    def whole(self, data: bytes) -> None:
        """An answer that was not streamed: it has text and usage, and no time of a first token."""
        for choice in self._head(_object(data)):
            message = choice.get("message")
            if not isinstance(message, dict):
                raise AnswerError("protocol", f"a choice without message: {_short(data)}")
            self._text(message.get("content"), choice)
            self.done = True
        if not self.done:
            raise AnswerError("protocol", f"an answer without choices: {_short(data)}")

    def observed(self, done_s: float, error: ErrorKind | None = None, detail: str = "") -> Observed:
        """What was seen, with an error or without."""
        return Observed(
            sent_s=self.sent_s,
            done_s=done_s,
            first_s=self.first_s,
            chunk_s=tuple(self.chunk_s),
            text="".join(self.text),
            model=self.model,
            finish=self.finish,
            prompt_tokens=self.prompt_tokens,
            completion_tokens=self.completion_tokens,
            visual_tokens=self.visual_tokens,
            kv_bytes=self.kv_bytes,
            error=error,
            error_detail=detail,
        )

    def _head(self, found: dict[str, Any]) -> list[dict[str, Any]]:
        """The choice to read, in a list; model and usage are taken on the way."""
        if found.get("error"):
            raise AnswerError("http", f"the answer is an error: {message_of(found)}")
        model = found.get("model")
        if isinstance(model, str) and model:
            if self.model is not None and model != self.model:
                raise AnswerError("model", f"{self.model!r} became {model!r} within one answer")
            self.model = model
        usage = found.get("usage")
        if isinstance(usage, dict):
            self._usage(usage)
        choices = found.get("choices")
        if not isinstance(choices, list) or not all(isinstance(c, dict) for c in choices):
            raise AnswerError("protocol", f"an answer without choices: {_short(found)}")
        return [c for c in choices if c.get("index", 0) == 0]

    def _text(self, piece: Any, choice: dict[str, Any]) -> None:
        if piece is not None and not isinstance(piece, str):
            raise AnswerError("protocol", f"content is no text: {_short(piece)}")
        if piece:
            self.text.append(piece)
        if isinstance(choice.get("finish_reason"), str):
            self.finish = choice["finish_reason"]

    def _usage(self, usage: dict[str, Any]) -> None:
        self.prompt_tokens = _count(usage.get("prompt_tokens"))
        self.completion_tokens = _count(usage.get("completion_tokens"))
        details = usage.get("prompt_tokens_details")
        if isinstance(details, dict):
            self.visual_tokens = _count(details.get("image_tokens"))
        ours = usage.get("foveate")
        if isinstance(ours, dict):
            self.kv_bytes = _count(ours.get("kv_bytes"))
            if (seen := _count(ours.get("visual_tokens"))) is not None:
                self.visual_tokens = seen


def _object(data: bytes) -> dict[str, Any]:
    try:
        found = json.loads(data)
    except (ValueError, RecursionError):
        raise AnswerError("protocol", f"no JSON: {_short(data)}") from None
    if not isinstance(found, dict):
        raise AnswerError("protocol", f"no JSON object: {_short(data)}")
    return found


def _count(value: Any) -> int | None:
    """A count, or None for what is none (some servers send null; true is no count)."""
    whole = isinstance(value, int) and not isinstance(value, bool)
    return value if whole and value >= 0 else None


def message_of(found: Any) -> str:
    """The text of an error object, however the server wraps it."""
    error = found.get("error", found) if isinstance(found, dict) else found
    text = error.get("message", error) if isinstance(error, dict) else error
    return _short(text)


def _short(value: Any, limit: int = 300) -> str:
    """One line of at most `limit` characters."""
    text = value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)
    return one_line(text, limit)


def one_line(text: str, limit: int = 300) -> str:
    """Without line ends, and cut where it is long."""
    line = " ".join(text[: 4 * limit].split())
    return line if len(line) <= limit else line[: limit - 1] + "…"
