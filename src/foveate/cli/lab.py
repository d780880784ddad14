"""`foveate lab eval` and `foveate lab sheet`: what a plan costs in answers, and pictures to look at."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from foveate.cli import console, options
from foveate.cli.options import Loading, made_folder, open_engine, output_file, save_picture
from foveate.core.errors import InputError

if TYPE_CHECKING:
    from rich.table import Table

    from foveate.lab.judge import Judged
    from foveate.lab.paired import Comparison

SHORT = ("run", "kept", "right (95 %)", "differ", "p", "same", "evidence")
RESULTS, TABLE, FIGURE = "results.json", "table.md", "accuracy.png"

Families = Annotated[
    list[str] | None,
    typer.Option("--family", help="One family; may be given again.  [default: all]",
                 show_default=False),
]  # fmt: skip
Levels = Annotated[
    list[int] | None,
    typer.Option("--level", min=0, help="0 easy, 1 medium, 2 hard, where a family has it; may be "
                 "given again.  [default: 0]", show_default=False),
]  # fmt: skip
Split = Annotated[
    str, typer.Option(help="test, dev or train; only test has looks never trained on.")
]
Seed = Annotated[int, typer.Option(min=0, help="Which samples are drawn.")]

app = typer.Typer(
    help="Rendered tasks with exact answers: measure a model or a plan, look at samples.",
    rich_markup_mode=None,
    no_args_is_help=True,
)


@app.command("eval", short_help="Accuracy by family, with and without plans.")
def evaluate(
    model: options.Model = None,
    plan: Annotated[
        list[str] | None,
        typer.Option("--plan", help="A plan to hold against all tokens; may be given again."),
    ] = None,
    family: Families = None,
    level: Levels = None,
    n: Annotated[int, typer.Option("--n", help="Samples of each family and level.")] = 100,
    split: Split = "test",
    seed: Seed = 0,
    out: Annotated[
        Path | None, typer.Option(help=f"Folder for {RESULTS}, {TABLE} and {FIGURE}.")
    ] = None,
    as_json: options.AsJson = False,
    batch_size: Annotated[int, typer.Option(min=1, help="Pictures a batch.")] = 16,
    max_new_tokens: options.MaxNewTokens = 16,
    dtype: options.Dtype = "auto",
    device_map: options.DeviceMap = None,
    revision: options.Revision = None,
) -> int:  # fmt: skip
    """Ask a model rendered questions and count exact answers, with all tokens and with plans.

    Beside each plan the controls random, pool and downscale answer the same questions at the same keep.
    Intervals are 95 % Wilson intervals; differences are tested by McNemar's exact test, adjusted by
    Holm. A plan that the model cannot serve is listed with its reason; the command leaves with 5 if it
    can serve none.
    """
    from foveate.lab.evaluate import cells, check_drawable
    from foveate.lab.nano import check_model
    from foveate.lab.paired import compare, line_up, questions

    levels = level or [0]
    todo = cells(family, n, split, seed, levels)
    plans = len(line_up(plan or [])) - 1
    target = _folder(out)
    check_drawable(todo, split)
    if model is not None and Path(model).is_dir():
        check_model(Path(model))  # weights that are cut short are refused before torch starts
    engine = open_engine(Loading(model, dtype, device_map, revision))
    with console.counted("asking", questions(len(todo), plans, n)) as done:
        found = compare(
            engine,
            plan or [],
            family,
            n,
            split,
            seed,
            levels,
            batch_size=batch_size,
            max_new_tokens=max_new_tokens,
            progress=done,
        )
    from foveate.lab.judge import judge
    from foveate.lab.tables import as_dict, notes, refusals

    judged = judge(found)
    result = as_dict(found, judged)
    for text in refusals(found):
        console.note(text)
    if target is not None:
        _write(target, found, judged, result)
        result["out"] = str(target)
    if as_json:
        console.emit(result)
        return 0
    console.terminal().print(_table(found, judged))
    for text in notes(found, judged):
        print(console.plain(text))
    if target is not None:
        print(f"wrote {RESULTS}, {TABLE} and {FIGURE} to {target}")
    return 0


@app.command("sheet", short_help="Draw samples with their evidence.")
def sheet(
    out: Annotated[Path, typer.Option(help="The picture to write.")],
    family: Families = None,
    level: Levels = None,
    n: Annotated[int, typer.Option("--n", help="Samples of each family and level.")] = 4,
    split: Split = "test",
    seed: Seed = 0,
    as_json: options.AsJson = False,
) -> int:
    """Draw samples of each family, with question, answer and the boxes of the evidence, for a person
    to look at. No model is loaded.
    """
    from foveate.lab.sheet import sheet as drawn

    target = output_file(out, "--out") or out
    page = drawn(family, n, split, seed, level or [0])
    save_picture(page, target)
    if as_json:
        console.emit({"out": str(target), "width": page.width, "height": page.height})
    else:
        print(f"wrote {target}")
    return 0


def _folder(out: Path | None) -> Path | None:
    """The folder of the results, made and tried now, so that a bad one costs no evaluation."""
    if out is None:
        return None
    from foveate.lab.figure import check_figure

    check_figure()
    if out.exists() and not out.is_dir():
        raise InputError(f"--out {out} is a file; give a folder")
    folder = made_folder(out, "--out")
    try:
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise InputError(f"--out: {folder} cannot be written to: {error.strerror}") from None
    return folder


def _write(folder: Path, found: Comparison, judged: Judged, result: dict[str, Any]) -> None:
    from foveate.lab.figure import draw
    from foveate.lab.tables import answers, markdown

    full = {**result, "answers": answers(found)}
    try:
        (folder / RESULTS).write_text(json.dumps(full, indent=1) + "\n", encoding="utf-8")
        (folder / TABLE).write_text(markdown(found, judged), encoding="utf-8")
    except OSError as error:
        raise InputError(f"{folder} cannot be written to: {error.strerror or error}") from None
    draw(found, judged, folder / FIGURE)


def _table(found: Comparison, judged: Judged) -> Table:
    """Narrow enough for a terminal of 80 columns: with plans, a family is a line above its runs."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    from foveate.lab.tables import columns, line

    table = Table(
        title=Text(found.model), title_justify="left", title_style="bold", box=box.SIMPLE,
        padding=(0, 1, 0, 0), pad_edge=False,
    )  # fmt: skip
    alone = len(found.entries) == 1
    for at, name in enumerate(columns(found) if alone else SHORT):
        table.add_column(name, justify="right" if at else "left", overflow="fold")
    last = None
    for result in judged.lines():
        if alone:
            table.add_row(*(Text(part) for part in line(found, result)))
            continue
        if result.cell is not last:
            if last is not None:
                table.add_section()
            table.add_row(Text(result.cell.title, style="bold"))
        last = result.cell
        _, _, kept, right, interval, *rest = line(found, result)
        spread = interval.replace(" to ", "-")
        cells = [kept.replace(" of ", "/"), f"{right} ({spread})", *rest]
        style = "dim" if result.entry.role == "control" else ""
        table.add_row(*(Text(part, style=style) for part in [result.entry.name, *cells]))
    return table
