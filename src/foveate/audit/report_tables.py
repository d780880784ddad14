"""The report's text parts: verdicts, costs, tests, the machine, how to verify."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from foveate.audit.report_data import Audit
from foveate.audit.report_html import (
    Estimate,
    Html,
    estimate,
    facts,
    html,
    join,
    number,
    safe,
    spread,
    stacked,
    table,
)
from foveate.audit.report_page import dot
from foveate.audit.target import BASELINE

FEW, SHOWN = 3, 3  # of few candidates so many reasons stand open, of more the first alone
MARKS = {"accepted": "\u2713", "refused": "\u2717", "undecided": "?"}
COSTS = (
    ("requests", "requests", ""),
    ("throughput_rps", "requests a second", ""),
    ("goodput_rps", "goodput a second", ""),
    ("tokens_per_s", "tokens a second", ""),
    ("cpu_s_per_request", "CPU a request", "s"),
    ("device_s_per_request", "device time a request", "s"),
    ("rss_peak_bytes", "peak RSS", "bytes"),
    ("device_peak_bytes", "peak device memory", "bytes"),
    ("kv_peak_bytes", "peak KV cache", "bytes"),
    ("kv_bytes", "KV cache a request", "bytes"),
    ("visual_tokens", "visual tokens", ""),
    ("prompt_tokens", "prompt tokens", ""),
    ("completion_tokens", "answer tokens", ""),
    ("joules_per_request", "energy a request", "J"),
)


def verdicts(audit: Audit) -> Html:
    """One card for each candidate, in the order of the arms."""
    found = audit.receipt.get("verdicts", {})
    cards = join(_card(audit, arm, found[arm]) for arm in audit.candidates if arm in found)
    return html('<div class="verdicts" id="verdicts">{}</div>', cards)


def _card(audit: Audit, arm: str, verdict: Mapping[str, Any]) -> Html:
    decision = str(verdict.get("decision"))
    reasons = [html("<li>{}</li>", r) for r in verdict.get("reasons", ())]
    shown = SHOWN if len(audit.candidates) <= FEW else 1
    more = html(
        "<details><summary>{} more</summary><ul>{}</ul></details>",
        len(reasons) - shown, join(reasons[shown:]),
    )  # fmt: skip
    needed = verdict.get("needed") or {}
    wants = " and ".join(f"{number(n)} {what}" for what, n in needed.items() if n is not None)
    return html(
        '<article class="verdict {kind}" data-arm="{arm}"><div class="who">{dot}<span>{arm}</span></div>'
        "<p>{badge}</p>"
        "<ul>{reasons}</ul>{more}{needed}</article>",
        kind=decision if decision in MARKS else "undecided",
        arm=arm,
        dot=dot(audit, arm),
        badge=_badge(verdict),
        reasons=join(reasons[:shown]),
        more=more if len(reasons) > shown else Html(""),
        needed=html("<p>Needed for a decision: {}.</p>", wants) if wants else Html(""),
    )


def glance(audit: Audit) -> Html:
    """One line an arm under the heaviest closed load, or the last load where none is closed."""
    closed = [x for x in audit.loads if x.startswith("closed")]
    load = (closed or list(audit.loads))[-1]
    found = audit.receipt.get("verdicts", {})
    rows = []
    for arm in audit.arms:
        speed = ("ttft", "e2e", "throughput")
        rows.append([
            audit.label(arm), _badge(found.get(arm)), stacked(audit.score(arm), "score"),
            "" if arm == BASELINE else stacked(audit.drop(arm), "points"),
            *("1" if arm == BASELINE else stacked(audit.ratio(arm, load, m), "times") for m in speed),
            stacked(audit.figure(arm, load, "error_rate"), "%"),
            number(audit.at(arm, load).get("visual_tokens")),
        ])  # fmt: skip
    head = ("arm", "verdict", "score", "drop", "first token faster", "whole answer faster",
            "throughput higher", "errors", "visual tokens")  # fmt: skip
    return table(head, rows, f"At a glance, under {load}; small: 95 % intervals")


def _badge(verdict: Mapping[str, Any] | None) -> Html:
    if verdict is None:
        return Html("")
    decision = str(verdict.get("decision"))
    kind = decision if decision in MARKS else "undecided"
    return html(
        '<span class="{kind}"><span class="decision"><span aria-hidden="true">{mark}</span> {what}</span>'
        "</span>",
        kind=kind, mark=MARKS[kind], what=decision,
    )  # fmt: skip


def costs(audit: Audit) -> Html:
    """A table a load: what every arm used. What no arm measured at all is named below, once."""
    known = [
        (name, title, unit)
        for name, title, unit in COSTS
        if any(audit.figure(a, x, name) for a in audit.arms for x in audit.loads)
    ]
    missing = [title for name, title, _ in COSTS if name not in {k[0] for k in known}]
    tables = join(
        table(
            ("arm", *(title for _, title, _ in known)),
            [
                (audit.label(a), *(_measured(audit.figure(a, load, n), u) for n, _, u in known))
                for a in audit.arms
                if audit.at(a, load)
            ],
            f"Under {load}",
        )
        for load in audit.loads
    )
    parts = [tables, _carbon(audit)]
    if missing:
        parts.append(html("<p>Not measured for any arm: {}.</p>", ", ".join(missing)))
    return join(parts)


def _carbon(audit: Audit) -> Html:
    """Milligrams of CO2e a request by arm and load, or why there are none."""
    found = audit.receipt.get("carbon") or {}
    kg = found.get("kg_co2e_per_request") or {}
    if not any(x is not None for loads in kg.values() for x in loads.values()):
        why = "; ".join(found.get("missing") or ("this receipt has no place",))
        return html("<p>Carbon: not known ({}).</p>", why)
    rows = [
        [audit.label(a), *(_milligrams(kg.get(a, {}).get(x)) for x in audit.loads)]
        for a in audit.arms
    ]
    place = f"{number(found['g_per_kwh'])} g CO2e/kWh ({found['grid_source']}), PUE {found['pue']}"
    return table(("arm", *audit.loads), rows, f"mg CO2e a request, at {place}")


def _milligrams(kg: float | None) -> object:
    return Html('<span class="none">not measured</span>') if kg is None else number(kg * 1e6)


def _measured(found: Estimate | None, unit: str) -> object:
    if found is None:
        return Html('<span class="none">not measured</span>')
    return spread(found, unit)


TEST_UNITS = {"quality": "points", "speed": "times", "errors": "%"}


def tests(audit: Audit) -> Html:
    """Every statistical test that a verdict rests on, one row each."""
    found = audit.receipt.get("verdicts", {})
    rows = [_test(audit, a, t) for a in audit.candidates for t in found.get(a, {}).get("tests", ())]
    head = ("arm", "test of", "estimate", "bound", "n", "counts for acceptance", "p of refusing",
            "p of accepting", "outcome", "needed")  # fmt: skip
    return table(head, rows, "Tests behind the verdicts") if rows else Html("")


def _test(audit: Audit, arm: str, test: Mapping[str, Any]) -> list[object]:
    unit = TEST_UNITS.get(str(test["family"]), "")
    bound = "" if test["bound"] is None else number(test["bound"], unit)
    return [
        audit.label(arm), f"{test['family']}: {test['subject']}", spread(estimate(test), unit),
        bound, number(test["n"]), "yes" if test["required"] else "no",
        _p(test["p_refuse"]), _p(test["p_accept"]), str(test["outcome"]),
        "" if test["needed"] is None else number(test["needed"]),
    ]  # fmt: skip


def _p(value: float) -> str:
    return f"{value:.3f}" if value >= 0.001 else f"{value:.0e}"


def record(audit: Audit) -> Html:
    """Machine, versions, seeds, arms, bounds and hashes, as the receipt holds them."""
    r = audit.receipt
    parts: dict[str, Any] = {
        "made": r.get("made"),
        "foveate": r.get("foveate"),
        "python": r.get("python"),
        "workload": r.get("workload"),
        "machine of the auditor": r.get("hardware"),
        "libraries": r.get("libraries"),
        "seeds": r.get("seeds"),
        "arms": r.get("arms"),
        "bounds": r.get("bounds"),
        "hashes": {
            "receipt": r.get("digest"),
            "spec": r.get("spec_hash"),
            **(r.get("files") or {}),
        },
    }
    shown = facts({k: v for k, v in parts.items() if v is not None})
    spec = html(
        "<details><summary>The whole spec</summary>{}</details>", facts(r.get("spec") or {})
    )
    return join([shown, spec])


def notes(lines: Sequence[str]) -> Html:
    return html("<ul>{}</ul>", join(html("<li>{}</li>", x) for x in lines)) if lines else Html("")


def verification(folder: str) -> Html:
    """The commands with which anyone checks this page's figures."""
    shell = folder if all(c.isalnum() or c in "._-" for c in folder) else "'FOLDER'"
    lines = (
        f"foveate audit verify {shell}    # computes every figure and verdict from the rows again",
        f"foveate audit rerun {shell} --out again    # runs the same audit once more",
        f"foveate audit report {shell}    # writes this page",
    )
    return html(
        "<p>The folder holds receipt.json, rows.parquet (one row a request) and blocks.parquet (the "
        "counters of every turn). Every figure here comes from the receipt, and every figure of the "
        "receipt from the rows.</p><pre>{}</pre>",
        join(map(safe, lines)),
    )
