"""What `foveate audit` shows: progress, the table of verdicts, the summary as JSON."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from foveate.cli import console

if TYPE_CHECKING:
    from rich.table import Table
    from rich.text import Text

    from foveate.audit.records import Row
    from foveate.audit.run import Progress
    from foveate.audit.turns import Turn

PIPE_WIDTH, SHOWN = 140, 2
STYLE = {"accepted": "green", "refused": "red", "undecided": "yellow"}


@contextlib.contextmanager
def listened() -> Iterator[Progress]:
    """A progress bar on stderr where somebody looks; otherwise nothing is said."""
    from rich import progress as rich_progress

    from foveate.audit.run import Progress

    screen = console.terminal(stderr=True)
    if not screen.is_terminal:
        yield Progress()
        return
    columns = (
        rich_progress.TextColumn("{task.description}"),
        rich_progress.BarColumn(),
        rich_progress.MofNCompleteColumn(),
        rich_progress.TimeRemainingColumn(),
    )
    with rich_progress.Progress(*columns, console=screen, transient=True) as bar:
        task = bar.add_task("opening the arms", total=None)
        failed = 0

        def begin(total: int, done: int) -> None:
            bar.update(task, total=total, completed=done)

        def turn(now: Turn) -> None:
            errors = f", {failed} failed" if failed else ""
            text = console.plain(f"block {now.block + 1}, {now.load}, {now.arm}{errors}")
            bar.update(task, description=text)

        def row(found: Row) -> None:
            nonlocal failed
            if not found.warmup:
                failed += found.observed.error is not None
                bar.advance(task)

        yield Progress(begin, turn, row)


def summary(receipt: Mapping[str, Any], out: Path, old: Mapping[str, Any] | None) -> dict[str, Any]:
    """What --json prints of a receipt."""
    found: dict[str, Any] = {
        "out": str(out),
        "format": receipt["format"],
        "spec_hash": receipt["spec_hash"],
        "workload": receipt["workload"],
        "verdicts": receipt["verdicts"],
        "pairs": receipt["figures"]["pairs"],
        "notes": receipt["notes"],
    }
    if old is not None:
        found["before"] = old.get("verdicts")
    return found


def show(receipt: Mapping[str, Any], out: Path, old: Mapping[str, Any] | None) -> None:
    """The verdicts as a table, their reasons below it."""
    screen = console.terminal()
    if not screen.is_terminal:  # a pipe has no width; 80 columns would break the cells
        screen.width = max(screen.width, PIPE_WIDTH)
    screen.print(table(receipt, old))
    for arm, verdict in _verdicts(receipt):
        for reason in told(verdict):
            print(console.plain(f"{arm}: {reason}"))
        needed = {k: n for k, n in (verdict.get("needed") or {}).items() if n}
        if needed:
            said = " and ".join(f"about {n:,} {what}" for what, n in needed.items())
            print(console.plain(f"{arm}: a decision needs {said}"))
    for text in (*receipt["workload"]["notes"], *receipt["notes"]):
        print(console.plain(f"note: {text}"))
    print(console.plain(f"wrote the receipt and its rows to {out}"))


def told(verdict: Mapping[str, Any]) -> list[str]:
    """The reasons to show: of a refused arm what is broken, of an undecided one what is open; of
    many alike, such as one bound under every load, the first two. The receipt holds all.
    """
    refused = verdict["decision"] == "refused"
    outcome = {"refused": "broken", "undecided": "open"}.get(verdict["decision"], "holds")
    groups: dict[str, list[str]] = {}
    for test in verdict["tests"]:
        if test["outcome"] == outcome and (test["required"] or refused):
            groups.setdefault(test["family"], []).append(test["reason"])
    out = []
    for family, reasons in groups.items():
        out += reasons[:SHOWN]
        if len(reasons) > SHOWN:
            out.append(f"{family}: {len(reasons) - SHOWN} more of this kind, see the receipt")
    return out


def table(receipt: Mapping[str, Any], old: Mapping[str, Any] | None) -> Table:
    """One line a candidate: quality drop, speed ratios by load, verdict."""
    from rich.table import Table
    from rich.text import Text

    pairs = receipt["figures"]["pairs"]
    loads = sorted({load for pair in pairs.values() for load in pair["speed"]}, key=_natural)
    found = Table(box=None, pad_edge=False)
    found.add_column("arm", overflow="fold")
    found.add_column("quality drop (95 %)", justify="right")
    for load in loads:
        found.add_column(f"e2e {load}", justify="right")
    if old is not None:
        found.add_column("before")
    found.add_column("verdict")
    for arm, verdict in _verdicts(receipt):
        pair = pairs.get(arm, {"speed": {}, "quality": {}})
        cells: list[Text | str] = [
            Text(console.plain(arm)),
            points(pair["quality"].get("all", {}).get("drop")),
        ]
        cells += [times((pair["speed"].get(x) or {}).get("e2e", {}).get("ratio")) for x in loads]
        if old is not None:
            cells.append(_decision((old.get("verdicts") or {}).get(arm)))
        found.add_row(*cells, _decision(verdict))
    return found


def _verdicts(receipt: Mapping[str, Any]) -> list[tuple[str, Mapping[str, Any]]]:
    """Verdicts in the order of the spec's arms."""
    found = receipt["verdicts"]
    return [(arm, found[arm]) for arm in receipt["arms"] if arm in found]


def points(drop: Mapping[str, Any] | None) -> str:
    """A drop in percentage points with its interval."""
    return _interval(drop, 100.0, 1, " pt")


def times(ratio: Mapping[str, Any] | None) -> str:
    """A speed ratio with its interval; above 1 the candidate is faster."""
    return _interval(ratio, 1.0, 2, "x")


def _interval(found: Mapping[str, Any] | None, scale: float, digits: int, unit: str) -> str:
    if not found or found.get("estimate") is None:
        return "-"
    low, high = (_number(found.get(k), scale, digits) for k in ("low", "high"))
    return f"{_number(found['estimate'], scale, digits)}{unit} ({low} to {high})"


def _number(value: Any, scale: float, digits: int) -> str:
    if value is None or not math.isfinite(value):
        return "?"
    return f"{value * scale:.{digits}f}"


def _decision(verdict: Mapping[str, Any] | None) -> Text:
    from rich.text import Text

    word = str((verdict or {}).get("decision", "-"))
    return Text(word, style=STYLE.get(word, ""))


def _natural(load: str) -> tuple[str, float, str]:
    kind, _, value = load.partition(":")
    try:
        return kind, float(value), ""
    except ValueError:
        return kind, 0.0, value
