"""Answers as JSON and as tables: both answers, tokens in and kept, milliseconds by stage, and the ratio."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from foveate.cli.console import described, plain
from foveate.cli.savings import short
from foveate.core.report import PHASES, Report

if TYPE_CHECKING:
    from rich.table import Table

    from foveate.engine.request import Answer

GUIDE = "guide"  # the key of a small sibling's time, before the phases
_STAMPS = 8  # time stamps that one line shows
FIGURES = (
    ("visual_tokens", "visual_tokens_kept"),
    ("tokens_by_layer", "tokens_by_layer"),
    ("prompt_tokens", "prompt_tokens"),
    ("kv_bytes", "kv_bytes"),
    ("ttft_ms", "ttft_ms"),
)


def side(answer: Answer) -> dict[str, Any]:
    """One answer with its record."""
    return {
        "answer": answer.text,
        "token_ids": list(answer.token_ids),
        "report": answer.report.to_dict() if answer.report is not None else None,
        "notes": list(answer.notes),
        "error": described(answer.error) if answer.error is not None else None,
    }


def result(
    source: str | list[str], question: str, full: Answer | None, plan: Answer | None
) -> dict[str, Any]:
    """One entry of `results`: the runs that were asked for, and the first error of them."""
    errors = [a.error for a in (full, plan) if a is not None and a.error is not None]
    both = full is not None and plan is not None
    return {
        "source": source,
        "question": question,
        "full": side(full) if full is not None else None,
        "plan": side(plan) if plan is not None else None,
        "ratio": ratios(full.report, plan.report) if full and plan and both else None,
        "error": described(errors[0]) if errors else None,
    }


def ratios(full: Report | None, plan: Report | None) -> dict[str, float] | None:
    """Figures of the plan over those of all tokens, where both were measured."""
    if full is None or plan is None:
        return None
    out: dict[str, float] = {}
    for name, attribute in FIGURES:
        quotient = over(getattr(plan, attribute), getattr(full, attribute))
        if quotient is not None:
            out[name] = quotient
    return out


def over(part: float | None, whole: float | None) -> float | None:
    return round(part / whole, 4) if part is not None and whole else None


def summary(report: Report) -> str:
    """One line: tokens in and kept, time to the first token."""
    parts = []
    if report.visual_tokens_in:
        share = f" ({report.keep_ratio:.0%})" if report.visual_tokens_in else ""
        parts.append(
            f"{report.visual_tokens_kept} of {report.visual_tokens_in} visual tokens{share}"
        )
        parts += inside(report)
    parts += held(report)
    parts.append(f"prompt {report.prompt_tokens} tokens")
    if report.ttft_ms is not None:
        parts.append(f"first token after {milliseconds(report.ttft_ms)}")
    if "decode" in report.ms:
        parts.append(f"decode {milliseconds(report.ms['decode'])}")
    return ", ".join([*parts, *stamps(report)])


def inside(report: Report) -> list[str]:
    """One line where visual tokens left inside the language model: how many its layers had."""
    found = report.layers
    if not found or (found[-1] == found[0] >= report.visual_tokens_kept):
        return []
    return [f"{report.tokens_by_layer:.0f} a layer on average, {found[-1]} in the last"]


def held(report: Report) -> list[str]:
    """One line where a method acts on the KV cache: its bytes, of those that it would hold whole."""
    if report.kv_bytes is None or not any(s.stage == "memory" for s in report.saved):
        return []
    whole = report.kv_bytes + sum(s.kv_bytes for s in report.saved)
    return [f"KV cache {short(report.kv_bytes)}B of {short(whole)}B"]


def stamps(report: Report) -> list[str]:
    """When the frames of each video were taken: a line a video, or one for all where a model reads
    frames as pictures. Times that are not known are left out.
    """
    known = [s.time_s for s in report.segments if s.time_s is not None]
    if known and all(len(t) == 1 for t in known):
        known = [tuple(t for (t,) in known)]
    return [f"video at {_times(t)} s" for t in known]


def _times(times: Sequence[float]) -> str:
    shown = [f"{t:.3f}".rstrip("0").rstrip(".") for t in times]
    return ", ".join(shown if len(shown) <= _STAMPS else [*shown[: _STAMPS - 2], "…", shown[-1]])


def comparison(full: Answer, plan: Answer, plan_text: str, title: str) -> Table:
    """Both runs side by side; the last column is the plan's figure over that of all tokens."""
    from rich.table import Table
    from rich.text import Text

    table = Table(title=Text(plain(title)), title_justify="left", title_style="bold")
    table.add_column("")
    table.add_column("all tokens", justify="right", overflow="fold")
    table.add_column(Text(plan_text), justify="right", overflow="fold")
    table.add_column("ratio", justify="right")
    a, b = full.report, plan.report
    table.add_row("answer", Text(plain(full.text)), Text(plain(plan.text)), "", end_section=True)
    if a is None or b is None:
        return table
    for name, one, two in counts(a, b):
        table.add_row(name, f"{one:,}", f"{two:,}", ratio_text(two, one))
    table.add_section()
    for name, one_ms, two_ms in stage_times([a], [b]):
        table.add_row(name, milliseconds(one_ms), milliseconds(two_ms), ratio_text(two_ms, one_ms))
    return table


def counts(a: Report, b: Report) -> list[tuple[str, int, int]]:
    rows = [
        ("visual tokens in", a.visual_tokens_in, b.visual_tokens_in),
        ("visual tokens kept", a.visual_tokens_kept, b.visual_tokens_kept),
        ("prompt tokens", a.prompt_tokens, b.prompt_tokens),
    ]
    if inside(b):
        one, two = round(a.tokens_by_layer), round(b.tokens_by_layer)
        rows.insert(2, ("visual tokens a layer", one, two))
    if a.kv_bytes is not None and b.kv_bytes is not None:
        rows.append(("KV cache bytes", a.kv_bytes, b.kv_bytes))
    away = a.kv_offloaded_bytes or 0, b.kv_offloaded_bytes or 0
    if any(away):
        rows.append(("KV bytes in host memory", *away))
    return rows


def stage_times(
    full: Sequence[Report], plan: Sequence[Report]
) -> list[tuple[str, float | None, float | None]]:
    """(stage, median of the full runs, median of the plan's) in ms; None where a stage did not run.

    Medians, because one run that the machine interrupts would carry a mean.
    """
    rows = [(p, _median(full, p), _median(plan, p)) for p in (GUIDE, *PHASES)]
    rows = [r for r in rows if r[1] is not None or r[2] is not None]
    first = [r.ttft_ms for r in full if r.ttft_ms is not None]
    second = [r.ttft_ms for r in plan if r.ttft_ms is not None]
    if first and second:
        rows.append(("first token after", statistics.median(first), statistics.median(second)))
    return rows


def _median(reports: Sequence[Report], phase: str) -> float | None:
    found = [r.ms[phase] for r in reports if phase in r.ms]
    return statistics.median(found) if found else None


def milliseconds(value: float | None) -> str:
    if value is None:
        return "-"
    if value >= 10_000:
        return f"{value / 1000:.1f} s"
    return f"{value:.0f} ms" if value >= 100 else f"{value:.1f} ms"


def ratio_text(part: float | None, whole: float | None) -> str:
    quotient = over(part, whole)
    return "-" if quotient is None else f"{quotient:.2f}"
