"""The report's gallery: questions on which the answers differ, with pictures and kept patches."""

from __future__ import annotations

from collections.abc import Mapping

from foveate.audit.records import Item
from foveate.audit.report_data import Audit
from foveate.audit.report_examples import Example, Told, examples
from foveate.audit.report_html import Html, html, join, number
from foveate.audit.report_look import Section
from foveate.audit.report_page import answer_text, dot, note
from foveate.audit.report_pictures import Shown, kept, originals


def gallery(audit: Audit, items: Mapping[str, Item], why: str) -> Section:
    """The section; `items` of the workload by id, empty where it could not be loaded again for the
    reason `why`.
    """
    chosen, count = examples(audit)
    asked = len({r.item for r in audit.measured})
    lead = f"Some candidate answered {count} of {asked} questions otherwise than the baseline."
    if not chosen:
        lead = f"Every candidate answered all {asked} questions as the baseline did."
        return Section("examples", "Where the answers differ", lead, body=Html(" "))
    if count > len(chosen):
        lead += f" {len(chosen)} of them are shown: every candidate first, then other categories."
    if items:
        lead += (
            " Lit patches are those whose places the kept tokens take; where tokens leave inside the "
            "language model, those that go deepest."
        )
    else:
        lead += f" Pictures are not shown: {why}."
    pictures = originals(chosen, items) if items else {}
    lit = kept(audit, chosen, items) if items else {}
    body = join(_example(audit, e, items.get(e.item), pictures, lit) for e in chosen)
    return Section("examples", "Where the answers differ", lead, body=body)


def _example(
    audit: Audit,
    example: Example,
    item: Item | None,
    pictures: Mapping[str, Shown],
    lit: Mapping[tuple[str, str], Shown],
) -> Html:
    question = item.question if item is not None else ""
    right = "; ".join(example.references)
    same = ", ".join(audit.label(a) for a in example.agreeing)
    cells = [_cell(audit, example.baseline, pictures.get(example.item), example.baseline)]
    cells += [
        _cell(audit, t, lit.get((t.arm, example.item)), example.baseline) for t in example.differing
    ]
    return html(
        '<article class="example" data-item="{item}"><h3><bdi>{question}</bdi></h3>'
        '<p class="soft">{item}{category}{right}</p><div class="answers">{cells}</div>{same}</article>',
        item=example.item,
        question=question or example.item,
        category=f" \u00b7 {example.category}" if example.category else "",
        right=f" \u00b7 reference: {right}" if right else "",
        cells=join(cells),
        same=note(f"Same answer as the baseline: {same}") if same else Html(""),
    )


def _cell(audit: Audit, told: Told, shown: Shown | None, base: Told) -> Html:
    picture, remark = Html(""), ""
    if shown is not None and shown.address:
        what = "as it was sent" if told is base else "kept patches"
        picture = html('<img alt="{}: {}" src="{}">', told.arm, what, shown.address)
        remark = shown.note
    elif shown is not None:
        picture = html('<div class="nopicture">{}</div>', shown.reason)
    return html(
        '<div data-arm="{arm}">{picture}<div class="who">{dot}<span>{arm}</span></div>{answer}{score}'
        "{remark}</div>",
        arm=told.arm,
        picture=picture,
        dot=dot(audit, told.arm),
        answer=answer_text(told.text),
        score=_score(told, base),
        remark=html("<small>{}</small>", remark) if remark else Html(""),
    )


def _score(told: Told, base: Told) -> Html:
    if told.score is None:
        return Html("")
    tone = ""
    if told is not base and base.score is not None and told.score != base.score:
        tone = "good" if told.score > base.score else "bad"
    words = {"good": ", better than the baseline", "bad": ", worse than the baseline"}.get(tone, "")
    return html('<span class="score {}">score {}{}</span>', tone, number(told.score), words)
