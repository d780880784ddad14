"""Charts of quality: the frontier against latency and throughput, categories, drops."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from foveate.audit.report_data import Audit, load_words
from foveate.audit.report_html import Estimate, number, spread
from foveate.audit.report_look import (
    BOUND,
    CARD,
    INK,
    SOFT,
    Chart,
    axis,
    colour,
    drawn,
    short,
    soft,
    words,
)
from foveate.audit.target import BASELINE

Point = tuple[str, Estimate, Estimate]  # arm, x, score


def frontier(
    audit: Audit, load: str, names: Sequence[str], title: str, unit: str, *, less_is_better: bool
) -> Chart | None:
    """Score against one figure of a load, every arm a numbered point with both intervals; None
    where fewer than two arms have both.

    The dotted line joins the arms that no other arm beats in both.
    """
    points: list[Point] = []
    for arm in audit.arms:
        x, score = audit.figure(arm, load, *names), audit.score(arm)
        if x is not None and score is not None:
            points.append((arm, x, score))
    if len(points) < 2:
        return None
    best = undominated(points, less_is_better)
    line = {
        "type": "scatter", "mode": "lines", "name": "frontier", "hoverinfo": "skip",
        "x": [p[1].estimate for p in best], "y": [p[2].estimate for p in best],
        "line": {"color": SOFT, "width": 1.5, "dash": "dot"},
    }  # fmt: skip
    traces = [line] + [_dot(audit, arm, x, y, unit) for arm, x, y in points]
    layout = {
        "xaxis": axis(f"{title}, {unit}" if unit else title),
        "yaxis": axis("score", range=list(_window([p[2] for p in points]))),
    }
    names_ = ", ".join(audit.label(p[0]) for p in best)
    return Chart(
        id=f"frontier-{names[0]}-{load}".replace(":", "-"),
        title=load_words(load),
        about=f"Score against {title} under {load}; on the frontier: {names_}",
        figure=drawn(traces, layout),
        head=("arm", title, "score", "on the frontier"),
        rows=[
            (
                audit.label(a),
                spread(x, unit),
                spread(y, "score"),
                "yes" if (a, x, y) in best else "no",
            )
            for a, x, y in points
        ],
    )


def undominated(points: Sequence[Point], less_is_better: bool) -> list[Point]:
    """The points that no other beats in both figures, from the best x to the best score."""
    sign = 1 if less_is_better else -1
    best: list[Point] = []
    for p in sorted(points, key=lambda p: (sign * p[1].estimate, -p[2].estimate)):
        if not best or p[2].estimate > best[-1][2].estimate:
            best.append(p)
    return best


def categories(audit: Audit) -> Chart | None:
    """Grouped bars: the score of every arm in every category."""
    names = ("all", *audit.categories) if len(audit.categories) > 1 else ("all",)
    traces: list[dict[str, Any]] = []
    for arm in audit.arms:
        scores = [audit.score(arm, c) for c in names]
        at = audit.number_of(arm)
        traces.append({
            "type": "bar", "name": words(audit.label(arm)), "meta": {"arm": at},
            "x": list(range(len(names))),
            "y": [None if s is None else s.estimate for s in scores],
            "error_y": _reach(scores, INK),
            # Pale bars, so that the interval can be seen inside them.
            "marker": {"color": soft(colour(at), 0.4), "line": {"color": colour(at), "width": 1.5}},
            "text": [str(at)] * len(names), "textposition": "inside", "insidetextanchor": "start",
            "textangle": 0, "textfont": {"color": INK, "size": 11}, "constraintext": "none",
            "hoverinfo": "text",
            "hovertext": [
                f"{words(audit.label(arm))}<br>{words(c)}: {spread(s, 'score')}"
                for c, s in zip(names, scores, strict=True)
            ],
        })  # fmt: skip
    if all(y is None for t in traces for y in t["y"]):
        return None
    layout: dict[str, Any] = {
        "xaxis": axis("", tickmode="array", tickvals=list(range(len(names))), zeroline=False,
                      ticktext=[short(c, 16) for c in names], showgrid=False,
                      ticklabeloverflow="allow"),
        "yaxis": axis("score", range=[0, 1.05]), "barmode": "group", "bargroupgap": 0.06,
        "bargap": 0.5 if len(names) * len(audit.arms) < 12 else 0.18,
    }  # fmt: skip
    return Chart(
        id="categories",
        title="Score by category",
        about=f"Score of {len(audit.arms)} arms in {len(names)} groups of questions",
        figure=drawn(traces, layout),
        head=("arm", *(f"{c} (n = {_count(audit, c)})" for c in names)),
        rows=[
            (audit.label(a), *(spread(audit.score(a, c), "score") for c in names))
            for a in audit.arms
        ],
        wide=True,
        least_width=80 + 17 * len(names) * len(audit.arms),
    )


def drops(audit: Audit, bounds: Mapping[str, Any]) -> Chart | None:
    """Every candidate's drop in every category with its interval, and the bound it is held to."""
    names = ("all", *audit.categories) if len(audit.categories) > 1 else ("all",)
    traces = []
    for arm in audit.candidates:
        found = [(i, c, audit.drop(arm, c)) for i, c in enumerate(names)]
        shown = [(i, c, d) for i, c, d in found if d is not None]
        if shown:
            traces.append(_row(audit, arm, shown, "points", 100.0))
    if not traces:
        return None
    asked = {i: b for i, c in enumerate(names) if (b := drop_bound(bounds, c)) is not None}
    layout = rows_layout(names, "points below the baseline", 0.0)
    layout["shapes"] += [bound_line(100 * b, i - 0.5, i + 0.5) for i, b in asked.items()]
    told = "".join(
        f"; in {names[i]} at most {100 * b:g} points are allowed" for i, b in asked.items()
    )
    return Chart(
        id="drops",
        title="Drop against the baseline, paired by question",
        about=f"Drop of every candidate's score in points with its interval{told}",
        figure=drawn(traces, layout),
        head=("arm", *names),
        rows=[
            (audit.label(a), *(spread(audit.drop(a, c), "points") for c in names))
            for a in audit.candidates
        ],
        height=rows_height(len(names), len(audit.candidates)),
        wide=True,
    )


def drop_bound(bounds: Mapping[str, Any], category: str) -> float | None:
    """The bound on the drop in a category, as the receipt's bounds have it."""
    own = (bounds.get("max_quality_drop_by_category") or {}).get(category)
    found = bounds.get("max_quality_drop") if own is None else own
    return None if found is None else float(found)


def rows_layout(names: Sequence[str], title: str, same: float) -> dict[str, Any]:
    """The layout of a chart with one row for each name, the first on top, and a line where there is
    no change.
    """
    y = axis("", tickmode="array", tickvals=list(range(len(names))))
    y.update(ticktext=[short(n, 26) for n in names], range=[len(names) - 0.5, -0.5])
    y.update(showgrid=False, zeroline=False)
    bands: list[dict[str, Any]] = [
        {"type": "rect", "xref": "paper", "x0": 0, "x1": 1, "y0": i - 0.5, "y1": i + 0.5,
         "layer": "below", "line": {"width": 0}, "fillcolor": soft(SOFT, 0.07)}
        for i in range(0, len(names), 2)
    ]  # fmt: skip
    bands.append({"type": "line", "x0": same, "x1": same, "yref": "paper", "y0": 0, "y1": 1,
                  "layer": "below", "line": {"color": SOFT, "width": 1.5}})  # fmt: skip
    return {"xaxis": axis(title, zeroline=False), "yaxis": y, "shapes": bands}


def rows_height(rows: int, arms: int) -> int:
    return min(1600, 90 + rows * max(44, 24 * arms))


def bound_line(x: float, y0: float, y1: float) -> dict[str, Any]:
    """A dashed line at a bound, over the rows it is for."""
    return {"type": "line", "x0": x, "x1": x, "y0": y0, "y1": y1,
            "line": {"color": BOUND, "width": 2, "dash": "dash"}}  # fmt: skip


def _row(
    audit: Audit, arm: str, shown: Sequence[tuple[int, str, Estimate]], unit: str, scale: float
) -> dict[str, Any]:
    """The dots of one arm, one a row, beside those of the other arms."""
    at = audit.number_of(arm)
    return numbered(
        at, [e for _, _, e in shown],
        [i + beside(at - 1, len(audit.candidates)) for i, _, _ in shown],
        [f"{words(audit.label(arm))}<br>{words(name)}: {spread(e, unit)}" for _, name, e in shown],
        words(audit.label(arm)), scale,
    )  # fmt: skip


def beside(place: int, count: int) -> float:
    """Where in its row an arm stands, within -0.45 to 0.45."""
    return 0.9 * (place + 0.5) / count - 0.45


def numbered(
    at: int,
    xs: Sequence[Estimate],
    ys: Sequence[float],
    hover: Sequence[str],
    name: str,
    scale: float,
) -> dict[str, Any]:
    """Numbered dots of one arm with horizontal intervals."""
    return {
        "type": "scatter", "mode": "markers+text", "name": name, "meta": {"arm": at},
        "x": [scale * e.estimate for e in xs], "y": list(ys),
        "error_x": {
            "type": "data", "symmetric": False, "array": [scale * e.above for e in xs],
            "arrayminus": [scale * e.below for e in xs],
            "color": colour(at), "thickness": 2, "width": 4,
        },
        "marker": {"color": colour(at), "size": 17, "line": {"color": CARD, "width": 1}},
        "text": [str(at)] * len(xs), "textposition": "middle center",
        "textfont": {"color": CARD, "size": 11}, "hoverinfo": "text", "hovertext": list(hover),
    }  # fmt: skip


def _dot(audit: Audit, arm: str, x: Estimate, y: Estimate, unit: str) -> dict[str, Any]:
    at = audit.number_of(arm)
    hover = f"{words(audit.label(arm))}<br>{spread(x, unit)}<br>score {spread(y, 'score')}"
    dot = numbered(at, [x], [y.estimate], [hover], words(audit.label(arm)), 1.0)
    return {**dot, "error_y": _reach([y], colour(at)), "cliponaxis": False}


def _reach(values: Sequence[Estimate | None], ink: str) -> dict[str, Any]:
    return {
        "type": "data", "symmetric": False, "color": ink, "thickness": 1.3, "width": 3,
        "array": [0.0 if v is None else v.above for v in values],
        "arrayminus": [0.0 if v is None else v.below for v in values],
    }  # fmt: skip


def _window(scores: Sequence[Estimate]) -> tuple[float, float]:
    """A range of scores that holds every interval with a little air."""
    low = min(s.estimate - s.below for s in scores)
    high = max(s.estimate + s.above for s in scores)
    air = max(0.02, 0.12 * (high - low))
    return max(-0.03, low - air), min(1.05, high + air)


def _count(audit: Audit, category: str) -> str:
    n = audit.quality(BASELINE, category).get("n")
    return number(n)
