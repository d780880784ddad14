"""Curves of a training run as PNG (extra "lab")."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from foveate.core.errors import InputError, MissingExtraError


def read_log(run: Path) -> list[dict[str, Any]]:
    """The measured rows of a run. Errors: InputError if the run has no log."""
    file = run / "log.jsonl"
    if not file.is_file():
        raise InputError(f"{run} has no log.jsonl: it is no folder of a training run")
    return [json.loads(line) for line in file.read_text("utf-8").splitlines() if line]


def plot(run: Path, out: Path) -> None:
    """Dev figures of each measurement against minutes of wall clock: what heads see, and what is
    answered right.
    """
    rows = read_log(run)
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingExtraError("matplotlib", "lab", "drawing training curves") from error
    figure = Figure(figsize=(11, 4.5), layout="constrained")
    panels = figure.subplots(1, 2, sharey=True)
    for panel, dotted, title in zip(panels, (True, False), ("tower heads", "answers"), strict=True):
        names = sorted({name for row in rows for name in row["dev"] if ("." in name) is dotted})
        for name in names:
            points = [
                (float(row["total_s"]) / 60, row["dev"][name]) for row in rows if name in row["dev"]
            ]
            panel.plot(*zip(*points, strict=True), marker=".", label=name)
        panel.set(title=f"{title}, share right on dev", xlabel="minutes")
        panel.grid(alpha=0.3)
        panel.legend(fontsize=6, ncols=2)
    figure.savefig(out, dpi=110)
