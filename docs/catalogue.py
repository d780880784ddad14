"""The generated catalogue: a page for each method, their index and docs/catalogue.json, from the registry.

Called by docs/generate.py. Needs no torch. What a page says stands in the method's own file: class
attributes, settings and docstrings; only the index's words on how to choose are written, in choosing.py.
"""

from __future__ import annotations

import dataclasses
import inspect
import json
import re
import runpy
import sys
from fractions import Fraction
from pathlib import Path
from typing import Any, get_type_hints

from foveate.cli import families
from foveate.cli.list import describe
from foveate.core import registry
from foveate.core.language import GuidedMethod
from foveate.core.method import Budgeted, Method, describe_range

CHOOSING = runpy.run_path(str(Path(__file__).with_name("choosing.py")))
Family = dict[str, Any]
BUDGET = [f.name for f in dataclasses.fields(Budgeted)]
MARK = "Written by `python docs/generate.py` from the registry; do not edit."
EVIDENCE = {
    "golden": "agrees with recorded outputs of the authors' code",
    "reference": "agrees with a plain-loop computation of the paper's formula",
    "reconstructed": "the paper leaves gaps or no code was released; its page says how they were filled",
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
        p
        if p.startswith("`")
        else re.sub(r"<(?=[A-Za-z/!?])", "&lt;", re.sub(r"([\\*])", r"\\\1", p))
        for p in parts
    )


def sentence(summary: str) -> str:
    return summary[0].upper() + summary[1:] + "."


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
        if entry["encode"] != "refused" and wanted <= facts:
            found.append(name)
    return found


def limits(method: type[Method], known: dict[str, Family]) -> list[str]:
    """Where the method fails or does not apply, as far as its file and the matrix say."""
    out = [getattr(method, "fails", "")] if getattr(method, "fails", "") else []
    words = sentences(own_words(method))
    out += [s for s in words if "refused" in s or "UnsupportedError" in s]
    whats = {n.what for n in method.needs}
    deep = [n.layer for n in method.needs if n.layer >= 0]
    if method.stage == "tokens":
        names, total = (
            able(method, known),
            [k for k, e in known.items() if e["encode"] != "refused"],
        )
        missing = [n for n in total if n not in names]
        line = f"The tower offers what it needs in {len(names)} of {len(total)} "
        line += "configurations of [the family matrix](../matrix.md)"
        out.append(line + (f"; not in {', '.join(missing)}." if missing else "."))
    if method.stage in ("prefill", "memory"):
        out += inside(method)
    if method.stage == "tower":
        out.append("A tower that packs its pictures, has windows or turns positions inside its blocks is "
                   "refused: no token can leave there.")  # fmt: skip
        out.append("Later blocks have no attention for tokens that left, so a token method beside it "
                   "must read features alone.")  # fmt: skip
    acts = getattr(method, "acts", "")
    if acts in ("size", "tiles"):
        out.append("A request with videos is refused: it acts on pictures.")
    if acts == "frames":
        out.append("A picture has no frames and is left as it is; which frames were left out cannot be "
                   "drawn.")  # fmt: skip
    if acts == "size":
        out.append(
            "A family whose processor makes the same number of tokens of every picture is refused."
        )
    if acts == "tiles":
        out.append("A family without tiles, or whose tower packs a whole grid, is refused.")
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


def inside(method: type[Method]) -> list[str]:
    """Limits of what acts inside the language model."""
    own = ("The prompt must come in one pass, and the cache is the engine's own: caches of the caller, "
           "prompt lookup and assisted decoding are refused.")  # fmt: skip
    if method.stage == "memory":
        seen = getattr(method, "reads", frozenset())
        last = ("What the question made it keep may not be what a later question needs." if seen else
                "It looks at no question: what it drops is gone for every one.")  # fmt: skip
        return ["Every token passes through the language model first: encoding and prefill cost what "
                "they cost before.", own, last]  # fmt: skip
    reads = getattr(method, "reads", frozenset())
    guided = issubclass(method, GuidedMethod)
    out = []
    if guided:
        out.append("It needs a small sibling that splits pictures into the same tokens: "
                   "`Engine(..., guide=)`, or `--guide` on the command line. `attach` refuses.")  # fmt: skip
    if reads:
        out.append("A layer whose attention it reads must keep keys and values: where that is a layer "
                   "of linear attention, the plan is refused.")  # fmt: skip
    out.append("Where deep layers read the keys of others, as in Gemma 3n, tokens can leave only before "
               "the first of them; a later layer is refused.")  # fmt: skip
    out.append(own)
    out.append("Encoding and the layers before the first drop cost what they cost before.")
    if reads or guided:
        out.append("The choice depends on the question: keys and values of the picture cannot serve "
                   "another question about it.")  # fmt: skip
    return out


def needs_text(method: type[Method]) -> str:
    """What a method asks for, as its stage names it."""
    if issubclass(method, GuidedMethod):
        return "scores of a guide, a small sibling model"
    if method.stage == "prefill":
        names = {
            "previous": "queries and keys of the layer before",
            "next": "queries and keys of the layer itself, ahead of it",
        }
        read = [names[source] for source in sorted(getattr(method, "reads", ()), reverse=True)]
        return ", ".join(read) or "nothing beyond the hidden states"
    if method.stage != "tokens":
        return "-"
    return ", ".join(f"`{n}`" for n in describe(method)["needs"]) or "nothing beyond the tokens"


# --- pages ---------------------------------------------------------------------------------------
def facts_table(method: type[Method], row: dict[str, Any]) -> list[str]:
    paper = row["paper"]
    cited = "none"
    if paper:
        link = f", [arXiv {paper['arxiv']}](https://arxiv.org/abs/{paper['arxiv']})"
        cited = f"{paper['authors']}, “{marked(paper['title'])}”, {paper['year']}"
        cited += link if paper["arxiv"] else ""
    rows = [
        ("stage", method.stage),
        ("paper", cited),
        ("evidence", f"{method.evidence}: {EVIDENCE[method.evidence]}"),
        ("needs", needs_text(method)),
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
    cited = (method.paper.arxiv if method.paper else None) or "Paper:"
    source = [p for p in words if p.startswith("Paper:")]
    source = source or [p for p in words if cited in p and p not in differs][:1]
    does = [p for p in words if p not in differs and p not in source]
    source = [p.removeprefix("Paper: ") for p in source]
    lines = [f"# {method.name}", "", f"{marked(sentence(method.summary))}", ""]
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
    source = "clip.mp4" if group_of(method) == "video" else "picture.png"
    ask = f'foveate run {source} --question "what is the total?"'
    try:
        registry.build(*plan.split(":")[:1], **({"keep": "1/4"} if ":" in plan else {}))
    except ValueError:
        return "\n".join(lines)
    guide = " --guide lab-pair" if issubclass(method, GuidedMethod) else ""
    lines += ["## Try it", "", "```sh", f'{ask} --plan "{plan}"{guide} --compare', "```"]
    return "\n".join(lines) + "\n"


# --- the index -----------------------------------------------------------------------------------
def group_of(method: type[Method]) -> str:
    if method.stage == "tokens" and method.evidence == "control":
        return "control"
    video = method.summary.startswith("video") or getattr(method, "acts", "") == "frames"
    return "video" if video else method.stage


def index(found: dict[str, type[Method]]) -> str:
    """The guide: what acts where, every method in its group, and how to choose."""
    lines = ["# Methods", "", f"{MARK} The same as data: [catalogue.json](../catalogue.json).", ""]
    text = "A picture becomes hundreds or thousands of tokens, most of which no answer needs. "
    text += f"These {len(found)} methods and controls decide which of them are spent, and where."
    lines += [text, "", "| evidence | what it means |", "|---|---|"]
    lines += [f"| {name} | {what} |" for name, what in EVIDENCE.items()]
    lines += ["", "| counts | what it means |", "|---|---|"]
    lines += [f"| {name} | {what} |" for name, what in COUNTS.items()]
    for group, title, words in CHOOSING["GROUPS"]:
        mine = {n: m for n, m in found.items() if group_of(m) == group}
        lines += ["", f"## {title}", "", " ".join(words.split()), ""]
        if not mine:
            continue
        lines += ["| method | what it does | stage | reads | evidence | counts | paper |"]
        lines += ["|---|---|---|---|---|---|---|"]
        for name, method in mine.items():
            whats = sorted({n.what for n in method.needs}) or [
                {"tokens": "tokens", "prefill": "hidden states"}.get(method.stage, "-")
            ]
            if method.stage == "prefill" and getattr(method, "reads", None):
                whats = ["attention"]
            paper = method.paper
            cited = f"{paper.authors.split(',')[0]} {paper.year}" if paper else "-"
            if paper and paper.arxiv:
                cited = f"[{cited}](https://arxiv.org/abs/{paper.arxiv})"
            row = (f"[{name}]({name}.md)", marked(method.summary), method.stage, ", ".join(whats))
            row += (method.evidence, method.counts, cited)
            lines.append("| " + " | ".join(map(cell, row)) + " |")
    return "\n".join(lines) + "\n\n" + str(CHOOSING["CHOICE"])


def written() -> dict[str, str]:
    """Every generated file: its path under docs/ and its text."""
    known = families.load()["families"]
    found = {n: m for n, m in registry.methods().items() if m.__module__.startswith("foveate.")}
    pages = {f"methods/{name}.md": page(m, known) for name, m in found.items()}
    pages["methods/README.md"] = index(found)
    entries = {
        "format": 1,
        "evidence": EVIDENCE,
        "counts": COUNTS,
        "methods": [record(m) for m in found.values()],
    }
    pages["catalogue.json"] = json.dumps(entries, indent=1, ensure_ascii=False) + "\n"
    return pages
