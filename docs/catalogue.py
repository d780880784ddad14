"""The generated catalogue: a page for each method, their index and docs/catalogue.json, from the registry.

Called by docs/generate.py. Needs no torch. What a page says stands in the method's own file: class
attributes, settings and docstrings; only the index's words on how to choose are written here.
"""

from __future__ import annotations

import dataclasses
import inspect
import json
import re
import sys
from fractions import Fraction
from typing import Any, get_type_hints

from foveate.cli import families
from foveate.cli.list import describe
from foveate.core import registry
from foveate.core.method import Budgeted, Method, describe_range

Family = dict[str, Any]
BUDGET = [f.name for f in dataclasses.fields(Budgeted)]
MARK = "Written by `python docs/generate.py` from the registry; do not edit."
EVIDENCE = {
    "golden": "agrees with recorded outputs of the authors' code",
    "reference": "agrees with a plain-loop computation of the paper's formula",
    "reconstructed": "the paper leaves gaps or no code was released; how they were filled is said below",
    "control": "a baseline that a method has to beat, not a published method",
}
COUNTS = {
    "image": "how many tokens stay follows from the grid and the budget alone",
    "request": "only the sum over a request's pictures follows from the budget",
    "adaptive": "how many tokens stay follows from the content",
}
DIFFERENCES = (
    "Differs",
    "What differs",
    "What the authors' code does",
    "Reconstructed",
    "It differs",
)


# --- text ----------------------------------------------------------------------------------------
def marked(text: str) -> str:
    """Plain text as Markdown: what would become emphasis or a tag is escaped, code stays code."""
    parts = re.split(r"(`[^`]*`)", text)
    return "".join(
        p if p.startswith("`") else p.replace("\\", "\\\\").replace("*", "\\*").replace("<", "&lt;")
        for p in parts
    )


def cell(text: object) -> str:
    return str(text).replace("|", "\\|").replace("\n", " ")


def paragraphs(text: str | None) -> list[str]:
    return [" ".join(p.split()) for p in re.split(r"\n\s*\n", text or "") if p.strip()]


def own_words(method: type[Method]) -> list[str]:
    """Paragraphs of the module and of the class, where the class says more than the module."""
    module = paragraphs(inspect.getdoc(sys.modules[method.__module__]))
    return module + paragraphs(method.__dict__.get("__doc__"))


def sentences(words: list[str]) -> list[str]:
    return [s for p in words for s in re.split(r"(?<=[.:;])\s+(?=[A-Z])", p)]


# --- facts ---------------------------------------------------------------------------------------
def value(item: Any) -> Any:
    return str(item) if isinstance(item, Fraction) else item


def record(method: type[Method]) -> dict[str, Any]:
    """A method's entry of the JSON catalogue."""
    row = describe(method)
    hints = get_type_hints(method)
    row["settings"] = [
        {
            "name": f.name,
            "type": str(getattr(hints[f.name], "__name__", hints[f.name])).replace(
                "fractions.", ""
            ),
            "default": None if f.default is dataclasses.MISSING else value(f.default),
            "low": value(f.metadata.get("low")),
            "high": value(f.metadata.get("high")),
            "choices": list(f.metadata["choices"]) if f.metadata.get("choices") else None,
            "help": f.metadata.get("help", ""),
        }
        for f in dataclasses.fields(method)
    ]
    paper = row["paper"]
    row["code_licence"] = paper.pop("code_licence") if paper else None
    row["needs"] = [dataclasses.asdict(n) for n in sorted(method.needs, key=str)]
    row["budgeted"] = issubclass(method, Budgeted)
    row["page"] = f"methods/{method.name}.md"
    return row


def plan_text(method: type[Method]) -> str:
    """A plan that shows the method at work."""
    has = any(f.name == "keep" for f in dataclasses.fields(method))
    return f"{method.name}:keep=1/4" if has else method.name


def able(method: type[Method], known: dict[str, Family]) -> list[str]:
    """Families whose vision tower offers what the method asks for."""
    wanted = {n.what for n in method.needs} - {"question", "clip"}
    found = []
    for name, entry in known.items():
        facts = set(entry.get("facts", ()))
        facts |= {"saliency"} if facts & {"cls", "received"} else set()
        merges = method.stage != "tower" or entry.get("merge_before_projector")
        if entry["encode"] != "refused" and wanted <= facts and merges:
            found.append(name)
    return found


def limits(method: type[Method], known: dict[str, Family]) -> list[str]:
    """Where the method fails or does not apply, as far as its file and the matrix say."""
    out = [getattr(method, "fails", "")] if getattr(method, "fails", "") else []
    words = sentences(own_words(method))
    out += [s for s in words if "refused" in s or "UnsupportedError" in s]
    whats = {n.what for n in method.needs}
    deep = [n.layer for n in method.needs if n.layer >= 0]
    if method.stage in ("tower", "tokens"):
        names, total = (
            able(method, known),
            [k for k, e in known.items() if e["encode"] != "refused"],
        )
        missing = [n for n in total if n not in names]
        line = f"The tower offers what it needs in {len(names)} of {len(total)} families"
        out.append(line + (f"; not in {', '.join(missing)}." if missing else "."))
    if deep:
        out.append(f"It reads encoder block {max(deep)}: a tower with fewer blocks is refused.")
    if "saliency" in whats:
        out.append("A tower without a CLS token gives received attention instead, which is not what "
                   "a paper on CLS attention measured.")  # fmt: skip
    if "clip" in whats:
        out.append("It needs a text tower that the caller supplies; without one it is refused.")
    if whats & {"question", "clip"}:
        out.append("The choice depends on the question: another question about the same picture "
                   "chooses anew, and a request without words has nothing to choose by.")  # fmt: skip
    elif method.stage == "tokens":
        out.append("It does not read the question: small things that only the question makes "
                   "important may be dropped.")  # fmt: skip
    if method.counts == "adaptive":
        out.append(
            "Without a budget the tokens kept, and so time and memory, are not known beforehand."
        )
    if method.counts == "request":
        out.append("Only the sum is known beforehand: how many tokens one picture keeps is not.")
    if method.stage == "tokens":
        out.append("It acts after the vision tower, which costs what it cost before.")
    return list(dict.fromkeys(out))


# --- pages ---------------------------------------------------------------------------------------
def facts_table(method: type[Method], row: dict[str, Any]) -> list[str]:
    paper = row["paper"]
    cited = "none"
    if paper:
        link = f", [arXiv {paper['arxiv']}](https://arxiv.org/abs/{paper['arxiv']})"
        cited = f"{paper['authors']}, “{marked(paper['title'])}”, {paper['year']}"
        cited += link if paper["arxiv"] else ""
    needs = ", ".join(f"`{n}`" for n in describe(method)["needs"]) or "nothing beyond the tokens"
    rows = [
        ("stage", method.stage),
        ("paper", cited),
        ("evidence", f"{method.evidence}: {EVIDENCE[method.evidence]}"),
        ("needs", needs if method.stage == "tokens" else "-"),
        ("counts", f"{method.counts}: {COUNTS[method.counts]}"),
        ("licence of the authors' code", row["code_licence"] or "-"),
        ("source", f"`{method.__module__}`"),
    ]
    return ["| | |", "|---|---|", *(f"| {a} | {cell(b)} |" for a, b in rows)]


def settings_table(method: type[Method]) -> list[str]:
    if not dataclasses.fields(method):
        return ["It has no settings."]
    lines = ["| setting | default | range | what it is |", "|---|---|---|---|"]
    for f in dataclasses.fields(method):
        default = None if f.default is dataclasses.MISSING else value(f.default)
        shown = "none" if default is None else str(default).lower()
        span = "0 < keep <= 1" if f.name == "keep" else describe_range(f.metadata)
        words = marked(f.metadata.get("help", ""))
        lines.append(f"| `{f.name}` | {cell(shown)} | {cell(marked(span))} | {cell(words)} |")
    if issubclass(method, Budgeted):
        rule = "Exactly one of `keep`, `per_image` and `per_request` is the budget"
        lines += ["", rule + ("; it may also be left out." if method.counts == "adaptive" else ".")]
    return lines


def page(method: type[Method], known: dict[str, Family]) -> str:
    words = own_words(method)
    differs = [p for p in words if p.startswith(DIFFERENCES)]
    source = [p.removeprefix("Paper: ") for p in words if p.startswith("Paper:")]
    does = [p for p in words if p not in differs and not p.startswith("Paper:")]
    lines = [f"# {method.name}", "", f"{method.name} {marked(method.summary)}.", ""]
    lines += [f"{MARK} [All methods](README.md)", "", *facts_table(method, record(method)), ""]
    lines += ["## What it does", "", *"\n\n".join(map(marked, does)).splitlines(), ""]
    if source:
        lines += ["## Paper and formula", "", *"\n\n".join(map(marked, source)).splitlines(), ""]
    if differs:
        lines += [
            "## What is done differently",
            "",
            *"\n\n".join(map(marked, differs)).splitlines(),
            "",
        ]
    lines += ["## Settings", "", *settings_table(method), ""]
    lines += ["## Where it fails", "", *(f"- {marked(x)}" for x in limits(method, known)), ""]
    plan = plan_text(method)
    ask = 'foveate run picture.png --question "what is the total?"'
    try:
        registry.build(*plan.split(":")[:1], **({"keep": "1/4"} if ":" in plan else {}))
    except ValueError:
        return "\n".join(lines)
    lines += ["## Try it", "", "```sh", f'{ask} --plan "{plan}" --compare', "```"]
    return "\n".join(lines) + "\n"


def written() -> dict[str, str]:
    """Every generated file: its path under docs/ and its text."""
    known = families.load()["families"]
    found = {n: m for n, m in registry.methods().items() if m.__module__.startswith("foveate.")}
    pages = {f"methods/{name}.md": page(m, known) for name, m in found.items()}
    entries = {
        "format": 1,
        "evidence": EVIDENCE,
        "counts": COUNTS,
        "methods": [record(m) for m in found.values()],
    }
    pages["catalogue.json"] = json.dumps(entries, indent=1, ensure_ascii=False) + "\n"
    return pages
