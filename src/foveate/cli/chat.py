"""`foveate run --chat`: a conversation over the same pictures, from a keyboard or a pipe."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from foveate.cli import console, record
from foveate.cli.asking import Asked, Task, answer_all, heading
from foveate.cli.run import show

if TYPE_CHECKING:
    from foveate.engine.engine import Engine

QUIT = ("/quit", "/exit")
FORGET = "/forget"


def questions(first: str | None) -> Iterator[str]:
    """The question of the command line, then lines of stdin until it ends or says /quit."""
    if first is not None:
        yield first
    asking = sys.stdin.isatty()
    if asking:
        console.note("Questions, one a line; /forget starts over, /quit leaves.")
    while True:
        if asking:
            print("> ", end="", file=sys.stderr, flush=True)
        line = sys.stdin.readline()
        if not line or line.strip() in QUIT:
            return
        if line.strip():
            yield line.strip()


def converse(
    engine: Engine,
    task: Task,
    asked: Asked,
    first: str | None,
    system: str | None,
    *,
    stream: bool,
    as_json: bool,
) -> int:
    """Answer turn by turn; earlier turns go along as text. A failed turn is reported and forgotten."""
    history: list[dict[str, str]] = []
    results: list[dict[str, Any]] = []
    code = 0
    for question in questions(first):
        if question == FORGET:
            history.clear()
            continue
        request = task.request(question, system, tuple(history))
        pair = answer_all(engine, [request], asked, stream=stream)[0]
        answer = pair[1] if pair[1] is not None else pair[0]
        if answer is not None and answer.error is None:
            history += [
                {"role": "user", "content": question},
                {"role": "assistant", "content": answer.text},
            ]
        elif answer is not None and answer.error is not None:
            code = code or answer.error.exit_code
        if as_json:
            results.append(record.result(task.source, question, *pair))
        else:
            show(task, asked, pair, several=False, streamed=stream)
    if as_json:
        console.emit({**heading(engine, asked.plan), "results": results, "error": None})
    return code
