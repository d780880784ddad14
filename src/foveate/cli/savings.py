"""What each stage of a plan saved, as a small table."""

from __future__ import annotations

from typing import TYPE_CHECKING

from foveate.cli import console
from foveate.core.report import Report

if TYPE_CHECKING:
    from rich.table import Table

_UNITS = ("", "k", "M", "G", "T", "P")
COLUMNS = ("encode FLOPs", "prefill FLOPs", "decode FLOPs", "KV bytes")


def show(report: Report, title: str) -> None:
    """Print the table on stdout; nothing where nothing is counted, which the report's notes explain."""
    found = saved(report, title)
    if found is not None:
        console.terminal().print(found)


def saved(report: Report, title: str) -> Table | None:
    """A row a stage: FLOPs by phase and KV bytes saved, each with its share of the request without
    any stage. None where nothing is counted.
    """
    if not report.saved:
        return None
    from rich.table import Table
    from rich.text import Text

    table = Table(title=Text(f"saved by {title}"), title_justify="left", title_style="bold")
    table.add_column("stage")
    for name in COLUMNS:
        table.add_column(name, justify="right")
    for s in report.saved:
        table.add_row(
            s.stage,
            cell(s.encode_flops, s.encode_share),
            cell(s.prefill_flops, s.prefill_share),
            cell(s.decode_flops, s.decode_share),
            cell(s.kv_bytes, s.kv_share),
        )
    return table


def cell(value: int, share: float | None) -> str:
    """`1.27 G (32%)`, with a dash where nothing was saved."""
    if not value:
        return "-"
    part = "" if share is None else f" ({share:.0%})"
    return f"{short(value)}{part}"


def short(value: float) -> str:
    """Three digits and a thousands unit: 1270000000 is `1.27 G`."""
    size, unit = float(value), 0
    while abs(size) >= 1000 and unit < len(_UNITS) - 1:
        size, unit = size / 1000, unit + 1
    return f"{size:.3g} {_UNITS[unit]}".rstrip()
