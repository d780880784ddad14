"""Methods at equal KV bytes on the bundled model: what each costs in answers when all keep the same
share of the cache. Every method of the stages tokens, prefill and memory stands in one table, with
`random` beside. The figures speak of lab-nano and rendered pictures alone.

    python -m bench.equal_bytes [--bytes 1/2] [--n 30] [--families shape,count,...] [--only "a,b"]

A method's own knob is searched until its mean KV bytes a request, over three samples of every family,
are nearest the share; bytes are those after the prompt and first token. Where the nearest is not
within 3 %, or a method cannot run here, the table says why. Codecs code keys and values of 32 bits,
the model's type; their knob is bits, so they stand at what they come to as well. sparsemm has the head
scores of `python -m foveate.lab.head_probe`, sgl has lab-pair as its guide.

Results: bench/results/equal-bytes.json and beside it equal-bytes-rows.parquet, from which
`bench.equal_bytes_table` computes the table. --only measures these lines anew and takes the others
from the rows, if they are of the same weights, share, families and n.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import torch

from bench import equal_bytes_table as tables
from bench.common import RESULTS, publish
from bench.equal_bytes_table import FULL, STAGES, WITHIN, Row
from foveate.core import registry
from foveate.core.errors import FoveateError
from foveate.core.language import KVCodec
from foveate.engine.engine import Engine
from foveate.engine.request import Request
from foveate.lab import nano_path, pair_path
from foveate.lab.head_probe import probe_heads, write_scores
from foveate.lab.score import is_right
from foveate.lab.tasks import Sample, samples

FAMILIES = "shape,count,exists,quadrant,nearest,bar,code,table,form"
HEADS = "heads.json"
MEMORY = "window=8"  # lab-nano's questions are short
TEMPLATES: dict[str, str] = {
    "hiprune": "hiprune:keep={x},middle=3",
    "fastv": "fastv:layer=1,keep={x}",
    "dart": "dart:layer=1,keep={x}",
    "topv": "topv:layer=1,keep={x}",
    "sgl": "sgl:layer=1,keep={x}",
    "vscan-lm": "vscan-lm:layer=1/6,keep={x}",
    "p-sigmoid": "p-sigmoid:mean_keep={x}",
    "pyramiddrop": "pyramiddrop:at=1/6 1/3 1/2,ratios={x} {x2} {x3}",
    "schedule": "schedule:at=1/6 1/3 1/2,ratios={x} {x2} {x3}",
    "sparsevlm": "sparsevlm:at=1/6 1/3 1/2,ratios={x} {x2} {x3}",
    "aim-pagerank": "aim-pagerank:l1=1/6,l2={y}",
    "atp-llava": "atp-llava",
    "dyvte": "dyvte",
    **{m: f"{m}:keep={{x}},{MEMORY}" for m in ("random-kv", "snapkv", "pyramidkv", "adakv")},
    "sparsemm": f"sparsemm:keep={{x}},{MEMORY},heads={{heads}}",
    "vl-cache": f"vl-cache:keep={{x}},{MEMORY}",
    "hybridkv": "hybridkv:keep={x},page=8",
    "kivi": "kivi:bits=2,group=16,residual={v}",
    "kivi 2 bits": "kivi:bits=2,residual=32",
    "kivi 4 bits": "kivi:bits=4,residual=32",
    "calibquant": "calibquant:bits={v}",
    "calibquant 2 bits": "calibquant:bits=2",
    "calibquant 1 bit": "calibquant:bits=1",
}
"""Plans of what has no plain `keep`, or needs more. {x}: the knob in (0, 1]; {v}: one of VALUES. A line
whose name is two words has no knob: it stands at what it comes to.
"""
VALUES: dict[str, Sequence[int]] = {"kivi": range(16, 209, 16), "calibquant": (1, 2, 4, 8)}
START = Fraction(31, 32)  # of the share: a prompt's words stay when its visual tokens go
NOTES = {
    "sgl": "its guide lab-pair has a cache of its own, {guide:.3f} of the bytes, while it answers first",
    "hybridkv": "`bytes` is what lies on the device; `host` is in host memory beside these",
    "fastvid, v-cast, vidcom2": "methods for videos; a picture is one frame to them",
}


def lines() -> dict[str, str]:
    """The plan of every line of the table, methods in the registry's order within their stages."""
    out: dict[str, str] = {}
    for method in (m for s in STAGES for m in registry.methods(s)):
        own = {k: v for k, v in TEMPLATES.items() if tables.method_of(k) == method}
        out |= own or {method: f"{method}:keep={{x}}"}
    return out


def filled(template: str, x: Fraction | int) -> str:
    """A plan with its knob at x: in (0, 1], or one of a method's values."""
    if "{x" not in template and "{y" not in template:
        return template.format(v=x, heads="{heads}")
    x = Fraction(x)
    y = min(Fraction(1), Fraction(1, 6) + x * Fraction(5, 6))
    return template.format(x=x, x2=_short(x**2), x3=_short(x**3), y=_short(y), v=x, heads="{heads}")


def _short(x: Fraction) -> Fraction:
    return max(Fraction(1, 256), x.limit_denominator(256))


@dataclass
class Bench:
    """The engine, and the file with the scores of its heads."""

    engine: Engine
    heads: Path

    def ask(self, plan: str, asked: Sequence[Sample], tokens: int) -> list[Any]:
        """Answers with reports; FoveateError where one request failed."""
        requests = [Request(images=list(s.images), question=s.question) for s in asked]
        text = plan.format(heads=self.heads)
        answers = self.engine.generate(requests, text, max_new_tokens=tokens, batch_size=16)
        for a in answers:
            if a.error is not None:
                raise a.error
            if a.report is None or a.report.kv_bytes is None:
                raise FoveateError(f"{plan}: the KV bytes of a request are not known")
        return answers

    def mean_bytes(self, plan: str, asked: Sequence[Sample]) -> float:
        """KV bytes of a request after its prompt and first token, averaged."""
        return float(sum(a.report.kv_bytes for a in self.ask(plan, asked, 1)) / len(asked))

    def token_bytes(self, sample: Sample) -> int:
        """KV bytes of one token at all layers, in full."""
        report = self.ask(FULL, [sample], 1)[0].report
        return int(report.kv_bytes // report.prompt_tokens)

    def rows(self, name: str, plan: str, asked: Mapping[str, Sequence[Sample]]) -> list[Row]:
        """One row a question. Of a request that ended, the prompt's bytes are those held less what
        each later token of the answer added; codecs and stores that overflow, which add other
        amounts, are asked for one token too.
        """
        flat = [(f, i, s) for f, found in asked.items() for i, s in enumerate(found)]
        wanted = [s for _, _, s in flat]
        said = self.ask(plan, wanted, 12)
        if grows_by_tokens(name):
            token = self.token_bytes(wanted[0])
            held = [a.report.kv_bytes - token * (a.report.new_tokens - 1) for a in said]
        else:
            held = [a.report.kv_bytes for a in self.ask(plan, wanted, 1)]
        shown = plan.format(heads=HEADS)
        return [
            Row(name, shown, f, i, a.text, is_right(s, a.text), k, a.report.kv_offloaded_bytes or 0)
            for (f, i, s), a, k in zip(flat, said, held, strict=True)
        ]


def grows_by_tokens(name: str) -> bool:
    """Whether each token of an answer adds one whole entry at every head."""
    if name == FULL:
        return True
    method = registry.get(tables.method_of(name))
    return not issubclass(method, KVCodec) and getattr(method, "when", "") != "overflow"


@dataclass(frozen=True)
class Found:
    """The knob that comes nearest the target, and the costs tried that are next below and above."""

    knob: Fraction | int
    below: float | None
    above: float | None


def search(cost: Callable[[Fraction], float], target: float, start: Fraction) -> Found:
    """Bisection over fractions of 512 from `start` on, for a cost that grows with the knob."""
    tried: dict[Fraction, float] = {}
    low, high, middle = 1, 512, int(start * 512)
    while low <= high:
        x = Fraction(middle, 512)
        tried[x] = cost(x)
        if abs(tried[x] / target - 1) <= WITHIN / 6:
            break
        low, high = (middle + 1, high) if tried[x] < target else (low, middle - 1)
        middle = (low + high) // 2
    return _nearest(tried, target)


def scan(cost: Callable[[int], float], target: float, values: Sequence[int]) -> Found:
    """Every value tried, for a cost that need not grow with the knob."""
    return _nearest({v: cost(v) for v in values}, target)


def _nearest(tried: Mapping[Any, float], target: float) -> Found:
    costs = tried.values()
    return Found(
        min(tried, key=lambda x: abs(tried[x] - target)),
        max((c for c in costs if c <= target), default=None),
        min((c for c in costs if c > target), default=None),
    )


def why_outside(found: Found, full: float) -> str:
    """Why a knob comes no nearer, in shares of the bytes."""
    if found.above is None:
        return f"its knob reaches {(found.below or 0) / full:.3f} of the bytes at most"
    if found.below is None:
        return f"its knob leaves {found.above / full:.3f} of the bytes at least"
    return f"its knob steps from {found.below / full:.3f} to {found.above / full:.3f} of the bytes"


def fitted(
    bench: Bench, name: str, template: str, few: Sequence[Sample], full: float, share: Fraction
) -> tuple[str, str | None]:
    """The plan of a line, and why its knob comes no nearer to the share (None where it met it); `full`
    are the mean bytes of all tokens.
    """
    target = float(share) * full

    def cost(x: Fraction | int) -> float:
        return bench.mean_bytes(filled(template, x), few)

    if "{x" in template or "{y" in template:
        found = search(cost, target, START * share)
    elif "{v" in template:
        found = scan(cost, target, VALUES[name])
    else:
        cost(1)  # a plan that cannot run says so here
        return template, "it has no knob here"
    nearest = min(abs((c or 0) / target - 1) for c in (found.below, found.above))
    met = nearest <= WITHIN / 6
    return filled(template, found.knob), None if met else why_outside(found, full)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n\n")[0])
    parser.add_argument("--bytes", type=Fraction, default=Fraction(1, 2), dest="share")
    parser.add_argument("--n", type=int, default=30, help="samples a family")
    parser.add_argument("--families", default=FAMILIES)
    parser.add_argument("--only", help="lines to measure; the others from the rows")
    parser.add_argument("--name", default=tables.NAME)
    args = parser.parse_args()
    torch.set_num_threads(1)
    todo = lines()
    wanted = list(todo) if args.only is None else args.only.split(",")
    unknown = [w for w in wanted if w not in todo]
    if unknown:
        parser.error(f"--only {', '.join(unknown)}: no such line; known: {', '.join(todo)}")
    facts = {
        "share": str(args.share), "n": args.n, "families": args.families, "split": "test",
        "weights": {p.name: tables.digest(p / "model.safetensors")[:16]
                    for p in (nano_path(), pair_path())},
    }  # fmt: skip
    old = {} if args.only is None else earlier(args.name, facts)
    guide = Engine.from_pretrained(pair_path())
    out: dict[str, Any] = {"rows": [], "outside": {}, "not_run": {}, "notes": {}}
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(Engine.from_pretrained(nano_path(), guide=guide), Path(folder) / HEADS)
        asked = {f: samples(f, "test", args.n) for f in args.families.split(",")}
        few = [s for found in asked.values() for s in found[:3]]
        full = bench.mean_bytes(FULL, few)
        small = Bench(guide, bench.heads).mean_bytes(FULL, few) / full
        out["notes"] = {k: v.format(guide=small) for k, v in NOTES.items()}
        out["rows"] = bench.rows(FULL, FULL, asked)
        try:
            for name in sorted(wanted, key=lambda w: w not in tables.CONTROL.values()):
                measure(bench, name, todo[name], asked, few, full, args.share, out)
        except KeyboardInterrupt:
            print("interrupted: the table is what was measured; go on with --only")
    write(args.name, facts, list(todo), old, out)


def measure(
    bench: Bench,
    name: str,
    template: str,
    asked: Mapping[str, Sequence[Sample]],
    few: Sequence[Sample],
    full: float,
    share: Fraction,
    out: dict[str, Any],
) -> None:
    """One line's rows into `out`, or why it was not run; and why it is not within 3 %, if so."""
    try:
        if tables.method_of(name) == "sparsemm" and not bench.heads.is_file():
            write_scores(probe_heads(bench.engine), bench.heads)
        plan, reason = fitted(bench, name, template, few, full, share)
        found = bench.rows(name, plan, asked)
    except FoveateError as error:
        out["not_run"][name] = str(error)
        print(f"{name}: not run: {error}", flush=True)
        return
    out["rows"] += found
    held = tables.shares(out["rows"])[name]
    if reason is not None and abs(held / float(share) - 1) > WITHIN:
        out["outside"][name] = reason
    right = sum(r.right for r in found) / len(found)
    print(f"{name}: {found[0].plan}: {held:.3f} of the bytes, {right:.3f}", flush=True)


def earlier(name: str, facts: Mapping[str, Any]) -> dict[str, Any]:
    """What was measured before under the same facts; FoveateError if it was under others."""
    data = json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))
    other = [k for k, v in facts.items() if data.get(k) != v]
    if other:
        raise FoveateError(f"{name}.json has another {', '.join(other)}: measure all lines")
    return {**data, "rows": tables.read_rows(tables.rows_path(name))}


def write(
    name: str,
    facts: Mapping[str, Any],
    order: Sequence[str],
    old: Mapping[str, Any],
    again: Mapping[str, Any],
) -> None:
    """Rows, table and claim of what was measured now and before."""
    found = {
        k: v for k, v in tables.by_name(old.get("rows", ())).items() if k not in again["not_run"]
    }
    found |= tables.by_name(again["rows"])
    rows = [r for line in (FULL, *order) for r in found.get(line, ())]
    path = tables.rows_path(name)
    tables.write_rows(rows, path)
    done = {*tables.by_name(again["rows"]), *again["not_run"]}
    reasons = {
        kind: {k: v for k, v in old.get(kind, {}).items() if k not in done and k in order}
        | again[kind]
        for kind in ("outside", "not_run")
    }
    share = Fraction(facts["share"])
    made = tables.table(rows)
    publish(
        name,
        f"accuracy on lab-nano at {share} of the KV bytes, {facts['n']} questions a family (test split)",
        list(made[0]),
        [list(row.values()) for row in made],
        {
            **facts,
            **reasons,
            "notes": again["notes"],
            "rows_sha256": tables.digest(path),
            "methods": tables.methods(),
            "claims": tables.claims(rows, share, reasons["outside"], reasons["not_run"]),
        },
    )


if __name__ == "__main__":
    main()
