"""`foveate demo`: a form, a chart and a scene of shapes, each asked twice on the bundled model."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from foveate.cli import console, options, record
from foveate.cli.asking import Asked, Pair, answer_all, heading
from foveate.cli.options import Loading, made_folder, open_engine, save_picture
from foveate.core.errors import InputError
from foveate.core.plan import Plan

if TYPE_CHECKING:
    from foveate.engine.engine import Engine
    from foveate.lab import Sample

TITLES = {"form": "a form", "bars": "a chart", "shapes": "a scene of shapes"}
PLAN = "visionzip:keep=1/4"


def demo(
    out: Annotated[Path, typer.Option(help="Folder for kept.png.")] = Path("demo"),
    plan: Annotated[str, typer.Option(help="The plan of the second run.")] = PLAN,
    seed: Annotated[int, typer.Option(min=0, help="Which pictures are drawn.")] = 0,
    model: options.Model = None,
    as_json: options.AsJson = False,
) -> int:
    """Answer questions about three rendered pictures twice: with all visual tokens and with a plan.

    Prints both answers beside the truth, tokens in and kept, milliseconds by stage and their ratio,
    and writes kept.png: the pictures with the kept patches lit.
    """
    chosen = Plan.load(plan)
    if chosen.is_identity:
        raise InputError(f"the demo compares a plan with all tokens; give one, such as {PLAN}")
    from foveate.lab.pictures import demo_pictures

    samples = demo_pictures(seed)
    folder = made_folder(out, "--out")
    engine = open_engine(Loading(model))
    asked = Asked(chosen, compare=True, max_new_tokens=32, batch_size=1)
    pairs = _ask(engine, samples, asked)
    for _, kept in pairs:
        if kept is not None and kept.error is not None:
            raise kept.error
    target = folder / "kept.png"
    save_picture(_sheet(engine, samples, pairs, str(chosen)), target)
    if as_json:
        results = [
            {**record.result(s.kind, s.question, *pair), "truth": s.answer}
            for s, pair in zip(samples, pairs, strict=True)
        ]
        console.emit({**heading(engine, chosen), "results": results, "picture": str(target)})
        return 0
    _print(samples, pairs, str(chosen))
    print(f"wrote {target}")
    return 0


def _ask(engine: Engine, samples: list[Sample], asked: Asked) -> list[Pair]:
    """Both answers of each sample, one request at a time so that every time is of one request."""
    from foveate.engine.request import Request

    requests = [Request(s.question, images=[s.image]) for s in samples]
    return answer_all(engine, requests, asked)


def _sheet(engine: Engine, samples: list[Sample], pairs: list[Pair], plan: str) -> Any:
    from foveate.engine.sheet import Panel, answer_pictures, sheet

    processor = getattr(engine.processor, "image_processor", None)
    above, below = [], []
    for sample, (full, kept) in zip(samples, pairs, strict=True):
        if full is None or kept is None or full.report is None or kept.report is None:
            continue
        above.append(Panel(sample.image, sample.question, (
            f"truth: {sample.answer}",
            f"answer with all {full.report.visual_tokens_in} tokens: {full.text}",
        )))  # fmt: skip
        shown = answer_pictures(kept, processor)[0]
        whole = kept.report.visual_tokens_in
        below.append(Panel(shown, f"{kept.report.visual_tokens_kept} of {whole} tokens kept", (
            f"answer with the plan: {kept.text}",
        )))  # fmt: skip
    return sheet([above, below], f"All visual tokens above, {plan} below")


def _print(samples: list[Sample], pairs: list[Pair], plan: str) -> None:
    from rich.table import Table
    from rich.text import Text

    answers = Table(title="Answers", title_justify="left", title_style="bold")
    for name in ("picture", "question", "truth", "all tokens", plan, "tokens in", "kept"):
        answers.add_column(Text(name), justify="right" if name in ("tokens in", "kept") else "left")
    reports = []
    for sample, (full, kept) in zip(samples, pairs, strict=True):
        if full is None or kept is None or full.report is None or kept.report is None:
            continue
        reports.append((full.report, kept.report))
        words = (sample.question, sample.answer, full.text, kept.text)
        figures = (kept.report.visual_tokens_in, kept.report.visual_tokens_kept)
        title = TITLES.get(sample.kind, sample.kind)
        answers.add_row(title, *(Text(console.plain(w)) for w in words), *map(str, figures))
    screen = console.terminal()
    screen.print(answers)
    a, b = [r for r, _ in reports], [r for _, r in reports]
    times = Table(
        title=f"{len(reports)} questions: mean counts, median times",
        title_justify="left",
        title_style="bold",
    )
    for name in ("", "all tokens", plan, "ratio"):
        times.add_column(Text(name), justify="left" if not name else "right")
    for name, one, two in _mean_counts(a, b):
        times.add_row(name, f"{one:,.0f}", f"{two:,.0f}", record.ratio_text(two, one))
    times.add_section()
    for name, one_ms, two_ms in record.stage_times(a, b):
        row = (record.milliseconds(one_ms), record.milliseconds(two_ms))
        times.add_row(name, *row, record.ratio_text(two_ms, one_ms))
    screen.print(times)


def _mean_counts(full: list[Any], plan: list[Any]) -> list[tuple[str, float, float]]:
    rows = [record.counts(a, b) for a, b in zip(full, plan, strict=True)]
    out = []
    for same in zip(*rows, strict=True):
        one, two = sum(r[1] for r in same) / len(same), sum(r[2] for r in same) / len(same)
        out.append((same[0][0], one, two))
    return out
