"""One row of a source as a draft of an item: which fields count, and what is wrong with them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from foveate.audit.metrics import check_metric
from foveate.core.errors import SettingError

UNCATEGORISED = "uncategorised"
TOTAL = "all"
"""Name of the total over all categories, which no category may have."""

QUESTION = ("question", "prompt")
PICTURES = ("image", "images")
REFERENCES = ("answer", "answers", "references")
LOG = ("messages", "response")
WRAPPERS = ("request", "body")
"""Where a log may keep the request itself, `messages` and settings in it."""

SYSTEM = ("system", "developer")
LIMITS = ("max_new_tokens", "max_completion_tokens", "max_tokens")
IDS = ("id", "custom_id")
KNOWN = {*QUESTION, *PICTURES, *REFERENCES, *LOG, *WRAPPERS, *LIMITS, *IDS, "metric", "category"}


class RowError(ValueError):
    """What is wrong with one row; its number is added by who reads the rows."""


@dataclass(frozen=True)
class Draft:
    """A row that was understood. `pictures` are the fields' values, nothing is loaded yet.

    metric: what the row itself says, None if nothing. system: whether a log's system message stands
    before the question now.
    """

    id: str | None
    pictures: tuple[Any, ...] = field(repr=False)
    question: str
    references: tuple[str, ...]
    metric: str | None
    category: str
    max_new_tokens: int | None
    system: bool = False


def draft(row: Mapping[str, Any]) -> Draft:
    """Read one row. RowError says what is wrong with it."""
    if row.get("messages") is not None or any(
        isinstance(row.get(name), Mapping) for name in WRAPPERS
    ):
        return _log(row)
    question = _first(row, QUESTION)
    return _made(row, _text(question, "question"), _pictures(row))


def _made(
    row: Mapping[str, Any], question: str, pictures: tuple[Any, ...], *, system: bool = False
) -> Draft:
    if not question.strip():
        raise RowError("the question is empty")
    if not pictures:
        raise RowError('no picture; give it as "image" or "images"')
    references = _references(row)
    metric = row.get("metric")
    if metric is not None:
        metric = _text(metric, "metric")
        check_references(metric, references)
    category = _first(row, ("category",))
    found = Draft(
        id=_id(_first(row, IDS)),
        pictures=pictures,
        question=question,
        references=references,
        metric=metric,
        category=UNCATEGORISED if category is None else _plain(category, "category"),
        max_new_tokens=_limit(_first(row, LIMITS)),
        system=system,
    )
    if found.category == TOTAL:
        raise RowError(f"no category may be called {TOTAL!r}, the name of the total")
    for text in (found.id or "", question, found.category, *references):
        if any("\ud800" <= char <= "\udfff" for char in text):
            raise RowError("a text holds half of a character (a lone surrogate)")
    return found


def check_references(metric: str, references: Iterable[str]) -> None:
    """RowError for an unknown metric and for a reference that the metric cannot take."""
    try:
        known = check_metric(metric)
    except SettingError as error:
        raise RowError(str(error)) from None
    for reference in references if known else ():
        fault = known.fault(reference) if known else None
        if fault:
            raise RowError(f"reference {reference[:60]!r} is {fault}")


def _first(row: Mapping[str, Any], names: Iterable[str]) -> Any:
    """The value of the first field that is there; NaN counts as missing, as tables have it."""
    for name in names:
        value = row.get(name)
        if value is not None and not (isinstance(value, float) and value != value):
            return value
    return None


def _text(value: Any, what: str) -> str:
    if value is None:
        raise RowError(f"no {what}")
    if not isinstance(value, str):
        raise RowError(f"the {what} is no text but {type(value).__name__}")
    return value


def _plain(value: Any, what: str) -> str:
    """A text or a number as text; whole numbers that a table made floats lose their ".0"."""
    if isinstance(value, bool):
        raise RowError(f"the {what} is {value}; write the text that is meant, such as yes")
    if not isinstance(value, str | int | float):
        raise RowError(f"the {what} is no text or number but {type(value).__name__}")
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    text = str(value).strip()
    if not text:
        raise RowError(f"the {what} is empty")
    return text


def _references(row: Mapping[str, Any]) -> tuple[str, ...]:
    """All reference answers of a row, each once, in order. Null and empty ones are missing ones."""
    found: list[str] = []
    for name in REFERENCES:
        value = _first(row, (name,))
        for one in value if isinstance(value, list | tuple) else [value]:
            if one is None or (isinstance(one, str) and not one.strip()) or one != one:
                continue
            found.append(_plain(one, name))
    return tuple(dict.fromkeys(found))


def _pictures(row: Mapping[str, Any]) -> tuple[Any, ...]:
    found: list[Any] = []
    for name in PICTURES:
        value = _first(row, (name,))
        found += value if isinstance(value, list | tuple) else [] if value is None else [value]
    return tuple(found)


def _id(value: Any) -> str | None:
    return None if value is None else _plain(value, "id")


def _limit(value: Any) -> int | None:
    if value is None:
        return None
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise RowError(f"max_new_tokens is {value!r}; it must be a whole number from 1 on")
    return value


def unused(row: Mapping[str, Any]) -> set[str]:
    """Names of the fields that hold something and have no say here."""
    found = {name for name, value in row.items() if name not in KNOWN and value is not None}
    for name in WRAPPERS:
        if isinstance(row.get(name), Mapping):
            found |= unused(row[name])
    return found


# --- logs ----------------------------------------------------------------------------------------
def _log(row: Mapping[str, Any]) -> Draft:
    """A request to an OpenAI chat endpoint as it was logged. The recorded answer is no reference: what
    it was compared with is not known.
    """
    asked = row
    for name in WRAPPERS:
        if isinstance(asked.get(name), Mapping):
            asked = {**row, **asked[name]}
    messages = asked.get("messages")
    if not isinstance(messages, list | tuple) or not messages:
        raise RowError("the log has no messages")
    turns = [_turn(message) for message in messages]
    if turns[-1][0] == "assistant":  # the answer that was logged
        turns.pop()
    system = [words for role, words, _ in turns if role in SYSTEM]
    if any(pictures for role, _, pictures in turns if role in SYSTEM):
        raise RowError("a system message of the log holds a picture")
    users = [turn for turn in turns if turn[0] not in SYSTEM]
    if [role for role, *_ in users] != ["user"]:
        roles = ", ".join(role for role, *_ in users) or "none"
        raise RowError(f"an item is one question of a user, and the log has the turns: {roles}")
    words, pictures = users[0][1:]
    return _made(asked, "\n\n".join([*system, words]), tuple(pictures), system=bool(system))


def _turn(message: Any) -> tuple[str, str, list[Any]]:
    """Role, words and pictures of one message."""
    if not isinstance(message, Mapping) or not isinstance(message.get("role"), str):
        raise RowError('a message of the log has no "role"')
    content, words, pictures = message.get("content") or [], [], []
    if not isinstance(content, str | list | tuple):
        raise RowError(f"a message of the log holds no text but {type(content).__name__}")
    for part in [content] if isinstance(content, str) else content:
        if isinstance(part, str):
            words.append(part)
        elif isinstance(part, Mapping) and isinstance(part.get("text"), str):
            words.append(part["text"])
        elif isinstance(part, Mapping) and part.get("image_url") is not None:
            address = part["image_url"]
            pictures.append(address.get("url") if isinstance(address, Mapping) else address)
        else:
            kind = part.get("type") if isinstance(part, Mapping) else type(part).__name__
            raise RowError(f"the log holds a part that is neither text nor picture: {kind!r}")
    return message["role"], "\n".join(words), pictures
