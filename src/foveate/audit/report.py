"""`foveate audit report`: a finished audit as one HTML page that opens without network."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from foveate.audit.figures_load import latencies_ms
from foveate.audit.receipt import read_receipt
from foveate.audit.report_data import TIMES, Audit
from foveate.audit.report_gallery import gallery
from foveate.audit.report_html import Html, html, join
from foveate.audit.report_load import distribution, errors, ratio_metrics, ratios
from foveate.audit.report_look import Chart, Section
from foveate.audit.report_page import page
from foveate.audit.report_pictures import reloaded
from foveate.audit.report_quality import categories, drops, frontier
from foveate.audit.report_tables import costs, glance, notes, record, tests, verdicts, verification
from foveate.audit.tables import ROWS, read_rows
from foveate.audit.verify import Verified, verify
from foveate.core.errors import InputError

if TYPE_CHECKING:
    from foveate.audit.workload import Workload

FILE = "report.html"
RATIOS = ("ttft", "e2e", "tpot", "throughput", "goodput", "cpu", "energy")
"""Speed metrics that get a chart; others only where a bound names them."""

FRONTIERS = (
    (("ttft_ms", "p50"), "time to the first token, median", "ms", True),
    (("e2e_ms", "p50"), "whole answer, median", "ms", True),
    (("throughput_rps",), "requests a second", "", False),
)


def write_report(folder: Path, out: Path | None = None, workload: Workload | None = None) -> Path:
    """Write the page of the audit in `folder` to `out`, by default report.html in it; its path.

    workload: the one that was audited, for pictures; None loads it again from where the spec says,
    and where that fails the examples are text only. Where an arm is our engine and its model lies on
    this machine, the few questions that are shown are answered once more to see which patches were
    kept. The receipt is verified on the way, and the page says so if it does not follow from its
    rows.

    InputError where there is no receipt or the page cannot be written.
    """
    receipt, home = read_receipt(folder)
    verified = verify(folder)
    audit = Audit(receipt, read_rows(home / ROWS))
    if not audit.arms:
        raise InputError(f"the receipt in {home} has no figures: nothing was measured")
    target = out or home / FILE
    found, why = (workload, "") if workload is not None else reloaded(receipt)
    items = {i.id: i for i in found.items} if found is not None else {}
    text = page(
        audit,
        title=_title(audit),
        lead=_lead(audit),
        top=join([_fault(verified), glance(audit), verdicts(audit)]),
        sections=[*_charts(audit), gallery(audit, items, why), *_end(audit, verified, home)],
    )
    unfinished = target.with_name(target.name + ".part")
    try:
        unfinished.write_text(text, encoding="utf-8")
        os.replace(unfinished, target)
    except OSError as error:
        raise InputError(f"{target} cannot be written: {error.strerror}") from None
    return target


def _title(audit: Audit) -> str:
    count = len(audit.candidates)
    name = audit.receipt.get("workload", {}).get("name", "a workload")
    return f"Audit of {count} candidate{'s' * (count != 1)} on {name}"


def _lead(audit: Audit) -> str:
    r = audit.receipt
    asked = len(audit.measured)
    n = r.get("workload", {}).get("n")
    of = f" on {n} questions" if n else ""
    loads = ", ".join(audit.loads)
    made = str(r.get("made")).replace("T", " ").replace("+00:00", " UTC")
    return f"{asked:,} measured requests{of}, interleaved, under {loads}. Made {made}."


def _fault(verified: Verified) -> Html:
    """What must stand above all else: a receipt that its rows do not bear out."""
    if verified.ok:
        return Html("")
    lines = join(html("<li>{}</li>", f) for f in verified.faults[:10])
    more = len(verified.faults) - 10
    rest = html("<p>and {} more</p>", more) if more > 0 else Html("")
    return html(
        '<div class="warn" role="alert"><strong>This receipt does not follow from its rows.</strong>'
        "<ul>{}</ul>{}</div>",
        lines, rest,
    )  # fmt: skip


def _charts(audit: Audit) -> Iterable[Section]:
    bounds = audit.receipt.get("bounds") or {}
    for names, title, unit, less in FRONTIERS:
        found = [frontier(audit, x, names, title, unit, less_is_better=less) for x in audit.loads]
        yield Section(
            f"frontier-{names[0]}",
            f"Quality against {title.partition(',')[0]}",
            f"Up and to the {'left' if less else 'right'} is better. Bars are 95 % intervals, as far as "
            "the sample gives them; the dotted line joins the arms that no other beats in both.",
            _present(found),
        )
    yield Section(
        "quality",
        "Quality by category",
        "Averages hide what breaks first. Bars are 95 % intervals; further right is a larger drop. A "
        "drop is paired, question by question: judge by it, not by whether two scores overlap. A request "
        "that failed scores 0, and a dashed line is a bound.",
        _present([categories(audit), drops(audit, bounds)]),
    )
    asked = [str(b.get("metric")) for b in bounds.get("min_speedup") or ()]
    metrics = [m for m in ratio_metrics(audit) if m in RATIOS or m in asked]
    yield Section(
        "speed",
        "Speed against the baseline",
        "Right is better. Geometric mean of the ratio over paired blocks with its 95 % interval. Where "
        "the interval crosses 1, this audit does not show a difference. A dashed line is a bound that "
        "was asked for.",
        _present([ratios(audit, m, bounds) for m in sorted(metrics, key=_rank)]),
    )
    times = {
        (arm, load): latencies_ms(r for r in audit.measured if r.arm == arm and r.load == load)
        for arm in audit.arms
        for load in audit.loads
    }
    for name in ("ttft_ms", "e2e_ms"):
        yield _distributions(audit, name, times)
    failed = errors(audit)
    yield Section(
        "errors",
        "Errors",
        "Failed requests by kind; a latency is that of a request that succeeded."
        if failed
        else "No measured request failed.",
        _present([failed]),
    )
    yield Section(
        "costs",
        "Cost",
        "Of the server, where its counters could be read; for an arm in the auditor's own process, CPU "
        "and memory hold the auditor too. Peaks are the highest of all turns.",
        body=costs(audit),
    )


def _rank(metric: str) -> int:
    return RATIOS.index(metric) if metric in RATIOS else len(RATIOS)


def _present(charts: Iterable[Chart | None]) -> tuple[Chart, ...]:
    return tuple(c for c in charts if c is not None)


def _distributions(
    audit: Audit, name: str, times: Mapping[tuple[str, str], Mapping[str, Any]]
) -> Section:
    short = name.removesuffix("_ms")
    every = [float(x) for found in times.values() for x in found[short]]
    above = [x for x in every if x > 0]
    reach = (min(above), max(above)) if above else (1.0, 1.0)
    return Section(
        f"times-{short}",
        f"Distribution: {TIMES[name]}",
        "The share of requests that took no longer, on one scale for all loads; further left is "
        "faster. In open loops a request counts from when it ought to have left.",
        _present(
            distribution(audit, load, name, {a: times[a, load][short] for a in audit.arms}, reach)
            for load in audit.loads
        ),
    )


def _end(audit: Audit, verified: Verified, home: Path) -> Iterable[Section]:
    found = tests(audit)
    if found:
        yield Section(
            "tests",
            "Tests",
            "Every test a verdict rests on. p values are adjusted after Holm within a family (quality, "
            "speed, errors) over all arms and categories.",
            body=found,
        )
    lines = [str(n) for n in audit.receipt.get("notes", ())]
    lines += [str(n) for n in audit.receipt.get("workload", {}).get("notes", ())]
    if lines:
        yield Section(
            "notes", "Notes", "What a reader of these figures must know.", body=notes(lines)
        )
    yield Section(
        "record", "Machine, versions, settings", "As the receipt holds them.", body=record(audit)
    )
    state = (
        f"When this page was written, all {verified.compared:,} figures followed from the rows."
        if verified.ok
        else "When this page was written, the receipt did not follow from the rows; see the top."
    )
    yield Section("verify", "How to verify", state, body=verification(home.resolve().name))
