"""Markup for the report: everything is escaped unless it was built here; figures as text."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

NOT_MEASURED = "not measured"

# What would steer a reader's program: control characters, and marks that turn text around.
_STEERING = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")


class Html(str):
    """Text that is markup already."""


def clean(value: object) -> str:
    """Text from outside without control characters and lone surrogates."""
    return _STEERING.sub(" ", str(value)).encode("utf-8", "replace").decode("utf-8")


def safe(value: object) -> Html:
    """Markup as it is, all else escaped."""
    return value if isinstance(value, Html) else Html(escape(clean(value)))


def html(template: str, *values: object, **named: object) -> Html:
    """`template.format(...)` with every value escaped that is not Html."""
    return Html(template.format(*map(safe, values), **{k: safe(v) for k, v in named.items()}))


def join(parts: Iterable[object], between: str = "\n") -> Html:
    return Html(between.join(safe(p) for p in parts))


@dataclass(frozen=True)
class Estimate:
    """A figure of the receipt; low and high are None where it has no interval."""

    estimate: float
    low: float | None = None
    high: float | None = None

    @property
    def below(self) -> float:
        """How far the interval reaches down, for error bars."""
        return 0.0 if self.low is None else max(0.0, self.estimate - self.low)

    @property
    def above(self) -> float:
        return 0.0 if self.high is None else max(0.0, self.high - self.estimate)


def estimate(value: Any) -> Estimate | None:
    """A figure that is a number, a mapping with `estimate` (and `low`, `high`), or None."""
    if isinstance(value, Mapping):
        if value.get("estimate") is None:
            return None
        low, high = value.get("low"), value.get("high")
        return Estimate(float(value["estimate"]), low, high)
    return None if value is None else Estimate(float(value))


UNITS = {"bytes": (2.0**-20, ",.1f", " MiB"), "points": (100.0, ".1f", " points"),
         "%": (100.0, ".1f", " %"), "times": (1.0, ".2f", " times"), "score": (1.0, ".3f", "")}  # fmt: skip
"""Scale, format and name of the units that have their own."""


def number(value: float | int | None, unit: str = "") -> str:
    """A figure with its unit, to three digits that say something; `not measured` for None."""
    if value is None:
        return NOT_MEASURED
    if unit in UNITS:
        scale, form, name = UNITS[unit]
        # Adding zero takes the sign from a negative zero.
        return f"{round(scale * value, int(form[-2])) + 0.0:{form}}{name}"
    text = f"{value:,.0f}" if abs(value) >= 100 or value == int(value) else f"{value:.3g}"
    return f"{text} {unit}".strip()


def ends(value: Estimate, unit: str = "") -> str:
    """The ends of an interval without unit, such as `11.9 to 12.8`; an end that the sample is too
    small to give is `?`, and empty where the figure has no interval.
    """
    if value.low is None and value.high is None:
        return ""
    suffix = UNITS[unit][2] if unit in UNITS else f" {unit}" if unit else ""
    low, high = (
        "?" if x is None else number(x, unit).removesuffix(suffix) for x in (value.low, value.high)
    )
    return f"{low} to {high}"


def spread(value: Estimate | None, unit: str = "") -> str:
    """An estimate and its interval, such as `12.3 ms (11.9 to 12.8)`."""
    if value is None:
        return NOT_MEASURED
    interval = ends(value, unit)
    return (
        f"{number(value.estimate, unit)} ({interval})" if interval else number(value.estimate, unit)
    )


def stacked(value: Estimate | None, unit: str = "") -> Html:
    """An estimate above its interval, for narrow tables."""
    if value is None:
        return html('<span class="none">{}</span>', NOT_MEASURED)
    return html("{}<br><small>{}</small>", number(value.estimate, unit), ends(value, unit))


def breakable(name: object) -> Html:
    """A plan's text, which may break behind its signs but not within them."""
    parts = re.split(r"(?<=[+;,])(?=.)", clean(name))
    return name if isinstance(name, Html) else join(parts, "<wbr>")


def table(head: Sequence[object], rows: Iterable[Sequence[object]], caption: str) -> Html:
    """A table that scrolls by itself; the first cell of a row is its head."""
    top = join((html('<th scope="col">{}</th>', h) for h in head), "")
    body = join(
        html(
            '<tr><th scope="row">{}</th>{}</tr>',
            breakable(row[0]),
            join((html("<td>{}</td>", cell) for cell in row[1:]), ""),
        )
        for row in rows
    )
    return html(
        '<div class="table" tabindex="0" role="region" aria-label="{caption}"><table>'
        "<caption>{caption}</caption><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table></div>",
        caption=caption, top=top, body=body,
    )  # fmt: skip


def facts(values: Mapping[str, Any]) -> Html:
    """A nested mapping as a list of terms; None reads `not measured`."""
    return html("<dl>{}</dl>", join(_fact(str(k), v) for k, v in values.items()))


def _fact(name: str, value: Any) -> Html:
    label = name.removesuffix("_bytes").replace("_", " ")
    inner: object
    if isinstance(value, Mapping) and value:
        inner = facts(value)
        return html('<div class="group"><dt>{}</dt><dd>{}</dd></div>', label, inner)
    if isinstance(value, (list, tuple)):
        inner = "; ".join(clean(_words(v)) for v in value) or "none"
    else:
        size = name.endswith("_bytes") and isinstance(value, (int, float)) and bool(value)
        inner = number(value, "bytes") if size else _words(value)
    return html("<div><dt>{}</dt><dd>{}</dd></div>", label, inner)


def _words(value: Any) -> str:
    if value is None:
        return "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, Mapping) and not value:
        return "none"
    if isinstance(value, Mapping):
        return ", ".join(f"{k} {_words(v)}" for k, v in value.items())
    return str(value)
