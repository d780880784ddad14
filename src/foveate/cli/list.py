"""`foveate list`: the registered methods, or what each model family can do here. Needs no torch."""

from __future__ import annotations

import dataclasses
from fractions import Fraction
from typing import TYPE_CHECKING, Annotated, Any

import typer

from foveate.cli import console, families, options
from foveate.core import registry
from foveate.core.errors import InputError, nearest
from foveate.core.method import STAGES, Budgeted, Method, describe_range
from foveate.core.views import Need

if TYPE_CHECKING:
    from rich.table import Table

BUDGET = tuple(f.name for f in dataclasses.fields(Budgeted))
CAPTION = (
    "Budget: exactly one of keep (a share, such as 1/4), per_image, per_request (tokens); of a KV cache "
    "exactly one of keep, entries, bytes. "
    "Evidence: golden = agrees with vectors from the authors' code; reference = with a plain "
    "computation of the formula; reconstructed = the paper left gaps, the docstring says which; "
    "control = a baseline. Counts: image = kept tokens follow from grid and budget; request = only "
    "their sum does; adaptive = neither."
)


def show(
    methods: Annotated[bool, typer.Option("--methods", help="List methods (the default).")] = False,
    families_: Annotated[
        bool, typer.Option("--families", help="List model families and what runs on each here.")
    ] = False,
    stage: Annotated[
        str | None, typer.Option(help="Only methods of this stage: " + ", ".join(STAGES) + ".")
    ] = None,
    as_json: options.AsJson = False,
    markdown: Annotated[
        bool, typer.Option("--markdown", help="Print a Markdown table, as in the documentation.")
    ] = False,
) -> int:
    """List methods and model families."""
    if as_json and markdown:
        raise InputError("--json and --markdown exclude each other")
    if methods and families_:
        raise InputError("--methods and --families exclude each other")
    if families_:
        if stage is not None:
            raise InputError("--stage goes with methods, not with --families")
        return families.show(as_json, markdown)
    if stage is not None and stage not in STAGES:
        raise InputError(f"unknown stage {stage!r}; {nearest(stage, STAGES)}")
    rows = [describe(m) for m in registry.methods(stage).values()]
    broken = registry.broken()
    if as_json:
        console.emit({"methods": rows, "broken": broken})
    elif markdown:
        print(as_markdown(rows))
    else:
        console.terminal().print(as_table(rows))
    for name, reason in broken.items():
        console.note(f"warning: third-party method {name} could not be loaded: {reason}")
    return 0


def describe(method: type[Method]) -> dict[str, Any]:
    """Everything the registry knows of a method, as JSON."""
    paper = method.paper
    return {
        "name": method.name,
        "stage": method.stage,
        "summary": method.summary,
        "paper": dataclasses.asdict(paper) if paper is not None else None,
        "evidence": method.evidence,
        "needs": [need_text(n) for n in sorted(method.needs, key=lambda n: (n.what, n.layer))],
        "counts": method.counts,
        "settings": [_setting(f) for f in dataclasses.fields(method)],
        "module": method.__module__,
    }


def need_text(need: Need) -> str:
    if need.what in ("question", "clip"):
        return need.what
    heads = " per head" if need.per_head else ""
    return f"{need.what}@{need.layer}{heads}"


def _setting(field: dataclasses.Field[Any]) -> dict[str, Any]:
    default = None if field.default is dataclasses.MISSING else field.default
    return {
        "name": field.name,
        "default": str(default) if isinstance(default, Fraction) else default,
        "range": "0 < keep <= 1" if field.name == "keep" else describe_range(field.metadata),
        "help": field.metadata.get("help", ""),
    }


def settings_lines(row: dict[str, Any]) -> list[str]:
    """One line a setting, the three of the budget as one word."""
    names = [s["name"] for s in row["settings"]]
    budget = all(b in names for b in BUDGET)
    lines = ["budget"] if budget else []
    for s in row["settings"]:
        if budget and s["name"] in BUDGET:
            continue
        default = "none" if s["default"] is None else str(s["default"]).lower()
        span = "" if s["range"] == "any" else f" ({s['range']})"
        lines.append(f"{s['name']}={default}{span}")
    return lines


def paper_text(row: dict[str, Any]) -> str:
    paper = row["paper"]
    if paper is None:
        return ""
    arxiv = f", arXiv {paper['arxiv']}" if paper["arxiv"] else ""
    return f"{paper['authors']} {paper['year']}{arxiv}"


def as_table(rows: list[dict[str, Any]]) -> Table:
    """Three columns that fit a terminal: what it is, what it does, what can be set."""
    from rich.table import Table
    from rich.text import Text

    table = Table(show_lines=False, expand=False, caption=CAPTION, caption_justify="left")
    for name, ratio in (("method", 2), ("what it does", 5), ("settings", 4)):
        table.add_column(name, ratio=ratio, overflow="fold")
    last = None
    for row in rows:
        if last is not None and row["stage"] != last:
            table.add_section()
        last = row["stage"]
        left = Text(row["name"], style="bold")
        left.append(
            f"\n{row['stage']}\n{row['evidence']}\ncounts: {row['counts']}", style="not bold dim"
        )
        middle = Text(row["summary"])
        for extra in (paper_text(row), "needs " + ", ".join(row["needs"]) if row["needs"] else ""):
            if extra:
                middle.append("\n" + extra, style="dim")
        table.add_row(left, middle, Text("\n".join(settings_lines(row)) or "none"))
    return table


def as_markdown(rows: list[dict[str, Any]]) -> str:
    """The page of methods: a Markdown table, one row a method."""
    lines = [
        "# Methods",
        "",
        "Written by `make docs` from the registry; do not edit. " + CAPTION,
        "",
        "| method | stage | what it does | paper | evidence | needs | counts | settings |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        cells = [
            f"`{row['name']}`",
            row["stage"],
            row["summary"],
            paper_text(row) or "-",
            row["evidence"],
            ", ".join(row["needs"]) or "-",
            row["counts"],
            "<br>".join(settings_lines(row)) or "-",
        ]
        lines.append("| " + " | ".join(c.replace("|", "\\|") for c in cells) + " |")
    return "\n".join(lines)
