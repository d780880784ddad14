"""The look of the report's charts: one palette, light and dark, and a figure as plain JSON.

Charts are made in light colours; the page's script swaps each for its dark partner. Arms are told
apart by their number as well, never by colour alone.
"""

from __future__ import annotations

import importlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from foveate.audit.report_html import Html, clean, safe
from foveate.core.errors import MissingExtraError

INK, SOFT, GRID, CARD, TIP = "#1d1f25", "#5c606b", "#e2dfd8", "#fffffe", "#f3f1eb"
GOOD, BAD, BOUND = "#1a7a48", "#b3352b", "#8a5a00"

# Light and dark partners. Each pair is told from its paper by a contrast of 4.5 to 1 or more.
ARMS = (
    ("#33363f", "#dcdad5"),
    ("#0067a3", "#62b8f0"),
    ("#a94f00", "#f2a65e"),
    ("#00735a", "#4fd0a5"),
    ("#86389f", "#d49bea"),
    ("#b92a34", "#ff8d86"),
    ("#0f6f78", "#62d2dd"),
    ("#66620a", "#cfca55"),
    ("#a81f68", "#ff92c4"),
    ("#74492a", "#d8ab86"),
)
KINDS = {
    "http": ("#8c2d26", "#e8827a"),
    "timeout": ("#b06a10", "#e6ae5c"),
    "connection": ("#3f6aa8", "#83aee6"),
    "protocol": ("#6e4b9e", "#b596e3"),
    "model": ("#2f7d63", "#74c9ab"),
    "engine": ("#6b7078", "#a9aeb7"),
}
PATTERNS = {
    "http": "",
    "timeout": "/",
    "connection": "x",
    "protocol": ".",
    "model": "-",
    "engine": "+",
}
DARK = dict(
    [(INK, "#e9e7e2"), (SOFT, "#a4a8b2"), (GRID, "#343942"), (CARD, "#1b1e24"), (TIP, "#262b33")]
    + [(GOOD, "#6fd09a"), (BAD, "#f28d83"), (BOUND, "#e8b45a")]
    + list(ARMS)
    + list(KINDS.values())
)
FONT = 'system-ui, -apple-system, "Segoe UI", Roboto, "Liberation Sans", sans-serif'


@dataclass(frozen=True)
class Chart:
    """One chart and its figures as a table. about: what a reader who cannot see it is told;
    least_width: pixels below which it is scrolled rather than squeezed.
    """

    id: str
    title: str
    about: str
    figure: Mapping[str, Any]
    head: Sequence[str]
    rows: Sequence[Sequence[object]]
    height: int = 360
    wide: bool = False
    least_width: int = 0


@dataclass(frozen=True)
class Section:
    """Charts that belong together."""

    id: str
    title: str
    lead: str
    charts: Sequence[Chart] = field(default_factory=tuple)
    body: Html = Html("")


def colour(arm: int) -> str:
    """The light colour of an arm; the baseline's only once."""
    return ARMS[0][0] if arm == 0 else ARMS[1 + (arm - 1) % (len(ARMS) - 1)][0]


def soft(light: str, alpha: float) -> str:
    """A translucent colour, which the page's script knows how to swap too."""
    red, green, blue = (int(light[i : i + 2], 16) for i in (1, 3, 5))
    return f"rgba({red},{green},{blue},{alpha:g})"


def words(value: object) -> str:
    """Text for a chart, whose labels know tags: escaped."""
    return str(safe(clean(value)))


def short(name: str, most: int) -> str:
    """A label for an axis: cut in its middle where it is longer than `most`; the table beside the
    chart has all of it.
    """
    whole, half = clean(name), most // 2
    cut = whole[:half].rstrip() + "\u2026" + whole[1 - half :].lstrip()
    return words(whole if len(whole) <= most else cut)


def axis(title: str, **more: Any) -> dict[str, Any]:
    """An axis in the house's look."""
    return {
        "title": {"text": title, "font": {"size": 12, "color": SOFT}, "standoff": 10},
        "gridcolor": GRID, "zerolinecolor": GRID, "linecolor": GRID, "automargin": True,
        "tickfont": {"size": 12, "color": SOFT}, "fixedrange": True, **more,
    }  # fmt: skip


def drawn(traces: Sequence[Mapping[str, Any]], layout: Mapping[str, Any]) -> dict[str, Any]:
    """A plotly figure, checked by plotly, as plain JSON: {"data", "layout"}.

    MissingExtraError where plotly is not installed.
    """
    try:
        objects = importlib.import_module("plotly.graph_objects")
    except ModuleNotFoundError:
        raise MissingExtraError("plotly", "audit", "the report of an audit") from None
    base: dict[str, Any] = {
        "paper_bgcolor": CARD, "plot_bgcolor": CARD, "showlegend": False, "autosize": True,
        "font": {"family": FONT, "size": 12, "color": INK}, "template": "none",
        "margin": {"l": 8, "r": 14, "t": 10, "b": 8}, "hovermode": "closest", "dragmode": False,
        "hoverlabel": {"bgcolor": TIP, "bordercolor": GRID, "font": {"color": INK, "size": 12}},
    }  # fmt: skip
    figure = json.loads(objects.Figure(list(traces), {**base, **layout}).to_json())
    del figure["layout"]["template"]
    return dict(figure)


def dark_of() -> dict[str, str]:
    """Light to dark, for the page's script."""
    return dict(DARK)
