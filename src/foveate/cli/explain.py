"""`foveate explain`: what several plans keep of one picture, side by side, and the answers."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from foveate.cli import console, options, record, savings
from foveate.cli.asking import UNABLE, Asked, Task, answer_all, check_guide, pictures_of
from foveate.cli.options import Loading, open_engine, output_file, save_picture
from foveate.cli.sources import collect
from foveate.core.errors import FoveateError, InputError, UnsupportedError
from foveate.core.plan import Plan

if TYPE_CHECKING:
    from PIL import Image

    from foveate.engine.engine import Engine
    from foveate.engine.request import Answer
    from foveate.engine.sheet import Panel

COLUMNS = 3
FOOT = (
    "Model: {}. Lit: the patches whose places the kept tokens take; a method that merges carries others "
    "along in them. Where tokens leave inside the language model, those that go deepest."
)


def explain(
    picture: Annotated[str, typer.Argument(help="A picture or video file, or a web address.")],
    question: Annotated[str, typer.Option("--question", "-q", help="What to ask.")],
    plan: Annotated[
        list[str], typer.Option("--plan", help="A plan; give the option once for each.")
    ],
    out: Annotated[Path, typer.Option(help="The sheet to write.")] = Path("explain.png"),
    model: options.Model = None,
    as_json: options.AsJson = False,
    max_new_tokens: options.MaxNewTokens = options.MAX_NEW_TOKENS,
    dtype: options.Dtype = "auto",
    device_map: options.DeviceMap = None,
    revision: options.Revision = None,
    max_pixels: options.MaxPixels = options.MAX_PIXELS,
    max_frames: options.MaxFrames = options.MAX_FRAMES,
    allow_url: options.AllowUrl = False,
    text_tower: options.TextTower = None,
    guide: options.Guide = None,
) -> int:
    """Draw which patches several plans keep of one picture, and show what the model answers with each.

    The first panel is the picture with all its tokens. A plan that this model cannot serve gets a panel
    that says why, and the command leaves with 5; with 2 where a setting or a file is wrong.
    """
    plans = [Plan.load(text) for text in plan]
    if not question.strip():
        raise InputError("the question is empty; say what is to be answered")
    items = collect([picture], allow_url)
    if len(items) != 1:
        raise InputError(f"{picture} holds {len(items)} pictures; explain shows one, name it")
    check_guide(plans, guide)
    target = output_file(out, "--out") or out
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
    task = Task((items[0],))
    runs = [_answered(engine, task, p, question, max_new_tokens) for p in (Plan(), *plans)]
    first = runs[0]
    if isinstance(first, FoveateError):
        raise first
    _write(engine, task, (Plan(), *plans), runs, first, question, target)
    code = next((r.exit_code for r in runs if isinstance(r, FoveateError)), 0)
    _print(engine, task, (Plan(), *plans), runs, question, target, as_json)
    return code


def _answered(
    engine: Engine, task: Task, plan: Plan, question: str, max_new_tokens: int
) -> Answer | FoveateError:
    """An answer, or the reason why this plan gives none."""
    asked = Asked(plan, max_new_tokens=max_new_tokens)
    try:
        full, kept = answer_all(engine, [task.request(question, None)], asked)[0]
    except UNABLE as error:
        return error
    answer = kept or full
    if answer is None:
        raise InputError("the engine gave no answer")
    return answer if answer.error is None else answer.error


def _write(
    engine: Engine,
    task: Task,
    plans: tuple[Plan, ...],
    runs: list[Answer | FoveateError],
    first: Answer,
    question: str,
    target: Path,
) -> None:
    from foveate.engine.sheet import sheet

    panels = [_panel(engine, task, p, r, first) for p, r in zip(plans, runs, strict=True)]
    columns = len(panels) if len(panels) <= COLUMNS + 1 else COLUMNS
    rows = [panels[i : i + columns] for i in range(0, len(panels), columns)]
    save_picture(sheet(rows, question, FOOT.format(Path(engine.name).name)), target)


def _panel(
    engine: Engine, task: Task, plan: Plan, run: Answer | FoveateError, first: Answer
) -> Panel:
    from foveate.engine.draw import beside, fit
    from foveate.engine.sheet import Panel, refused_panel

    name = "all tokens" if plan.is_identity else str(plan)
    if isinstance(run, FoveateError):
        return refused_panel(_still(engine, task, first), name, str(run))
    if run.report is None:
        raise InputError("the engine gave no report")
    kept, whole = run.report.visual_tokens_kept, run.report.visual_tokens_in
    share = f"{kept} of {whole} tokens ({run.report.keep_ratio:.0%})"
    inner = (*record.inside(run.report), *record.held(run.report))
    lines = (share, *inner, *record.stamps(run.report), f"answer: {run.text}")
    try:
        return Panel(beside(pictures_of(engine, task, plan, run)), name, lines)
    except UnsupportedError as error:
        plain = fit(_still(engine, task, run))
        return Panel(plain, name, (*lines, f"kept patches are not drawn: {error}"))


def _still(engine: Engine, task: Task, answer: Answer) -> Image.Image:
    """The picture itself, or a video's first frame."""
    from PIL import Image

    from foveate.models.video import load_video

    if answer.pictures:
        picture: Image.Image = answer.pictures[0]
        return picture
    return Image.fromarray(load_video(task.items[0].source, max_frames=engine.max_frames).frames[0])


def _print(
    engine: Engine,
    task: Task,
    plans: tuple[Plan, ...],
    runs: list[Answer | FoveateError],
    question: str,
    target: Path,
    as_json: bool,
) -> None:
    if as_json:
        results = [
            {"plan": str(p), "answer": None, "report": None, "error": console.described(r)}
            if isinstance(r, FoveateError)
            else {"plan": str(p), **record.side(r)}
            for p, r in zip(plans, runs, strict=True)
        ]
        console.emit(
            {
                "model": engine.name,
                "source": task.source,
                "question": question,
                "out": str(target),
                "results": results,
            }
        )
        return
    for plan, run in zip(plans, runs, strict=True):
        name = "all tokens" if plan.is_identity else str(plan)
        if isinstance(run, FoveateError):
            console.warn_about(name, run)
        elif run.report is not None:
            print(console.plain(f"{name}: {run.text}  [{record.summary(run.report)}]"))
            savings.show(run.report, name)
    print(f"wrote {target}")
