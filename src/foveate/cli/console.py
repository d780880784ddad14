"""What the command line prints: answers on stdout, notes and progress on stderr, JSON as one last line."""

from __future__ import annotations

import contextlib
import json
import re
import sys
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from foveate.core.errors import FoveateError

if TYPE_CHECKING:
    from rich.console import Console

# Answers and file names come from outside: what would steer a terminal is shown as a space.
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


def plain(text: object) -> str:
    """Text without control characters; line breaks and tabs stay."""
    return _CONTROL.sub(" ", str(text))


def emit(data: dict[str, Any]) -> None:
    """Print one JSON object as one line of plain ASCII."""
    print(json.dumps(data), flush=True)


def note(text: str) -> None:
    """A remark for a person, on stderr."""
    print(plain(text), file=sys.stderr, flush=True)


def warn_about(source: str, error: FoveateError) -> None:
    note(f"error: {source}: {error}")


def described(error: BaseException) -> dict[str, str]:
    """An error as the JSON output shows it."""
    return {"type": type(error).__name__, "message": str(error)}


def fail(error: FoveateError, as_json: bool) -> None:
    fail_text(type(error).__name__, str(error), as_json)


def fail_text(kind: str, text: str, as_json: bool) -> None:
    """One line on stderr, and the JSON object on stdout if it was asked for."""
    note("error: " + " ".join(text.split()))
    if as_json:
        emit({"error": {"type": kind, "message": text}})


def terminal(stderr: bool = False) -> Console:
    """A rich console on the streams as they are now."""
    from rich.console import Console

    return Console(stderr=stderr, highlight=False, markup=False, emoji=False)


@contextlib.contextmanager
def working(text: str) -> Iterator[None]:
    """A spinner on stderr while something of unknown length runs; silent where nobody looks."""
    if not sys.stderr.isatty():
        yield
        return
    with terminal(stderr=True).status(text):
        yield


@contextlib.contextmanager
def counted(text: str, total: int) -> Iterator[Callable[[int], None]]:
    """A progress bar on stderr; yields a function that takes how many are done since the last call."""
    if total < 2 or not sys.stderr.isatty():
        with working(text):
            yield lambda _: None
        return
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
    )

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    bar = Progress(*columns, TimeRemainingColumn(), console=terminal(stderr=True), transient=True)
    with bar:
        task = bar.add_task(text, total=total)
        yield lambda done: bar.advance(task, done)
