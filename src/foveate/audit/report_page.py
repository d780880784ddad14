"""The report's page: one file that holds style, scripts, figures and pictures, and fetches nothing."""

from __future__ import annotations

import base64
import hashlib
import importlib
import json
from collections.abc import Sequence
from importlib.resources import files

from foveate.audit.report_data import Audit
from foveate.audit.report_html import Html, html, join, safe, table
from foveate.audit.report_look import Chart, Section, colour, dark_of
from foveate.core.errors import MissingExtraError

_PAGE = """<!doctype html>
<html lang="en" data-theme="light">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<title>{title}</title>
<style>{style}</style>
</head>
<body>
<a class="skip" href="#verdicts">To the verdicts</a>
<main>
<header><div><h1>{title}</h1><p class="soft">{lead}</p></div>
<button id="theme" type="button">Dark</button></header>
{top}
<div class="key" role="group" aria-label="Arms in the charts: press to hide or show">{key}</div>
{sections}
</main>
<script type="application/json" id="charts">{charts}</script>
<script>{plotly}</script>
<script>{script}</script>
</body>
</html>
"""


def page(audit: Audit, title: str, lead: str, top: Html, sections: Sequence[Section]) -> str:
    """The whole page as text."""
    drawn = [c for s in sections for c in s.charts]
    plotly, script = _plotly(), _own("report.js")
    return html(
        _PAGE,
        policy=Html(_policy((plotly, script))),
        title=title,
        style=Html(_own("report.css")),
        lead=lead,
        top=top,
        key=join((_chip(audit, arm) for arm in audit.arms), ""),
        sections=join(_section(s) for s in sections if s.charts or s.body),
        charts=Html(_data(drawn)),
        plotly=Html(plotly),
        script=Html(script),
    )


def dot(audit: Audit, arm: str) -> Html:
    """An arm's number on its colour."""
    at = audit.number_of(arm)
    light = colour(at)
    return html(
        '<span class="dot" style="--light:{};--dark:{}" aria-hidden="true">{}</span>',
        light, dark_of()[light], at,
    )  # fmt: skip


def _chip(audit: Audit, arm: str) -> Html:
    return html(
        '<button type="button" data-arm="{}" aria-pressed="true" title="{}">{}<span>{}</span></button>',
        audit.number_of(arm), arm, dot(audit, arm), arm,
    )  # fmt: skip


def _section(section: Section) -> Html:
    charts = join(_figure(c) for c in section.charts)
    return html(
        '<section id="{id}" aria-labelledby="{id}-title"><h2 id="{id}-title">{title}</h2>'
        "<p>{lead}</p>{charts}{body}</section>",
        id=section.id,
        title=section.title,
        lead=section.lead,
        charts=html('<div class="charts">{}</div>', charts) if section.charts else Html(""),
        body=section.body,
    )


def _figure(chart: Chart) -> Html:
    return html(
        '<figure class="{kind}"><h3>{title}</h3><div class="scroll"{focus}>'
        '<div class="plot" id="chart-{id}" role="img" aria-label="{about}" '
        'style="height:{height}px;min-width:{width}px"></div></div>'
        "<details><summary>The same as a table</summary>{table}</details></figure>",
        kind="wide" if chart.wide else "",
        # Who scrolls by keyboard must reach it.
        focus=Html(' tabindex="0"' if chart.least_width else ""),
        title=chart.title,
        id=chart.id,
        about=chart.about,
        height=chart.height,
        width=chart.least_width,
        table=table(chart.head, chart.rows, chart.about),
    )


def _data(charts: Sequence[Chart]) -> str:
    """Figures as JSON that no text in it can break out of."""
    found = [{"id": f"chart-{c.id}", **c.figure} for c in charts]
    text = json.dumps({"dark": dark_of(), "charts": found}, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c")


def _policy(scripts: Sequence[str]) -> str:
    """Nothing may be fetched, and no script may run but these, whatever text got into the page.

    plotly.js puts its own style sheet into the page, so inline style is allowed.
    """
    hashes = (hashlib.sha256(s.encode()).digest() for s in scripts)
    allowed = " ".join(f"'sha256-{base64.b64encode(h).decode()}'" for h in hashes)
    return f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src {allowed}"


def _own(name: str) -> str:
    return files("foveate.audit").joinpath(name).read_text(encoding="utf-8")


def _plotly() -> str:
    """plotly.js as the Python package carries it; its one bundle holds every kind of chart."""
    try:
        offline = importlib.import_module("plotly.offline")
    except ModuleNotFoundError:
        raise MissingExtraError("plotly", "audit", "the report of an audit") from None
    text: str = offline.get_plotlyjs()
    # An HTML parser ends a script at this word, and normalises line ends before the hash is taken.
    return text.replace("</script", "<\\/script").replace("\r\n", "\n").replace("\r", "\n")


def answer_text(text: str) -> Html:
    """An answer of a model: escaped, in its own writing direction."""
    return html('<bdi class="answer">{}</bdi>', text) if text.strip() else _empty()


def _empty() -> Html:
    return Html('<span class="none">no words</span>')


def note(text: object) -> Html:
    return html('<p class="soft">{}</p>', safe(text))
