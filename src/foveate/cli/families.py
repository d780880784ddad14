"""What each model family can do here, from the packaged support matrix. Needs no torch."""

from __future__ import annotations

import json
from importlib import resources
from typing import TYPE_CHECKING, Any

from foveate.cli import console
from foveate.core.errors import UnsupportedError

if TYPE_CHECKING:
    from rich.console import Group

FILE = "support.json"
STATUS = ("exact", "batch-equals-single", "refused")
FACTS = {
    "features": "encoder features",
    "cls": "CLS attention",
    "received": "received attention",
    "keys": "keys",
}
FACTS_CAPTION = (
    "Encoder facts: what a method may ask for: features, cls and received attention, keys; merge: "
    "tokens may be merged before the projector."
)
CAPTION = (
    "Exact: equal to a masked full-length run, whatever the batch; batch-equals-single: a batch equals "
    "single runs, no mask can show more; refused: a typed error before any compute."
)

INSIDE = {
    "prefill": "prefill",
    "policy": "KV policies",
    "codec": "KV codecs",
    "continuous": "continuous batching",
}
INSIDE_CAPTION = (
    "Inside the language model, checked on a ragged batch of three: a prefill method, a cache policy and "
    "a codec. Where layers have windows, these count positions: a token that left does not make a window "
    "wider. Recurrent layers keep no entries, so policies and codecs act on the others; what a token "
    "left in a recurrent state before it was dropped stays. runs: requests join and leave."
)


def load() -> dict[str, Any]:
    """{"transformers": version, "families": {name: entry}}; UnsupportedError if it is missing or damaged.

    An entry holds model_type, class, encode (a STATUS) and reason; where not refused also facts (encoder
    facts for methods), merge_before_projector, mrope, video, blocks, and worst, bite, cells of the check;
    and inside: what runs inside the language model, a status for each of INSIDE, its layers and reasons.
    """
    file = resources.files("foveate.models").joinpath(FILE)
    try:
        data: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        if not isinstance(data["families"], dict):
            raise TypeError("families is no object")
    except FileNotFoundError:
        raise UnsupportedError(
            f"the support matrix foveate/models/{FILE} is not in this installation; write it with "
            "`python -m tests.engine.make_matrix` in a checkout, or reinstall the package"
        ) from None
    except (ValueError, KeyError, TypeError) as error:
        raise UnsupportedError(
            f"the support matrix foveate/models/{FILE} is damaged ({error}); reinstall the package"
        ) from None
    return data


def show(as_json: bool, markdown: bool) -> int:
    data = load()
    if as_json:
        console.emit(data)
    elif markdown:
        print(as_markdown(data))
    else:
        console.terminal().print(as_table(data))
    return 0


def cells(name: str, entry: dict[str, Any]) -> tuple[str, ...]:
    """family, class, encode stage, encoder facts, merges before the projector, video, positions, reason."""
    refused = entry["encode"] == "refused"
    facts = ", ".join(FACTS.get(f, f) for f in entry.get("facts", ())) or "none"
    yes = {True: "yes", False: "no"}
    return (
        name,
        entry["class"],
        entry["encode"],
        "-" if refused else facts,
        "-" if refused else yes[bool(entry.get("merge_before_projector"))],
        "-" if refused else yes[bool(entry.get("video"))],
        "-" if refused else "M-RoPE" if entry.get("mrope") else "1-D",
        entry.get("reason") or "",
    )


HEADER = (
    "family", "class", "encode stage", "encoder facts", "merges before projector", "video",
    "positions", "reason",
)  # fmt: skip


def inside_cells(name: str, entry: dict[str, Any]) -> tuple[str, ...]:
    """family, its decoder's layers, a status for each of INSIDE, and the reasons."""
    inside = entry.get("inside", {})
    found = [inside.get(kind, "not checked") for kind in INSIDE]
    return (name, inside.get("layers", "-"), *found, "; ".join(inside.get("reasons", ())))


INSIDE_HEADER = ("family", "layers", *INSIDE.values(), "reason")


def total(data: dict[str, Any]) -> str:
    found = [entry["encode"] for entry in data["families"].values()]
    parts = [f"{found.count(s)} {s}" for s in STATUS]
    return f"{len(found)} configurations: {', '.join(parts)} (transformers {data.get('transformers', '?')})"


def as_table(data: dict[str, Any]) -> Group:
    """A table that fits a terminal; reasons stand below it, once each."""
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    style = {"exact": "green", "batch-equals-single": "yellow", "refused": "red"}
    table = Table(title=total(data), title_justify="left", title_style="bold")
    for name in ("family", "encode stage", "encoder facts", "video", "positions"):
        table.add_column(name, overflow="fold")
    reasons: dict[str, int] = {}
    for family, entry in data["families"].items():
        name, _, encode, _, _, video, positions, reason = cells(family, entry)
        what = Text(encode.replace("-", " "), style=style.get(encode, ""))
        if reason:
            what.append(f" [{reasons.setdefault(reason, len(reasons) + 1)}]", style="not bold")
        facts = list(entry.get("facts", ())) + ["merge"] * bool(entry.get("merge_before_projector"))
        table.add_row(name, what, ", ".join(facts) or "-", video, positions)
    deep = Table(title="inside the language model", title_justify="left", title_style="bold")
    for name in INSIDE_HEADER[:-1]:
        deep.add_column(name, overflow="fold", no_wrap=name == "family")
    for family, entry in data["families"].items():
        row = [
            Text(c.replace("-", " "), style=style.get(c, "")) if i else Text(c)
            for i, c in enumerate(inside_cells(family, entry)[:-1])
        ]
        for reason in entry.get("inside", {}).get("reasons", ()):
            kind, _, why = reason.partition(": ")
            if kind in INSIDE:
                number = reasons.setdefault(why, len(reasons) + 1)
                row[2 + list(INSIDE).index(kind)].append(f" [{number}]", style="not bold")
        deep.add_row(*row)
    lines = [Text(f"[{number}] {reason}") for reason, number in reasons.items()]
    captions = [Text(c, style="dim") for c in (FACTS_CAPTION, CAPTION, INSIDE_CAPTION)]
    return Group(table, deep, *lines, *captions)


def as_markdown(data: dict[str, Any]) -> str:
    """The page of families: two Markdown tables, one row a family."""
    lines = ["# Model families", "", "Written by `make docs` from the support matrix; do not edit."]
    lines += ["", total(data) + ".", "", CAPTION, ""]
    lines += ["| " + " | ".join(HEADER) + " |", "|" + "---|" * len(HEADER)]
    for name, entry in data["families"].items():
        row = [c.replace("|", "\\|") for c in cells(name, entry)]
        row[1] = f"`{row[1]}`"
        lines.append("| " + " | ".join(row) + " |")
    lines += ["", "## Inside the language model", "", INSIDE_CAPTION, ""]
    lines += ["| " + " | ".join(INSIDE_HEADER) + " |", "|" + "---|" * len(INSIDE_HEADER)]
    for name, entry in data["families"].items():
        row = [c.replace("|", "\\|") for c in inside_cells(name, entry)]
        lines.append("| " + " | ".join(row) + " |")
    return "\n".join(lines)
