"""Tower methods end to end: CPU time of one whole call (encode, prefill, 8 decode steps) with and
without, on three geometries, and what the same settings cost in answers on lab-nano.

    python -m bench.tower [--cases lab-nano,smolvlm,clip-l] [--n 60] [--repeats 3]
        [--only time|accuracy|table]

Runs with and without take turns; figures are medians of the ratios of one turn. Results:
bench/results/tower.json and bench/tower.md; a part that is not asked for stays as it was.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from statistics import median
from typing import Any

import torch

from bench.claims import describe
from bench.common import RESULTS, machine
from bench.tower_models import CASES, Case
from foveate.core import Plan
from foveate.core.errors import FoveateError
from foveate.engine.compress import compress
from foveate.measure import wilson
from foveate.measure.clock import StageClock
from foveate.models import compat
from foveate.models.adapter import adapter_for

PLANS = (
    "none",
    "tome:r=8",
    "tome:r=16",
    "tome:keep=1/2",
    "tome:keep=1/4",
    "early-cut:keep=1/2",
    "early-cut:keep=1/4",
)
FAMILIES = ("shape", "count", "exists", "leftof", "bar", "code", "form")
STEPS = 8
PATH, PAGE = RESULTS / "tower.json", Path(__file__).parent / "tower.md"


def call_once(model: Any, adapter: Any, inputs: dict[str, Any], text: str) -> dict[str, float]:
    """CPU seconds by phase of one call, and the visual tokens that the language model saw."""
    clock = StageClock()
    start = time.process_time()
    short = compress(adapter, Plan.parse(text), inputs, phase=clock.phase)
    with compat.expanding_by_row(model, short.expand):
        model.generate(**short.kwargs, max_new_tokens=STEPS, min_new_tokens=STEPS, do_sample=False)
    whole = time.process_time() - start
    tower = short.tower.tokens_out if short.tower is not None else None
    return {
        "whole_s": whole,
        "encode_s": clock.cpu_ms["encode"] / 1e3,
        "visual_tokens": short.rows[0].visual_kept,
        **({"tower_tokens": tower} if tower is not None else {}),
    }


@torch.no_grad()
def measure(case: Case, repeats: int) -> list[dict[str, Any]]:
    """One row a plan; a plan that this tower refuses says why."""
    model, inputs = case.build()
    adapter = adapter_for(model)
    runs: dict[str, list[dict[str, float]]] = {}
    refused: dict[str, str] = {}
    call_once(model, adapter, inputs, "none")  # what only a first call costs
    for _ in range(repeats):
        for text in PLANS:
            if text in refused:
                continue
            try:
                runs.setdefault(text, []).append(call_once(model, adapter, inputs, text))
            except FoveateError as error:
                refused[text] = str(error)
    base, rows = runs["none"], []
    for text in PLANS:
        if text in refused:
            rows.append({"plan": text, "refused": refused[text]})
            continue
        whole = [a["whole_s"] / b["whole_s"] for a, b in zip(runs[text], base, strict=True)]
        encode = [a["encode_s"] / b["encode_s"] for a, b in zip(runs[text], base, strict=True)]
        last = runs[text][-1]
        rows.append(
            {
                "plan": text,
                "whole_cpu_s": round(median(r["whole_s"] for r in runs[text]), 4),
                "encode_cpu_s": round(median(r["encode_s"] for r in runs[text]), 4),
                "whole": round(median(whole), 4),
                "whole_min": round(min(whole), 4),
                "whole_max": round(max(whole), 4),
                "encode": round(median(encode), 4),
                "tower_tokens": last.get("tower_tokens"),
                "visual_tokens": last["visual_tokens"],
            }
        )
    return rows


def accuracy(n: int) -> list[dict[str, Any]]:
    """Right answers of lab-nano by task family and plan, on rendered test pictures."""
    from foveate.engine.engine import Engine
    from foveate.engine.request import Request
    from foveate.lab import nano_path, samples

    engine = Engine.from_pretrained(nano_path())
    tasks = {f: list(samples(f, "test", n, 0)) for f in FAMILIES}
    rows: list[dict[str, Any]] = []
    for text in PLANS:
        row: dict[str, Any] = {"plan": text}
        for family, tested in tasks.items():
            requests = [Request(s.question, images=[s.image]) for s in tested]
            try:
                answers = engine.generate(requests, text, max_new_tokens=8, batch_size=16)
            except FoveateError as error:
                row["refused"] = str(error)
                break
            row[family] = sum(
                a.text.strip().lower() == s.answer.lower()
                for a, s in zip(answers, tested, strict=True)
            )
        rows.append(row)
    return rows


def share(hits: int, n: int) -> str:
    found = wilson(hits, n)
    return f"{hits / n:.2f} ({found.low:.2f}-{found.high:.2f})"


def page(data: dict[str, Any]) -> str:
    """The tables as Markdown."""
    lines = [
        "# Tower methods: what they save and what they cost",
        "",
        "Written by `python -m bench.tower`; do not edit. Process CPU time of one thread on "
        f"{describe(data['machine'])}: one call with one picture from pixels to {STEPS} new tokens, "
        "with a plan over the same call without, run in turn; medians (and range) of the ratios. "
        "Random weights but for lab-nano: the times say nothing of quality. Tokens are those left "
        "at the block that the projector reads, and those the language model saw.",
    ]
    for name, found in data.get("cases", {}).items():
        lines += ["", f"## {CASES[name].title} ({found['repeats']} turns, {found['date']})", ""]
        lines += ["| plan | whole call | encode | whole, CPU s | encode, CPU s | tower tokens "
                  "| visual tokens |", "|---|---|---|---|---|---|---|"]  # fmt: skip
        for r in found["rows"]:
            if "refused" in r:
                lines.append(f"| `{r['plan']}` | refused: {r['refused']} | | | | | |")
                continue
            lines.append(
                f"| `{r['plan']}` | {r['whole']:.2f} ({r['whole_min']:.2f}-{r['whole_max']:.2f}) | "
                f"{r['encode']:.2f} | {r['whole_cpu_s']:.3g} | {r['encode_cpu_s']:.3g} | "
                f"{r['tower_tokens'] or 'all'} | {r['visual_tokens']} |"
            )
    found = data.get("accuracy")
    if found:
        lines += [
            "",
            f"## Accuracy of lab-nano ({found['n']} questions a column, {found['date']})",
            "",
            "Rendered test pictures, easy questions, with 95 % intervals. They speak of this model "
            "and these pictures alone.",
            "",
            "| plan | " + " | ".join(FAMILIES) + " |",
            "|---" * (len(FAMILIES) + 1) + "|",
        ]
        for r in found["rows"]:
            cells = [share(r[f], found["n"]) if f in r else "refused" for f in FAMILIES]
            lines.append(f"| `{r['plan']}` | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n\n")[0])
    parser.add_argument("--cases", type=lambda t: t.split(","), default=list(CASES))
    parser.add_argument("--repeats", type=int, default=0, help="0: as each case says")
    parser.add_argument("--n", type=int, default=60, help="questions a task family")
    parser.add_argument("--only", choices=("time", "accuracy", "table"))
    args = parser.parse_args()
    torch.set_num_threads(1)
    data: dict[str, Any] = {"bench": "tower"}
    if PATH.is_file():
        data = json.loads(PATH.read_text(encoding="utf-8"))
    data["machine"] = machine()
    today = data["machine"]["date"]
    if args.only in (None, "time"):
        for name in args.cases:
            repeats = args.repeats or CASES[name].repeats
            rows = measure(CASES[name], repeats)
            data.setdefault("cases", {})[name] = {"repeats": repeats, "date": today, "rows": rows}
    if args.only in (None, "accuracy"):
        data["accuracy"] = {"n": args.n, "date": today, "rows": accuracy(args.n)}
    PATH.write_text(json.dumps(data, indent=1) + "\n", encoding="utf-8")
    text = page(data)
    PAGE.write_text(text, encoding="utf-8")
    print(text)
    print(json.dumps(data))


if __name__ == "__main__":
    main()
