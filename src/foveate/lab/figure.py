"""A comparison as a picture: accuracy of every run by family, with 95 % intervals (extra "lab")."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from foveate.core.errors import InputError, MissingExtraError

from .judge import Judged, Result
from .paired import FULL, Comparison, Entry

PLAN_COLOURS = ("#0b6fb8", "#c8450b", "#26803a", "#7d3cab", "#a8850a", "#b8336a")
CONTROL_MARKS = {"random": "s", "pool": "D", "downscale": "v"}
FULL_COLOUR, CONTROL_COLOURS = "#111111", ("#8a8f98", "#b0703c", "#6f8f6f")
STEP, GROUP_GAP = 0.16, 0.3
"""Height of one run and the gap between families, in inches."""


def check_figure() -> None:
    """MissingExtraError where matplotlib is not installed."""
    try:
        import matplotlib
    except ImportError as error:
        raise MissingExtraError("matplotlib", "lab", "drawing the figure") from error
    del matplotlib


def draw(found: Comparison, judged: Judged, out: Path) -> None:
    """Write a PNG: one group of lines a family, one dot with its interval a run, a tick at the blind
    prior.

    Errors: MissingExtraError without matplotlib, InputError where the file cannot be written.
    """
    check_figure()
    from matplotlib.figure import Figure

    entries = [e for e in found.entries if e.error is None]
    groups: dict[str, list[Result]] = {}
    for result in judged.lines():
        groups.setdefault(result.cell.title, []).append(result)
    group = STEP * len(entries) + GROUP_GAP
    height = group * len(groups) + 1.5 + 0.22 * ((len(entries) + 1) // 2)
    figure = Figure(figsize=(8.5, height), layout="constrained")
    axes = figure.subplots()
    for at, results in enumerate(groups.values()):
        top = at * group
        for result in results:
            y = top + entries.index(result.entry) * STEP
            _dot(axes, result, y, _style(found, result.entry), at == 0)
        prior = results[0].row.prior
        ends = (top - STEP / 2, top + STEP * (len(entries) - 0.5))
        axes.plot([prior, prior], ends, color="#999999", lw=1, ls=":", zorder=1)
        if at:
            axes.axhline(top - (STEP + GROUP_GAP) / 2, color="#dddddd", lw=0.8, zorder=0)
    middle = STEP * (len(entries) - 1) / 2
    axes.set_yticks([at * group + middle for at in range(len(groups))], list(groups))
    axes.set(xlim=(-0.02, 1.02), xlabel="share answered right")
    axes.set_ylim(group * len(groups) - GROUP_GAP, -GROUP_GAP)
    axes.grid(axis="x", alpha=0.25)
    axes.tick_params(axis="y", length=0)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    title = f"{found.model}: {found.n} questions a line, 95 % Wilson intervals"
    if len(found.entries) > 1:
        title += "\nfilled: significantly different from all tokens; dotted: blind prior"
    else:
        title += "; dotted: blind prior"
    axes.set_title(title, fontsize=10, loc="left")
    if len(entries) > 1:
        figure.legend(loc="outside lower center", ncols=2, fontsize=8, frameon=False)
    try:
        figure.savefig(out, dpi=120)
    except OSError as error:
        raise InputError(f"{out} cannot be written: {error.strerror or error}") from None


def _dot(axes: Any, result: Result, y: float, style: dict[str, Any], label: bool) -> None:
    row, pair = result.row, result.against_full
    filled = pair is None or pair.significant
    name = result.entry.name + (" (control)" if result.entry.role == "control" else "")
    axes.plot([row.low, row.high], [y, y], color=style["color"], lw=1.3, zorder=2)
    axes.plot(
        row.accuracy,
        y,
        marker=style["marker"],
        color=style["color"],
        markerfacecolor=style["color"] if filled else "white",
        markersize=6,
        lw=0,
        zorder=3,
        label=name if label else None,
    )


def _style(found: Comparison, entry: Entry) -> dict[str, Any]:
    """Black for all tokens, strong colours for plans, quiet ones with marks of their own for
    controls.
    """
    if entry.name == FULL:
        return {"color": FULL_COLOUR, "marker": "o"}
    if entry.role == "plan":
        plans = [e.name for e in found.entries if e.role == "plan"]
        return {"color": PLAN_COLOURS[plans.index(entry.name) % len(PLAN_COLOURS)], "marker": "o"}
    method = entry.plan.methods[0].name
    at = list(CONTROL_MARKS).index(method)
    return {"color": CONTROL_COLOURS[at], "marker": CONTROL_MARKS[method]}
