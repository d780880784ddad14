"""Charts of load: speed ratios, distributions of latency, errors by kind."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from foveate.audit.report_data import QUANTILES, TIMES, Audit, load_words
from foveate.audit.report_html import number, spread
from foveate.audit.report_look import (
    CARD,
    KINDS,
    PATTERNS,
    Chart,
    axis,
    colour,
    drawn,
    words,
)
from foveate.audit.report_quality import beside, bound_line, numbered, rows_height, rows_layout

RATES = {
    "throughput": "requests a second",
    "goodput": "requests a second within the SLO",
    "tokens_per_s": "tokens a second",
    "cpu": "CPU time a request",
    "device": "device time a request",
    "energy": "energy a request",
}
STEPS = 160  # points of a distribution that are drawn; its largest values always are


def ratios(audit: Audit, metric: str, bounds: Mapping[str, Any]) -> Chart | None:
    """How many times better each candidate is under each load, with its interval."""
    found = {
        (arm, load): audit.ratio(arm, load, metric)
        for arm in audit.candidates
        for load in audit.loads
    }
    traces = []
    for arm in audit.candidates:
        shown = [(i, x, found[arm, x]) for i, x in enumerate(audit.loads)]
        kept = [(i, load, e) for i, load, e in shown if e is not None]
        if not kept:
            continue
        at = audit.number_of(arm)
        hover = [
            f"{words(audit.label(arm))}<br>{words(load)}: {spread(e, 'times')}"
            for _, load, e in kept
        ]
        ys = [i + beside(at - 1, len(audit.candidates)) for i, _, _ in kept]
        traces.append(
            numbered(at, [e for _, _, e in kept], ys, hover, words(audit.label(arm)), 1.0)
        )
    if not traces:
        return None
    what = metric_words(metric)
    layout = rows_layout(audit.loads, "times better than the baseline", 1.0)
    asked = [b for b in bounds.get("min_speedup") or () if b.get("metric") == metric]
    for b in asked:
        rows = [i for i, x in enumerate(audit.loads) if b.get("at") in (None, x)]
        layout["shapes"] += [bound_line(float(b["min"]), i - 0.5, i + 0.5) for i in rows]
    told = "".join(
        f"; at {b.get('at') or 'every load'} at least {float(b['min']):g} is asked for"
        for b in asked
    )
    return Chart(
        id=f"ratio-{metric}",
        title=what[0].upper() + what[1:],
        about=f"Ratio of baseline to candidate in {what} under each load; 1 is no change{told}",
        figure=drawn(traces, layout),
        head=("arm", *audit.loads),
        rows=[
            (audit.label(a), *(spread(found[a, x], "times") for x in audit.loads))
            for a in audit.candidates
        ],
        height=rows_height(len(audit.loads), len(audit.candidates)),
    )


def ratio_metrics(audit: Audit) -> list[str]:
    """Every metric for which some candidate has a ratio, in the figures' order."""
    seen: dict[str, None] = {}
    for arm in audit.candidates:
        for metrics in audit.pair(arm).get("speed", {}).values():
            seen.update(dict.fromkeys(metrics))
    return list(seen)


def metric_words(metric: str) -> str:
    """A speed metric in words: `whole answer, p95`."""
    name, _, suffix = metric.partition("_")
    if f"{name}_ms" in TIMES:
        return f"{TIMES[f'{name}_ms']}, {suffix or 'median'}"
    return RATES.get(metric, metric)


def distribution(
    audit: Audit,
    load: str,
    name: str,
    values: Mapping[str, Sequence[float]],
    reach: tuple[float, float],
) -> Chart | None:
    """Cumulative distributions of one latency under one load, a line an arm. values: milliseconds
    of every arm; reach: the ends of the shared axis, above 0.
    """
    lines, marks = [], []
    for arm in audit.arms:
        times = sorted(values.get(arm, ()))
        if not times:
            continue
        at, label = audit.number_of(arm), words(audit.label(arm))
        xs, ys = steps(times)
        lines.append({
            "type": "scatter", "mode": "lines", "name": label, "meta": {"arm": at},
            "x": xs, "y": ys, "line": {"color": colour(at), "width": 2, "shape": "hv"},
            "hoverinfo": "text",
            "hovertext": [f"{label}<br>{100 * y:.0f} % within {number(x, 'ms')}"
                          for x, y in zip(xs, ys, strict=True)],
        })  # fmt: skip
        share = 0.18 + 0.64 * at / max(1, len(audit.arms) - 1)
        marks.append({
            "type": "scatter", "mode": "markers+text", "name": f"{label}: number", "meta": {"arm": at},
            "x": [times[min(len(times) - 1, int(share * len(times)))]], "y": [share],
            "text": [str(at)], "textfont": {"color": CARD, "size": 10}, "hoverinfo": "skip",
            "marker": {"color": colour(at), "size": 15, "line": {"color": CARD, "width": 1}},
        })  # fmt: skip
    if not lines:
        return None
    layout = {
        "xaxis": log_axis(f"{TIMES[name]}, ms", reach),
        "yaxis": axis("share of requests", range=[0, 1.03], tickformat=".0%"),
    }
    return Chart(
        id=f"times-{name}-{load}".replace(":", "-"),
        title=load_words(load),
        about=f"Cumulative distribution of {TIMES[name]} under {load}, a line for each arm",
        figure=drawn([*lines, *marks], layout),
        head=("arm", "requests", *QUANTILES),
        rows=[
            (
                audit.label(a),
                number(len(values.get(a, ()))),
                *(spread(audit.figure(a, load, name, q), "ms") for q in QUANTILES),
            )
            for a in audit.arms
        ],
    )


def log_axis(title: str, reach: tuple[float, float]) -> dict[str, Any]:
    """A logarithmic axis over `reach` whose ticks are 1, 2 and 5 times powers of ten."""
    low, high = (math.log10(x) for x in reach)
    air = 0.04 * max(high - low, 0.1)
    powers = range(math.floor(low) - 1, math.ceil(high) + 1)
    ticks = [step * 10.0**p for p in powers for step in (1, 2, 5)]
    return axis(
        title, type="log", range=[low - air, high + air], tickmode="array", tickvals=ticks,
        ticktext=[f"{x:,.6g}" for x in ticks],
    )  # fmt: skip


def steps(times: Sequence[float]) -> tuple[list[float], list[float]]:
    """(x, y) of a cumulative distribution, thinned to STEPS points but whole in its last ones.

    `times` are sorted. y of the i-th of n is (i + 1) / n.
    """
    n = len(times)
    tail = min(n, STEPS // 4)
    body = n - tail
    every = max(1, math.ceil(body / (STEPS - tail)))
    picked = [*range(0, body, every), *range(body, n)]
    return [times[i] for i in picked], [(i + 1) / n for i in picked]


def errors(audit: Audit) -> Chart | None:
    """Stacked bars of failed requests by kind for each load and arm; None where none failed."""
    places, labels = [], []
    for load in audit.loads:
        for arm in audit.arms:
            if audit.at(arm, load):
                places.append((arm, load))
                labels.append([words(load), str(audit.number_of(arm))])
    counts = {kind: [_failed(audit, a, x, kind) for a, x in places] for kind in KINDS}
    present = [k for k in KINDS if any(counts[k])]
    if not present:
        return None
    traces = [
        {
            "type": "bar", "name": kind, "y": counts[kind],
            "x": [[x[0] for x in labels], [x[1] for x in labels]],
            "marker": {"color": KINDS[kind][0],
                       "pattern": {"shape": PATTERNS[kind], "fgcolor": CARD, "solidity": 0.25,
                                   "fillmode": "overlay"}},
            "hoverinfo": "text",
            "hovertext": [f"{words(audit.label(a))}, {words(x)}<br>{kind}: {c}"
                          for (a, x), c in zip(places, counts[kind], strict=True)],
        }
        for kind in present
    ]  # fmt: skip
    layout = {
        "xaxis": axis("load and arm"), "yaxis": axis("failed requests", rangemode="tozero"),
        "barmode": "stack", "showlegend": True, "bargap": 0.3,
        "legend": {"orientation": "h", "x": 0, "y": 1.02, "yanchor": "bottom", "itemclick": False,
                   "itemdoubleclick": False},
    }  # fmt: skip
    return Chart(
        id="errors",
        title="Failed requests by kind",
        about=f"Failed requests by kind ({', '.join(present)}) for each load and arm",
        figure=drawn(traces, layout),
        head=("arm", "load", "requests", "error rate", *present),
        rows=[
            (
                audit.label(a), x, number(audit.at(a, x).get("requests")),
                spread(audit.figure(a, x, "error_rate"), "%"), *(counts[k][i] for k in present),
            )
            for i, (a, x) in enumerate(places)
        ],
        wide=True,
        least_width=80 + 20 * len(places),
    )  # fmt: skip


def _failed(audit: Audit, arm: str, load: str, kind: str) -> int:
    return int((audit.at(arm, load).get("errors") or {}).get(kind, 0))
