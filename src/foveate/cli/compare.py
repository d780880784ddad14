"""`foveate compare`: methods side by side on the same pictures, as a table, as JSON and as one HTML page."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from foveate.cli import console, options, record
from foveate.cli.asking import Task, check_guide
from foveate.cli.compare_run import FULL, Entry, Look, Outcome, compare_all, figures, line_up
from foveate.cli.options import Loading, made_folder, open_engine
from foveate.cli.savings import short
from foveate.cli.sources import collect
from foveate.core import registry
from foveate.core.errors import FoveateError, InputError
from foveate.core.method import parse_value

if TYPE_CHECKING:
    from rich.table import Table

METHODS = "visionzip,vispruner,fastervlm,divprune,scope,holov,cdpruner-lm,prumerge-plus"
RENDERED = 20
STAGES = ("pixels", "tower", "tokens", "prefill")
SHOWN = ("encode", "select", "prefill", "decode")


def compare(
    sources: Annotated[
        list[str] | None,
        typer.Argument(help="Picture and video files, folders; none: rendered pictures.",
                       show_default=False),
    ] = None,
    question: Annotated[
        str | None, typer.Option("--question", "-q", help="What to ask of each source.")
    ] = None,
    methods: Annotated[
        str, typer.Option(help="Names with commas, or all; see `foveate list`.")
    ] = METHODS,
    plan: Annotated[
        list[str] | None,
        typer.Option("--plan", help="A whole plan to stand beside; may be given again."),
    ] = None,
    keep: Annotated[
        str, typer.Option(help="Share of the visual tokens each method keeps; of the KV entries for "
                          "a cache policy.")
    ] = "1/4",
    rendered: Annotated[
        int | None,
        typer.Option(min=1, help="How many rendered pictures, with their own questions and truths."
                     f"  [default: {RENDERED} without SOURCES]", show_default=False),
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Which pictures are rendered.")] = 0,
    model: options.Model = None,
    out: Annotated[Path, typer.Option(help="The HTML page to write.")] = Path("compare.html"),
    draw: Annotated[int, typer.Option(min=0, help="Pictures drawn on the page, at most.")] = 24,
    as_json: options.AsJson = False,
    max_new_tokens: options.MaxNewTokens = 32,
    dtype: options.Dtype = "auto",
    device_map: options.DeviceMap = None,
    revision: options.Revision = None,
    max_pixels: options.MaxPixels = options.MAX_PIXELS,
    max_frames: options.MaxFrames = options.MAX_FRAMES,
    allow_url: options.AllowUrl = False,
    text_tower: options.TextTower = None,
    guide: options.Guide = None,
) -> int:  # fmt: skip
    """Put methods side by side on the same pictures: tokens, agreement with the full answer, time by stage.

    All tokens and the controls random, pool and downscale always stand beside. A method that the model
    cannot serve is listed with its reason. The page holds everything, the kept patches of each picture too.
    """
    share = _share(keep)
    entries = line_up(_names(methods), plan or [], share)
    check_guide([e.plan for e in entries if not e.control and e.name != FULL], guide)
    looks = _looks(sources or [], question, rendered, seed, allow_url)
    target = _page_file(out)
    engine = open_engine(
        Loading(
            model,
            dtype,
            device_map,
            revision,
            max_pixels,
            max_frames,
            allow_url,
            text_tower=text_tower,
            guide=guide,
        )
    )
    with console.counted("comparing", len(entries) * (len(looks) + 1)) as done:
        outcome = compare_all(
            engine, entries, looks, max_new_tokens=max_new_tokens, drawn=draw, progress=done
        )
    _report_bad(outcome, FULL)
    from foveate.cli.compare_page import page

    facts = {"model": engine.name, "keep": str(share), "max_new_tokens": max_new_tokens}
    short = Path(engine.name).name if Path(engine.name).is_dir() else engine.name
    _write(target, page(outcome, {**facts, "model": short}))
    if as_json:
        console.emit({**facts, **_as_json(outcome, engine.adapter.mrope), "out": str(target)})
    else:
        console.terminal().print(_table(outcome))
        for entry in outcome.entries:
            if entry.error is not None:
                print(console.plain(f"{entry.name}: not on this model: {entry.error}"))
        print(f"wrote {target}")
    return _leave(outcome)


def _share(text: str) -> Fraction:
    found: Fraction = parse_value(text, Fraction, "--keep")
    if not 0 < found <= 1:
        raise InputError(f"--keep = {text} is out of range: above 0, at most 1")
    return found


def _names(text: str) -> list[str]:
    names = [n.strip() for n in text.split(",") if n.strip()]
    if names == ["all"]:
        return [name for stage in STAGES for name in registry.methods(stage)]
    for name in names:
        if ":" in name or "=" in name:
            raise InputError(f"--methods takes names; give {text!r} as --plan, once for each")
        registry.get(name)
    return names


def _looks(
    sources: list[str], question: str | None, rendered: int | None, seed: int, allow_url: bool
) -> list[Look]:
    """What is asked, checked before a model is loaded."""
    from foveate.engine.request import Request

    looks = []
    items = collect(sources, allow_url)
    if items and (question is None or not question.strip()):
        raise InputError("no question was asked: say with --question what to ask of the sources")
    if not items and question is not None:
        raise InputError(
            "rendered pictures bring their own questions: leave out --question, or name sources"
        )
    for item in items:
        task = Task((item,))
        words = question or ""
        looks.append(Look(item.label, task.title, words, task, task.request(words, None)))
    count = rendered if rendered is not None else 0 if items else RENDERED
    if count:
        from foveate.lab import FAMILIES, samples

        # Families of the lab's own pictures: outside data is an extra.
        names = [name for name, known in FAMILIES.items() if known.group != "outside"]
        drawn = {n: samples(n, "test", -(-count // len(names)), seed) for n in names}
        for i in range(count):
            name = names[i % len(names)]
            s = drawn[name][i // len(names)]
            title = f"{name} {i // len(names) + 1}"
            request = Request(s.question, images=list(s.images))
            looks.append(Look(f"rendered:{title}", title, s.question, Task(()), request, sample=s))
    return looks


def _page_file(path: Path) -> Path:
    if path.suffix.lower() not in (".html", ".htm"):
        raise InputError(f"--out {path} must end in .html")
    if path.is_dir():
        raise InputError(f"--out {path} is a folder; give a file name")
    return made_folder(path.parent, "--out") / path.name


def _write(path: Path, text: str) -> None:
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise InputError(f"{path} cannot be written: {error.strerror or error}") from None


def _report_bad(outcome: Outcome, first: str) -> None:
    """Errors of single pictures on stderr; those of a whole method are listed with the results."""
    for look, row in zip(outcome.looks, outcome.rows, strict=True):
        for entry, cell in zip(outcome.entries, row, strict=True):
            if cell.error is None or entry.error is not None:
                continue
            if entry.name != first and row[0].error is not None:
                continue
            place = look.title if entry.name == first else f"{look.title}, {entry.name}"
            console.warn_about(place, cell.error)


def _leave(outcome: Outcome) -> int:
    """A refused method is a result; a bad picture, or no method at all, is not."""
    full = outcome.column(outcome.entries[0])
    bad = next((c.error for c in full if c.error is not None), outcome.entries[0].error)
    if bad is not None:
        return bad.exit_code
    asked = [e for e in outcome.entries[1:] if not e.control]
    if asked and all(e.error is not None for e in asked):
        return asked[0].error.exit_code if asked[0].error else 0
    return 0


def _table(outcome: Outcome) -> Table:
    from rich.box import SIMPLE_HEAD
    from rich.table import Table
    from rich.text import Text

    known = any(look.truth is not None for look in outcome.looks)
    found = {e.name: figures(outcome.column(e)) for e in outcome.entries}
    shown = (*([record.GUIDE] if any(record.GUIDE in f.ms for f in found.values()) else []), *SHOWN)
    # Tight and without walls, so that nine columns and a method's name fit 80 characters.
    table = Table(title=f"{len(outcome.looks)} questions, times in ms", title_justify="left",
                  title_style="bold", box=SIMPLE_HEAD, padding=0)  # fmt: skip
    table.add_column("method", overflow="fold", min_width=13)
    heads = ["kept", "same", *(["right"] if known else []), *shown, "KV"]
    for name in heads:
        table.add_column(name, justify="right", no_wrap=True)
    for entry in outcome.entries:
        if entry.error is not None:
            row = ["n/a", *[""] * (len(heads) - 1)]
        else:
            f = found[entry.name]
            tokens = "-" if f.tokens_in is None else f"{f.tokens_kept:.0f}/{f.tokens_in:.0f}"
            row = [tokens, _of(f.agreement)]
            row += [_of(f.accuracy)] if known else []
            row += [record.milliseconds(f.ms.get(phase)).removesuffix(" ms") for phase in shown]
            row += ["-" if f.kv_bytes is None else f"{short(f.kv_bytes)}B"]
        label = Text(entry.name, style="dim" if entry.control or entry.error else "")
        table.add_row(label, *row, end_section=entry.name == FULL)
    return table


def _of(share: Any) -> str:
    return "-" if share is None else f"{share.hits}/{share.of}"


def _as_json(outcome: Outcome, mrope: bool) -> dict[str, Any]:
    return {
        "methods": [_entry_json(outcome, e, mrope) for e in outcome.entries],
        "results": [
            {
                "source": look.source,
                "question": look.question,
                "truth": look.truth,
                "answers": {
                    e.name: _cell_json(c) for e, c in zip(outcome.entries, row, strict=True)
                },
            }
            for look, row in zip(outcome.looks, outcome.rows, strict=True)
        ],
    }


def _entry_json(outcome: Outcome, entry: Entry, mrope: bool) -> dict[str, Any]:
    return {
        "name": entry.name,
        "plan": str(entry.plan),
        "plan_hash": entry.plan.resolved(mrope=mrope).hash,
        "control": entry.control,
        "error": _described(entry.error),
        **figures(outcome.column(entry)).to_dict(),
    }


def _cell_json(cell: Any) -> dict[str, Any]:
    report = cell.report
    return {
        "answer": cell.answer,
        "token_ids": list(cell.token_ids),
        "same": cell.same,
        "right": cell.right,
        "report": report.to_dict() if report is not None else None,
        "error": _described(cell.error),
    }


def _described(error: FoveateError | None) -> dict[str, str] | None:
    return console.described(error) if error is not None else None
