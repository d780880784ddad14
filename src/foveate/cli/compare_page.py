"""The comparison as one HTML file that holds everything: style, figures and pictures."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from string import Template
from typing import Any

from foveate.cli.compare_run import Cell, Entry, Figures, Look, Outcome, Share, figures
from foveate.cli.compare_style import STYLE
from foveate.cli.console import plain
from foveate.cli.list import describe, paper_text
from foveate.cli.record import GUIDE, milliseconds
from foveate.core.report import PHASES

# The policy forbids every fetch: the page is complete, and whoever opens it tells no one.
PAGE = Template("""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy"
 content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<title>$title</title>
<style>$style</style>
</head>
<body>
<main>
<h1>$title</h1>
<p class="soft">$lead</p>
<dl class="facts">$facts</dl>
<h2>Figures</h2>
<div class="table" tabindex="0"><table>
<thead><tr>$head</tr></thead>
<tbody>
$rows
</tbody>
</table></div>
<div class="key">$key</div>
$reading
<h2>Kept patches</h2>
$pictures
<h2>The methods</h2>
<dl class="methods">$methods</dl>
</main>
</body>
</html>
""")

LEAD = (
    "Every method answered the same questions about the same pictures, in turns, one request at a time. "
    "Lit patches are those whose places the kept tokens take; a method that merges carries others along."
)


def page(outcome: Outcome, facts: Mapping[str, object]) -> str:
    """The whole page; `facts` are shown at its head."""
    found = {e.name: figures(outcome.column(e)) for e in outcome.entries}
    known = any(look.truth is not None for look in outcome.looks)
    longest = max((sum(f.ms.values()) for f in found.values()), default=0.0)
    heads = ["method", "kept", "of", "same answer", *(["right"] if known else []), "time"]
    guided = any(GUIDE in f.ms for f in found.values())
    phases = (*([GUIDE] if guided else []), *PHASES)
    heads += [*(f"{p} ms" for p in phases), "first token ms", "KV kB"]
    head = "".join(f'<th scope="col">{escape(h)}</th>' for h in heads)
    count = len(outcome.looks)
    return PAGE.substitute(
        title=f"{len(outcome.entries) - 1} methods on {count} picture{'s' * (count != 1)}",
        style=STYLE,
        lead=escape(LEAD),
        facts="".join(
            f"<div><dt>{escape(k.replace('_', ' '))}</dt><dd>{_text(v)}</dd></div>"
            for k, v in facts.items()
        ),
        head=head,
        rows="\n".join(
            _row(e, found[e.name], known, longest, len(heads), phases) for e in outcome.entries
        ),
        key="".join(f'<span><i class="{p}"></i>{p}</span>' for p in phases),
        reading="".join(f"<p><small>{escape(line)}</small></p>" for line in _reading(known)),
        pictures="\n".join(
            _look(outcome, look, row) for look, row in zip(outcome.looks, outcome.rows, strict=True)
        ),
        methods="".join(_about(e) for e in outcome.entries[1:]),
    )


def _text(value: object) -> str:
    """Answers and names come from outside: no markup, no control characters."""
    return escape(plain(value))


def _breakable(name: str) -> str:
    """A plan's text, which may break between its parts."""
    return _text(name).replace("+", "+<wbr>").replace(",", ",<wbr>")


def _reading(known: bool) -> list[str]:
    lines = [
        "Kept, of: visual tokens of a picture, means; over the language model's layers where tokens "
        "leave inside it, and the lit patches are those that go deepest. "
        "Same answer: word for word that of all tokens. "
        "KV kB: keys and values that the device holds at the end of an answer, a mean. "
        "The bars are 95 % intervals of each share: differences that are small beside them may be chance.",
        "Times are medians of wall-clock milliseconds on the machine that wrote this page; the median "
        "of a sum is not the sum of medians. Preprocess holds what pixel methods do.",
    ]
    if known:
        lines.append("Right: the true answer but for case and a final full stop.")
    return lines


def _row(
    entry: Entry, f: Figures, known: bool, longest: float, columns: int, phases: tuple[str, ...]
) -> str:
    kind = (
        "control"
        if entry.control
        else "full"
        if entry.plan.is_identity and not entry.error
        else "method"
    )
    head = f'<tr class="{kind}"><th scope="row">{_breakable(entry.name)}</th>'
    if entry.error is not None:
        reason = _text(entry.error)
        return f'{head}<td class="reason left" colspan="{columns - 1}">not on this model: {reason}</td></tr>'
    cells = [_number(f.tokens_kept), _number(f.tokens_in), _share(f.agreement)]
    cells += [_share(f.accuracy)] if known else []
    cells += [_bar(f, longest), *(_ms(f.ms.get(p)) for p in phases), _ms(f.ttft_ms)]
    cells += [_number(None if f.kv_bytes is None else f.kv_bytes / 1000)]
    return head + "".join(f"<td>{c}</td>" for c in cells) + "</tr>"


def _bar(f: Figures, longest: float) -> str:
    """Stages beside each other, in the scale of the slowest entry."""
    parts = [p for p in (GUIDE, *PHASES) if p in f.ms and longest]
    inner = "".join(
        f'<i class="{p}" style="width:{100 * f.ms[p] / longest:.2f}%" '
        f'title="{p} {milliseconds(f.ms[p])}"></i>'
        for p in parts
    )
    return f'<div class="bar">{inner}</div>'


def _ms(value: float | None) -> str:
    return "-" if value is None else f"{value:,.0f}" if value >= 100 else f"{value:.1f}"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:,.1f}".removesuffix(".0")


def _share(share: Share | None) -> str:
    if share is None:
        return "-"
    low, high = 100 * share.low, 100 * share.high
    title = f"95 % interval {low:.0f} to {high:.0f} %"
    return (
        f"{share.hits} of {share.of}"
        f'<span class="range" title="{title}"><i style="left:{low:.1f}%;width:{high - low:.1f}%"></i>'
        f'<b style="left:{100 * share.share:.1f}%"></b></span>'
    )


def _look(outcome: Outcome, look: Look, row: list[Cell]) -> str:
    full = row[0]
    truth = (
        f'<span class="soft">truth: {_text(look.truth)}</span>' if look.truth is not None else ""
    )
    head = (
        f"<summary><b>{_text(look.title)}</b><span>{_text(look.question)}</span>{truth}</summary>"
    )
    if full.error is not None:
        return f'<details open>{head}<div class="grid"><p>{_text(full.error)}</p></div></details>'
    shown = [(e, c) for e, c in zip(outcome.entries, row, strict=True) if e.error is None]
    figures_ = "".join(_figure(e, c) for e, c in shown)
    return f'<details open>{head}<div class="grid">{figures_}</div></details>'


def _figure(entry: Entry, cell: Cell) -> str:
    name = _text(entry.name)
    if cell.picture:
        above = f'<img alt="{name}: kept patches" src="{escape(cell.picture)}">'
    else:
        above = f'<div class="none">{_text(cell.error or cell.note or "not drawn")}</div>'
    if cell.report is None:
        return f"<figure>{above}<figcaption><b>{name}</b></figcaption></figure>"
    kept, whole = round(cell.report.tokens_by_layer), cell.report.visual_tokens_in
    mark = {True: ' <span class="right">right</span>', False: ' <span class="wrong">wrong</span>'}
    kind = "" if entry.plan.is_identity else " same" if cell.same else " other"
    answer = _text(cell.answer) or "no words"
    verdict = mark[cell.right] if cell.right is not None else ""
    return (
        f'<figure>{above}<figcaption><b>{name}</b><span class="soft">{kept} of {whole}</span>{verdict}<br>'
        f'<span class="answer{kind}">{answer}</span></figcaption></figure>'
    )


def _about(entry: Entry) -> str:
    lines: list[Any] = []
    for method in entry.plan.methods:
        row = describe(type(method))
        facts = [row["stage"], row["evidence"]]
        facts += [paper_text(row)] if row["paper"] else []
        lines.append(f"{_text(row['summary'])}<br><small>{_text(' · '.join(facts))}</small>")
    plan = f" <small>{_text(entry.plan)}</small>" if str(entry.plan) != entry.name else ""
    return f"<dt>{_text(entry.name)}</dt><dd>{'<br>'.join(lines)}<br>{plan}</dd>"
