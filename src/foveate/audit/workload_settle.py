"""What all rows of a workload say together: which metric each has, and which rows are refused."""

from __future__ import annotations

from collections.abc import Mapping

from foveate.audit.metrics import JUDGED, LOYALTY, METRICS
from foveate.audit.workload_rows import Draft, RowError, check_references
from foveate.core.errors import InputError

DEFAULT_METRIC = "exact"
SHOWN = 10
"""Rows and kinds of fault that an error text names, at most."""


def settle(
    drafts: Mapping[int, Draft], metric: str | None
) -> tuple[dict[int, str], dict[int, str]]:
    """The metric of each row, and what is wrong with rows given all of them. `metric`: in place of
    the rows' own.

    Rows without references are fine when all are such (loyalty scores them), or when "loyalty" or
    "judge" is asked for. Among rows with references they are faults: a drop in score and a
    disagreement with the baseline are two measures, and their mean is none.
    """
    bare = not any(d.references for d in drafts.values())
    default = LOYALTY if bare else DEFAULT_METRIC
    chosen: dict[int, str] = {}
    faults: dict[int, str] = {}
    for number, d in drafts.items():
        chosen[number] = own = metric or d.metric or default
        fault = _fault(own, d, bare)
        if fault:
            faults[number] = fault
    return chosen, faults


def _fault(metric: str, d: Draft, bare: bool) -> str | None:
    if metric in (LOYALTY, JUDGED):
        return None
    if not d.references:
        return "no reference answer" + ("" if bare else ", while other rows have one")
    if d.metric in METRICS and _takes_boxes(d.metric) and not _takes_boxes(metric):
        return f"its reference is a box (metric {d.metric}), and {metric} compares texts"
    try:
        check_references(metric, d.references)
    except RowError as error:
        return str(error)
    return None


def _takes_boxes(metric: str) -> bool:
    return METRICS[metric].fault("") is not None


def notes(drafts: Mapping[int, Draft], chosen: Mapping[int, str], metric: str | None) -> list[str]:
    """What a reader of the receipt has to know of how these rows are scored and asked."""
    found = []
    loyal = sum(own == LOYALTY for own in chosen.values())
    if loyal and not any(d.references for d in drafts.values()):
        found.append("no references: scored by agreement with the baseline's answers (loyalty)")
    if 0 < loyal < len(chosen):
        found.append(
            f"{loyal} of {len(chosen)} rows ask for loyalty: the total mixes two measures, read the "
            "categories"
        )
    replaced = sum(d.metric not in (None, metric) for d in drafts.values()) if metric else 0
    if replaced:
        found.append(f"metric {metric} stands in place of the rows' own in {replaced} rows")
    systems = sum(d.system for d in drafts.values())
    if systems:
        found.append(f"the system message stands before the question in {systems} rows")
    return found


def refuse(name: str, unit: str, faults: Mapping[int, str], of: int) -> None:
    """InputError that names the rows and what is wrong with each, equal faults together; nothing if
    there are no faults.
    """
    if not faults:
        return
    by_text: dict[str, list[int]] = {}
    for number, text in sorted(faults.items()):
        by_text.setdefault(text, []).append(number)
    parts = [f"{_named(unit, rows)}: {text}" for text, rows in list(by_text.items())[:SHOWN]]
    if len(by_text) > SHOWN:
        parts.append(f"and {len(by_text) - SHOWN} more faults")
    way = ""
    if any(text.startswith("no reference answer") for text in by_text):
        way = " (add the answers, remove the rows, or score every row by agreement: metric loyalty)"
    raise InputError(
        f"workload {name}: {len(faults)} of {of} rows cannot be used. {'; '.join(parts)}{way}"
    )


def _named(unit: str, rows: list[int]) -> str:
    shown = ", ".join(map(str, rows[:SHOWN]))
    more = f" and {len(rows) - SHOWN} more" if len(rows) > SHOWN else ""
    return f"{unit}{'s' if len(rows) > 1 else ''} {shown}{more}"
