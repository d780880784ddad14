"""A comparison in words: the columns of its table, Markdown, a JSON object, and what is significant."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from foveate.core.errors import FoveateError

from .evaluate import LEVEL_NAMES
from .judge import ALL, ALPHA, Judged, Pair, Result
from .paired import Comparison, Entry

PLAIN = ("family", "accuracy", "95 % interval", "prior", "1-3 things", "4-6")
PAIRED = (
    "family", "run", "kept", "accuracy", "95 % interval", "difference", "p", "same answer",
    "evidence kept",
)  # fmt: skip


def columns(found: Comparison) -> tuple[str, ...]:
    """Heads of the table: with plans beside all tokens, or of all tokens alone."""
    return PAIRED if len(found.entries) > 1 else PLAIN


def line(found: Comparison, result: Result) -> list[str]:
    """One line of the table. A difference that is significant bears a star."""
    row, pair = result.row, result.against_full
    interval = f"{row.low:.2f} to {row.high:.2f}"
    if len(found.entries) == 1:
        things = [_share(row.few), _share(row.many)]
        return [result.cell.title, f"{row.accuracy:.2f}", interval, f"{row.prior:.2f}", *things]
    return [
        result.cell.title,
        result.entry.name + (" (control)" if result.entry.role == "control" else ""),
        f"{result.tokens_kept:.0f} of {result.tokens_in:.0f}",
        f"{row.accuracy:.2f}",
        interval,
        _difference(pair),
        "" if pair is None else probability(pair.p_holm),
        _share(result.agreement),
        _share(result.evidence_kept),
    ]


def _share(share: float | None) -> str:
    return "" if share is None else f"{share:.2f}"


def _difference(pair: Pair | None) -> str:
    return "" if pair is None else f"{pair.difference:+.2f}" + (" *" if pair.significant else "")


def probability(p: float) -> str:
    """A p to three digits; what lies below is said to lie below."""
    return "<.001" if p < 0.001 else f"{p:.3f}"


def notes(found: Comparison, judged: Judged) -> list[str]:
    """How the figures came about, and which differences are significant."""
    out = [
        f"{found.n} questions a line, {found.split} split, seed {found.seed}, greedy. Intervals are "
        "95 % Wilson intervals."
    ]
    if judged.pooled:
        prior = judged.pooled[0].row.prior
        out.append(f"The line {ALL.family} pools its families; their blind prior is {prior:.2f}.")
    if len(found.entries) == 1:
        out.append(
            "Prior: accuracy of the most frequent training answer for the type of question, without "
            "the picture; things: shapes in the picture."
        )
        return out
    priors = ", ".join(f"{c.title} {found.priors[c]:.2f}" for c in found.cells if c in found.priors)
    out.append(f"Blind prior, without the picture: {priors}.")
    out.append(
        "Differences are taken on the same samples against all tokens; p: exact McNemar test, "
        f"adjusted by Holm over the {judged.tests['plan']} comparisons of the plans, and apart over "
        f"the {judged.tests['control']} of the controls; * below {ALPHA:.2f}."
    )
    out.append(
        "Evidence kept: share of the tokens under the answer's evidence boxes that entered the "
        "language model. A merged token counts at its anchor; a smaller picture is counted on its "
        "own grid, so it keeps all of it, coarser."
    )
    return out + conclusions(judged)


def conclusions(judged: Judged) -> list[str]:
    """One sentence for each plan, and one for each plan against its controls."""
    out = []
    tested = [r for r in judged.lines() if r.entry.role == "plan" and r.against_full]
    for name in dict.fromkeys(r.entry.name for r in tested):
        sure = []
        for r in tested:
            pair = r.against_full
            if r.entry.name == name and pair is not None and pair.significant:
                p = probability(pair.p_holm)
                sure.append(f"{r.cell.title} {pair.difference:+.2f} ({_equals(p)})")
        what = ", ".join(sure) if sure else "none, which does not show that it equals all tokens"
        out.append(f"{name} against all tokens, significant: {what}.")
    for name in dict.fromkeys(a.plan.name for a in judged.against_controls):
        parts = []
        for a in judged.against_controls:
            if a.plan.name == name:
                sign = "significant" if a.pair.significant else "not significant"
                p = _equals(probability(a.pair.p_holm))
                parts.append(f"{a.control.name} {a.pair.difference:+.2f} ({p}, {sign})")
        out.append(f"{name} less its controls, all families: {'; '.join(parts)}.")
    return out


def _equals(p: str) -> str:
    return f"p {p.replace('<', '< ')}" if p.startswith("<") else f"p = {p}"


def refusals(found: Comparison) -> list[str]:
    """Why runs or cells are missing from the table."""
    out = [f"{e.name}: not on this model: {e.error}" for e in found.entries if e.error is not None]
    whole = {e.name for e in found.entries if e.error is not None}
    out += [
        f"{name} on {cell.title}: {error}"
        for (name, cell), error in found.errors.items()
        if name not in whole
    ]
    return out


def markdown(found: Comparison, judged: Judged) -> str:
    """The table with its notes, as a page."""
    heads = columns(found)
    lines = [
        f"# Lab: {found.model}",
        "",
        "| " + " | ".join(heads) + " |",
        "|" + "---|" * len(heads),
    ]
    for result in judged.lines():
        cells = [part.replace("*", "\\*") for part in line(found, result)]
        lines.append("| " + " | ".join(cells) + " |")
    for text in [*notes(found, judged), *refusals(found)]:
        lines += ["", text.replace("*", "\\*")]
    return "\n".join(lines) + "\n"


def as_dict(found: Comparison, judged: Judged) -> dict[str, Any]:
    """The comparison as one JSON object; figures that were not measured are None."""
    return {
        "model": found.model,
        "split": found.split,
        "seed": found.seed,
        "n": found.n,
        "confidence": 0.95,
        "alpha": ALPHA,
        "tests": judged.tests,
        "runs": [_entry(found, e) for e in found.entries],
        "rows": [_result(r) for r in judged.results],
        "pooled": [_result(r) for r in judged.pooled],
        "against_controls": [
            {"plan": a.plan.name, "control": a.control.name, **_paired(a.pair, "control", "plan")}
            for a in judged.against_controls
        ],
        "errors": [
            {"run": name, "family": cell.family, "level": cell.level, **_error(error)}
            for (name, cell), error in found.errors.items()
        ],
    }


def answers(found: Comparison) -> list[dict[str, Any]]:
    """Every question with its truth and each run's answer, for those who want to look again."""
    out = []
    for cell in found.cells:
        runs = {e.name: found.runs.get((e.name, cell)) for e in found.entries}
        for i, sample in enumerate(found.tested(cell)):
            given = {name: run.texts[i] for name, run in runs.items() if run is not None}
            right = {name: run.right[i] for name, run in runs.items() if run is not None}
            place = {"family": cell.family, "level": cell.level, "sample": i}
            said = {"question": sample.question, "truth": sample.answer}
            out.append({**place, **said, "answers": given, "right": right})
    return out


def _entry(found: Comparison, entry: Entry) -> dict[str, Any]:
    return {
        "name": entry.name,
        "role": entry.role,
        "plan_hash": entry.plan.resolved(mrope=found.mrope).hash,
        "control_of": list(entry.controls),
        "error": _error(entry.error) if entry.error is not None else None,
    }


def _result(result: Result) -> dict[str, Any]:
    pair = result.against_full
    return {
        "run": result.entry.name,
        **asdict(result.row),
        "level_name": LEVEL_NAMES[result.row.level],
        "visual_tokens_in": result.tokens_in,
        "visual_tokens_kept": result.tokens_kept,
        "agreement": result.agreement,
        "evidence_kept": result.evidence_kept,
        "against_full": _paired(pair, "full", "run") if pair is not None else None,
    }


def _paired(pair: Pair, first: str, second: str) -> dict[str, Any]:
    return {
        "n": pair.n,
        f"only_{first}": pair.only_first,
        f"only_{second}": pair.only_second,
        "difference": pair.difference,
        "p": pair.p,
        "p_holm": pair.p_holm,
        "significant": pair.significant,
    }


def _error(error: FoveateError) -> dict[str, str]:
    return {"type": type(error).__name__, "message": str(error)}
