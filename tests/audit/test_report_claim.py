"""The report in a real headless browser without network: what is drawn equals the receipt.

The page is asked from outside over the browser's own protocol, so its content policy stays as it is.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("plotly", reason="the charts of the report")
pytest.importorskip("pyarrow", reason="the rows of an audit")

from foveate.audit.report import write_report
from foveate.audit.report_data import Audit
from foveate.audit.report_examples import examples
from foveate.audit.report_look import ARMS, CARD, DARK, INK
from foveate.audit.tables import read_rows
from foveate.audit.target import BASELINE
from foveate.audit.workload import Workload
from tests.support.audited import PLANS, Planted, audited
from tests.support.browser import Tab, browser

pytestmark = pytest.mark.claim("A5")

LOADS = ("closed:1", "closed:4", "open:5")
ODD = Planted("<img src=x onerror=hacked=1>&amp;</script>" + 70 * "n", 1.2, 0.5, 0.02)

DRAWN = """
[...document.querySelectorAll('.plot')].map((plot) => {
  const x = plot._fullLayout.xaxis, y = plot._fullLayout.yaxis;
  const place = (p) => p.getAttribute('transform').match(/[-\\d.]+/g).map(Number);
  const dots = [...plot.querySelectorAll('.scatterlayer .point')].map(place);
  const bars = [...plot.querySelectorAll('.barlayer .point path')].map((p) => p.getBBox());
  return {
    id: plot.id, paper: plot._fullLayout.paper_bgcolor, ink: plot._fullLayout.font.color,
    traces: plot._fullData.map((t) => ({type: t.type, name: t.name, arm: t.meta?.arm ?? null,
      colour: t.marker?.color ?? t.line?.color ?? null, visible: t.visible, mode: t.mode,
      x: [...t.x ?? []], y: [...t.y ?? []],
      left: t.error_x?.arrayminus ?? null, right: t.error_x?.array ?? null,
      down: t.error_y?.arrayminus ?? null, up: t.error_y?.array ?? null})),
    dots: dots.map(([a, b]) => [x.p2l(a), y.p2l(b)]),
    bars: bars.map((b) => [y.p2l(b.y), y.p2l(b.y + b.height)]),
    errorbars: plot.querySelectorAll('path.xerror, path.yerror').length,
    ticks: plot.querySelectorAll('.xtick text').length,
    lines: plot.querySelectorAll('.scatterlayer path.js-line').length,
  };
})
"""

# Every text of a chart with its place, and the edge of the chart it must stay within.
TEXTS = """
[...document.querySelectorAll('.plot')].map((plot) => {
  const edge = plot.getBoundingClientRect();
  const texts = [...plot.querySelectorAll('text')].filter((t) => t.textContent.trim());
  return {id: plot.id, edge: [edge.left, edge.top, edge.right, edge.bottom], texts: texts.map((t) => {
    const b = t.getBoundingClientRect();
    return [t.textContent, b.left, b.top, b.right, b.bottom, t.closest('.xtick, .ytick') !== null];
  })};
})
"""


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any], Audit]:
    """A page of four candidates, one of them with a name that is markup; its receipt and rows."""
    folder = tmp_path_factory.mktemp("audited")
    arms = (PLANS[0], PLANS[1], PLANS[6], ODD, PLANS[8])
    asked = audited(folder, arms, count=120, loads=LOADS, blocks=6)
    write_report(folder, None, Workload(asked, "planted"))
    receipt = json.loads((folder / "receipt.json").read_text(encoding="utf-8"))
    return folder / "report.html", receipt, Audit(receipt, read_rows(folder / "rows.parquet"))


@pytest.fixture(scope="module")
def tab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tab]:
    with browser(tmp_path_factory.mktemp("profile")) as opened:
        yield opened


def shown(tab: Tab, page: Path, *, dark: bool, width: int = 1280) -> None:
    tab.show(page, dark=dark, width=width)
    tab.wait(f"document.documentElement.dataset.drawn === '{'dark' if dark else 'light'}'")


def charts(tab: Tab) -> dict[str, dict[str, Any]]:
    return {c["id"].removeprefix("chart-"): c for c in tab.value(DRAWN)}


def near(a: float, b: float, tolerance: float) -> bool:
    return math.isclose(a, b, abs_tol=tolerance)


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_the_page_draws_the_receipt_without_network(
    tab: Tab,
    made: tuple[Path, dict[str, Any], Audit],
    dark: bool,
    record_property: Callable[[str, object], None],
) -> None:
    """The report opens in headless Chromium without network and draws the receipt's figures."""
    page, receipt, audit = made
    shown(tab, page, dark=dark)
    assert tab.errors == []
    outside = [r for r in tab.requests if r != page.as_uri() and not r.startswith("data:image/")]
    assert outside == [], outside
    found = charts(tab)
    points = sum(_frontier(found, receipt, audit, load, dark) for load in LOADS)
    bars = _categories(found["categories"], receipt, audit)
    lines = sum(_distribution(found, audit, load) for load in LOADS)
    failed = _errors(found["errors"], receipt, audit)
    record_property(
        "figure",
        f"{len(found)} charts, {points} points, {bars} bars, {lines} distributions, {failed} failures "
        f"as in the receipt ({'dark' if dark else 'light'}); no request outside, no console message",
    )


def _frontier(
    found: dict[str, Any], receipt: dict[str, Any], audit: Audit, load: str, dark: bool
) -> int:
    """Every arm is a point where latency and score say, in its own colour, with both intervals."""
    chart = found[f"frontier-e2e_ms-{load.replace(':', '-')}"]
    arms = [t for t in chart["traces"] if t["arm"] is not None]
    assert [t["arm"] for t in arms] == list(range(len(audit.arms)))
    for trace, dot, arm in zip(arms, chart["dots"], audit.arms, strict=True):
        figures = receipt["figures"]["arms"][arm]
        p50, quality = figures["loads"][load]["e2e_ms"]["p50"], figures["quality"]["all"]
        assert trace["x"] == [p50["estimate"]] and trace["y"] == [quality["score"]]
        # Where the dot really lies, from its place on the screen: half a pixel is the tolerance.
        assert near(dot[0], p50["estimate"], 0.005 * p50["estimate"]), (arm, load)
        assert near(dot[1], quality["score"], 0.005), (arm, load)
        # An end that the sample is too small to give is not drawn.
        ends = [p50["estimate"] if p50[k] is None else p50[k] for k in ("low", "high")]
        assert near(trace["left"][0], p50["estimate"] - ends[0], 1e-9)
        assert near(trace["right"][0], ends[1] - p50["estimate"], 1e-9)
        assert near(trace["down"][0], quality["score"] - quality["low"], 1e-9)
        light, night = ARMS[trace["arm"]]
        assert trace["colour"] == (night if dark else light)
    assert chart["errorbars"] == 2 * len(arms) and chart["lines"] >= 1
    assert any(t["left"][0] > 0 for t in arms) and all(t["down"][0] > 0 for t in arms)
    assert chart["paper"] == (DARK[CARD] if dark else CARD)
    assert chart["ink"] == (DARK[INK] if dark else INK)
    return len(arms)


def _categories(chart: dict[str, Any], receipt: dict[str, Any], audit: Audit) -> int:
    """One bar an arm and category, as high as the score, with its interval."""
    names = ("all", *audit.categories)
    wanted = [
        receipt["figures"]["arms"][arm]["quality"][name]["score"]
        for arm in audit.arms
        for name in names
    ]
    assert [y for t in chart["traces"] for y in t["y"]] == wanted
    assert chart["ticks"] == len(names), "every category has its label"
    tops = [top for top, _ in chart["bars"]]
    assert len(tops) == len(wanted) == chart["errorbars"]
    assert all(near(a, b, 0.01) for a, b in zip(tops, wanted, strict=True))
    assert all(near(bottom, 0, 0.01) for _, bottom in chart["bars"])
    return len(tops)


def _distribution(found: dict[str, Any], audit: Audit, load: str) -> int:
    """One line an arm, which passes through the median and ends at its slowest request."""
    chart = found[f"times-e2e_ms-{load.replace(':', '-')}"]
    lines = [t for t in chart["traces"] if t["mode"] == "lines"]
    assert len(lines) == chart["lines"] == len(audit.arms)
    for trace, arm in zip(lines, audit.arms, strict=True):
        taken = [
            1000
            * (r.observed.done_s - (r.intended_s if load.startswith("open") else r.observed.sent_s))
            for r in audit.measured
            if r.arm == arm and r.load == load and r.observed.error is None
        ]
        assert near(trace["x"][-1], max(taken), 1e-6) and trace["y"][-1] == 1
        assert near(trace["x"][0], min(taken), 1e-6)
        median = audit.figure(arm, load, "e2e_ms", "p50")
        assert median is not None
        below = [y for x, y in zip(trace["x"], trace["y"], strict=True) if x <= median.estimate]
        assert below and near(below[-1], 0.5, 0.03)
    return len(lines)


def _errors(chart: dict[str, Any], receipt: dict[str, Any], audit: Audit) -> int:
    wanted = sum(
        sum(figures["errors"].values())
        for arm in audit.arms
        for figures in receipt["figures"]["arms"][arm]["loads"].values()
    )
    assert wanted and sum(y for t in chart["traces"] for y in t["y"]) == wanted
    return wanted


def test_the_verdicts_stand_on_top_with_their_reasons(
    tab: Tab, made: tuple[Path, dict[str, Any], Audit]
) -> None:
    """Every candidate's verdict and all its reasons are in the page as they are in the receipt."""
    page, receipt, audit = made
    shown(tab, page, dark=False)
    cards = tab.value(
        "[...document.querySelectorAll('.verdict')].map(c => [c.dataset.arm, "
        "c.querySelector('.decision').textContent, [...c.querySelectorAll('li')].map(l => l.textContent)])"
    )
    assert [c[0] for c in cards] == list(audit.candidates)
    for arm, decision, reasons in cards:
        verdict = receipt["verdicts"][arm]
        assert decision.split()[-1] == verdict["decision"]
        assert reasons == verdict["reasons"]


def test_text_from_outside_stays_text(tab: Tab, made: tuple[Path, dict[str, Any], Audit]) -> None:
    """A name that is markup is shown as it is written and runs nothing."""
    page, _, audit = made
    shown(tab, page, dark=False)
    assert tab.value("typeof hacked") == "undefined"
    assert tab.value("document.querySelectorAll('img[src=x]').length") == 0
    assert ODD.name in tab.value("[...document.querySelectorAll('.key button')].map(b => b.title)")
    names = {t["name"] for c in charts(tab).values() for t in c["traces"]}
    assert any(
        "&lt;img" in name for name in names
    )  # plotly's labels know tags, so they are escaped
    assert tab.value("document.title").startswith("Audit of 4 candidates")


@pytest.mark.parametrize(
    ("deed", "rule"),
    [
        ("new Image().src = 'http://127.0.0.1:9/a.png'", "img-src"),
        ("fetch('http://127.0.0.1:9/').catch(() => 0)", "connect-src"),
        ("document.head.append(Object.assign(document.createElement('script'), {text: 'hacked = 1'}))",
         "script-src-elem"),
    ],
    ids=["picture", "data", "script"],
)  # fmt: skip
def test_the_policy_stops_what_would_get_out(
    tab: Tab, made: tuple[Path, dict[str, Any], Audit], deed: str, rule: str
) -> None:
    """The page's own policy refuses pictures and data from elsewhere, and every other script."""
    shown(tab, made[0], dark=False)
    stopped = tab.value(
        "new Promise((told) => { document.addEventListener('securitypolicyviolation', "
        f"(e) => told(e.violatedDirective), {{once: true}}); {deed}; setTimeout(() => told(''), 3000); }})"
    )
    assert stopped == rule
    assert tab.value("typeof hacked") == "undefined"


def test_the_theme_follows_the_system_and_the_button(
    tab: Tab, made: tuple[Path, dict[str, Any], Audit]
) -> None:
    """A change of the system's scheme redraws every chart; the button overrules it."""
    page = made[0]
    shown(tab, page, dark=False)
    tab.call(
        "Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": "dark"}]
    )
    tab.wait("document.documentElement.dataset.drawn === 'dark'")
    assert {c["paper"] for c in charts(tab).values()} == {DARK[CARD]}
    tab.value("document.getElementById('theme').click()")
    tab.wait("document.documentElement.dataset.drawn === 'light'")
    assert {c["paper"] for c in charts(tab).values()} == {CARD}
    assert tab.errors == []


def test_an_arm_can_be_hidden_in_every_chart(
    tab: Tab, made: tuple[Path, dict[str, Any], Audit]
) -> None:
    """The key's buttons take an arm out of the charts and bring it back."""
    shown(tab, made[0], dark=False)
    before = len(charts(tab)["frontier-e2e_ms-closed-1"]["dots"])
    tab.value("document.querySelector('.key button[data-arm=\"2\"]').click()")
    tab.wait("document.documentElement.dataset.hidden === '2'")
    found = charts(tab)
    assert len(found["frontier-e2e_ms-closed-1"]["dots"]) == before - 1
    visible = {t["arm"] for c in found.values() for t in c["traces"] if t["visible"] is True}
    assert 2 not in visible and {0, 1, 3} <= visible


@pytest.mark.parametrize("width", [1280, 390])
@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_no_label_is_cut_or_covered(
    tab: Tab, made: tuple[Path, dict[str, Any], Audit], dark: bool, width: int
) -> None:
    """Labels lie within their charts, axis labels do not overlap, and the page fits its window."""
    shown(tab, made[0], dark=dark, width=width)
    assert tab.value("document.documentElement.scrollWidth") <= width
    for chart in tab.value(TEXTS):
        left, top, right, bottom = chart["edge"]
        ticks = []
        for text, x0, y0, x1, y1, tick in chart["texts"]:
            inside = x0 >= left - 1 and y0 >= top - 1 and x1 <= right + 1 and y1 <= bottom + 1
            assert inside, f"{chart['id']}: {text!r} is cut"
            if tick:
                ticks.append((text, x0, y0, x1, y1))
        for i, a in enumerate(ticks):
            for b in ticks[i + 1 :]:
                apart = a[3] <= b[1] + 1 or b[3] <= a[1] + 1 or a[4] <= b[2] + 1 or b[4] <= a[2] + 1
                assert apart, f"{chart['id']}: {a[0]!r} covers {b[0]!r}"


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_text_can_be_read_against_its_ground(
    tab: Tab, made: tuple[Path, dict[str, Any], Audit], dark: bool
) -> None:
    """Every text of the page and of the charts has a contrast of 4.5 to 1 (WCAG 2.2, 1.4.3)."""
    shown(tab, made[0], dark=dark)
    pairs = tab.value(
        """
        [...document.querySelectorAll(
          'p, li, td, th, h1, h2, h3, dt, dd, small, summary, button, .decision, .score, svg text')]
          .filter((e) => e.textContent.trim() && !e.closest('.textpoint') && !e.closest('.bars'))
          .map((e) => {
            const style = getComputedStyle(e);
            let at = e, ground = 'rgba(0, 0, 0, 0)';
            while (at && /^rgba\\(0, 0, 0, 0\\)$/.test(ground)) {
              ground = getComputedStyle(at).backgroundColor;
              at = at.parentElement;
            }
            return [e instanceof SVGElement ? style.fill : style.color, ground];
          })
        """
    )
    assert len(pairs) > 200
    worst = min({(contrast(*p), *p) for p in map(tuple, pairs)})
    assert worst[0] >= 4.5, worst
    paper = DARK[CARD] if dark else CARD
    assert min(contrast_hex(pair[dark], paper) for pair in ARMS) >= 4.5


def contrast(first: str, second: str) -> float:
    """Contrast of two CSS colours such as `rgb(1, 2, 3)`."""
    a, b = sorted((luminance(first), luminance(second)), reverse=True)
    return (a + 0.05) / (b + 0.05)


def contrast_hex(first: str, second: str) -> float:
    return contrast(*(f"rgb{tuple(bytes.fromhex(x[1:]))}" for x in (first, second)))


def luminance(colour: str) -> float:
    """Relative luminance of WCAG 2.2."""
    inside = colour[colour.index("(") + 1 : colour.index(")")]
    parts = [float(x) / 255 for x in inside.replace(",", " ").split()[:3]]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
    return sum(w * c for w, c in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


def test_pictures_and_tables_are_there(tab: Tab, made: tuple[Path, dict[str, Any], Audit]) -> None:
    """Each example shows its picture, both answers, and each chart has its table."""
    page, _, audit = made
    shown(tab, page, dark=False)
    chosen, _ = examples(audit)
    found = tab.value(
        "[...document.querySelectorAll('.example')].map(e => [e.dataset.item, "
        "[...e.querySelectorAll('img')].map(i => i.complete && i.naturalWidth > 0), "
        "[...e.querySelectorAll('[data-arm]')].map(a => [a.dataset.arm, "
        "a.querySelector('.answer')?.textContent ?? ''])])"
    )
    assert [f[0] for f in found] == [e.item for e in chosen]
    for (_, pictures, answers), example in zip(found, chosen, strict=True):
        assert pictures == [True]
        told = [(t.arm, t.text) for t in (example.baseline, *example.differing)]
        assert [tuple(a) for a in answers] == told
        assert told[0][0] == BASELINE
    plots, tables, ids, named = tab.value(
        "[document.querySelectorAll('.plot').length, document.querySelectorAll('figure table').length, "
        "[...document.querySelectorAll('[id]')].map(e => e.id), "
        "[...document.querySelectorAll('.plot')].every(p => p.getAttribute('aria-label').length > 20)]"
    )
    own = [i for i in ids if not i.startswith("clip") and i]
    assert plots == tables and named
    assert len(own) == len(set(own))
