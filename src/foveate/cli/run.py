"""`foveate run`: answer a question about pictures and videos, with a plan, without, or both side by side."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from foveate.cli import console, options, record, savings
from foveate.cli.asking import (
    Asked,
    Pair,
    Task,
    answer_all,
    check_guide,
    follows_guide,
    heading,
    pictures_of,
)
from foveate.cli.options import Loading, open_engine, output_file, save_picture
from foveate.cli.sources import Item, collect
from foveate.core.errors import FoveateError, InputError, UnsupportedError
from foveate.core.plan import Plan

if TYPE_CHECKING:
    from foveate.engine.engine import Engine


def run(
    sources: Annotated[
        list[str] | None,
        typer.Argument(help="Picture and video files, folders of pictures, web addresses."),
    ] = None,
    question: Annotated[
        str | None, typer.Option("--question", "-q", help="What to ask.")
    ] = None,
    model: options.Model = None,
    plan: Annotated[
        str, typer.Option(help="What to keep: a plan's text form or a .toml or .json file.")
    ] = "none",
    compare: Annotated[
        bool, typer.Option("--compare", help="Answer twice: with all tokens and with the plan.")
    ] = False,
    together: Annotated[
        bool, typer.Option("--together", help="All pictures in one request, not one each.")
    ] = False,
    chat: Annotated[
        bool, typer.Option("--chat", help="Go on asking: questions from stdin until /quit.")
    ] = False,
    stream: Annotated[
        bool, typer.Option("--stream", help="Print tokens as they come (one request).")
    ] = False,
    as_json: options.AsJson = False,
    picture: Annotated[
        Path | None, typer.Option(help="Write a picture of the kept patches here.")
    ] = None,
    system: Annotated[str | None, typer.Option(help="A system message.")] = None,
    max_new_tokens: options.MaxNewTokens = options.MAX_NEW_TOKENS,
    batch_size: Annotated[
        int | None,
        typer.Option(min=1, help="Requests in one batch.  [default: 8, with --compare 1]",
                     show_default=False),
    ] = None,
    warm_up: Annotated[
        bool, typer.Option("--warm-up/--no-warm-up",
                           help="Before --compare: one unmeasured run, so that start-up is not timed.")
    ] = True,
    dtype: options.Dtype = "auto",
    device_map: options.DeviceMap = None,
    revision: options.Revision = None,
    max_pixels: options.MaxPixels = options.MAX_PIXELS,
    max_frames: options.MaxFrames = options.MAX_FRAMES,
    allow_url: options.AllowUrl = False,
    feature_cache: Annotated[
        Path | None, typer.Option(help="Keep encoded pictures in this folder, for later questions.")
    ] = None,
    text_tower: options.TextTower = None,
    guide: options.Guide = None,
) -> int:  # fmt: skip
    """Answer a question about pictures or videos.

    Each picture or video is a request of its own unless --together is given. One that cannot be read
    is reported; the others are answered, and the command leaves with 2.
    """
    asked = Asked(
        Plan.load(plan), compare, max_new_tokens, batch_size or (1 if compare else 8), warm_up
    )
    tasks = _tasks(collect(sources or [], allow_url), together or chat)
    _check(asked, tasks, question, chat=chat, stream=stream, as_json=as_json, picture=picture)
    check_guide([asked.plan], guide)
    if guide is None and follows_guide(asked.plan):
        raise UnsupportedError(
            f"{asked.plan} follows a small sibling of the model: name it with --guide"
        )
    if compare and feature_cache is not None:
        raise InputError("--compare times the encoder: leave out --feature-cache")
    target = output_file(picture, "--picture")
    engine = open_engine(
        Loading(
            model,
            dtype,
            device_map,
            revision,
            max_pixels,
            max_frames,
            allow_url,
            feature_cache,
            keep_features=chat,
            text_tower=text_tower,
            guide=guide,
        )
    )
    if chat:
        from foveate.cli.chat import converse

        return converse(engine, tasks[0], asked, question, system, stream=stream, as_json=as_json)
    words = question or ""
    requests = [t.request(words, system) for t in tasks]
    pairs = answer_all(engine, requests, asked, stream=stream)
    problem = _draw(engine, tasks, asked, pairs, target) if target is not None else None
    if as_json:
        _print_json(engine, asked, tasks, words, pairs, target, problem)
    else:
        for task, pair in zip(tasks, pairs, strict=True):
            show(task, asked, pair, several=len(tasks) > 1, streamed=stream)
    return _leave(pairs, problem, as_json)


def _tasks(items: list[Item], together: bool) -> list[Task]:
    if not items or together:
        return [Task(tuple(items))]
    return [Task((item,)) for item in items]


def _check(
    asked: Asked,
    tasks: list[Task],
    question: str | None,
    *,
    chat: bool,
    stream: bool,
    as_json: bool,
    picture: Path | None,
) -> None:
    """Refuse contradictions before a model is loaded."""
    if question is None and not chat:
        raise InputError("no question was asked: give --question, or --chat for a conversation")
    if question is not None and not question.strip():
        raise InputError("the question is empty; say what is to be answered")
    if asked.compare and asked.plan.is_identity:
        raise InputError("--compare needs a --plan to compare with, such as visionzip:keep=1/4")
    if stream and (asked.compare or as_json):
        raise InputError("--stream prints as it goes: leave out --compare and --json")
    if stream and len(tasks) > 1:
        raise InputError(
            f"--stream serves one request, here are {len(tasks)}; --together makes one of them"
        )
    if chat and (asked.compare or picture is not None):
        raise InputError("--chat goes without --compare and --picture")
    if picture is not None and not any(t.items for t in tasks):
        raise InputError("--picture needs a picture or video to draw")
    if not tasks[0].items:
        console.note("note: no picture was given, the model answers from the words alone")


def show(task: Task, asked: Asked, pair: Pair, *, several: bool, streamed: bool = False) -> None:
    """One request's answer or table on stdout, its notes on stderr."""
    answers = [a for a in pair if a is not None]
    for text in dict.fromkeys(n for a in answers for n in a.notes):
        console.note(f"note: {task.title}: {text}")
    failed = next((a.error for a in answers if a.error is not None), None)
    if failed is not None:
        console.warn_about(task.title, failed)
        return
    full, plan = pair
    if full is not None and plan is not None:
        console.terminal().print(record.comparison(full, plan, str(asked.plan), task.title))
        if plan.report is not None:
            savings.show(plan.report, str(asked.plan))
        return
    answer = answers[0]
    if not streamed:
        print(console.plain(f"{task.title}: {answer.text}" if several else answer.text))
    if answer.report is not None:
        console.note(record.summary(answer.report))


def _draw(
    engine: Engine, tasks: list[Task], asked: Asked, pairs: list[Pair], target: Path
) -> FoveateError | None:
    """Write the kept patches of every request that was answered; an error if there is nothing to draw."""
    from foveate.engine.draw import beside
    from foveate.engine.sheet import Panel, sheet

    panels = []
    for task, (full, plan) in zip(tasks, pairs, strict=True):
        answer = plan if plan is not None else full
        if answer is None or answer.report is None:
            continue
        try:
            shown = pictures_of(engine, task, asked.plan, answer)
        except UnsupportedError as error:
            return error
        line = f"{answer.report.visual_tokens_kept} of {answer.report.visual_tokens_in} tokens kept"
        inner = (*record.inside(answer.report), *record.held(answer.report))
        lines = (line, *inner, answer.text)
        panels.append(Panel(beside(shown), task.title, lines))
    if not panels:
        return InputError(f"{target} was not written: no request was answered")
    columns = min(3, len(panels))
    rows = [panels[i : i + columns] for i in range(0, len(panels), columns)]
    try:
        save_picture(panels[0].image if len(panels) == 1 else sheet(rows), target)
    except InputError as error:
        return error  # a full disk must not cost the answers
    return None


def _print_json(
    engine: Engine,
    asked: Asked,
    tasks: list[Task],
    question: str,
    pairs: list[Pair],
    target: Path | None,
    problem: FoveateError | None,
) -> None:
    results = [
        record.result(t.source, question, *pair) for t, pair in zip(tasks, pairs, strict=True)
    ]
    console.emit(
        {
            **heading(engine, asked.plan),
            "results": results,
            "picture": str(target) if target is not None and problem is None else None,
            "error": console.described(problem) if problem is not None else None,
        }
    )


def _leave(pairs: list[Pair], problem: FoveateError | None, as_json: bool) -> int:
    errors = [a.error for pair in pairs for a in pair if a is not None and a.error is not None]
    if problem is not None:
        errors.append(problem)
        console.note(f"error: {problem}")
    return errors[0].exit_code if errors else 0
