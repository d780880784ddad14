"""Methods at equal KV bytes on the bundled model: what each costs in answers when all keep the same
share of the cache. Encode, prefill and memory methods stand side by side, with `random` beside. The
figures speak of lab-nano and rendered pictures alone.

    python -m bench.equal_bytes [--bytes 1/2] [--n 40] [--families shape,count,...] [--plans "a;b"]

A method's own knob is searched until its mean KV bytes a request, over samples of all families, are
within 3 % of the share; a method that cannot be brought there is shown with what it came to.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from fractions import Fraction
from typing import Any

import torch

from bench.common import publish
from foveate.core.errors import FoveateError
from foveate.engine.engine import Engine
from foveate.engine.request import Request
from foveate.lab import nano_path
from foveate.lab.score import is_right
from foveate.lab.tasks import Sample, samples
from foveate.measure.stats import mcnemar_exact, wilson

FAMILIES = "shape,count,exists,quadrant,nearest,bar,code,table,form"
WITHIN = 0.03
MEMORY = "window=8"
PLANS: dict[str, str] = {
    "random": "random:keep={x}",
    "uniform": "uniform:keep={x}",
    "pool": "pool:keep={x}",
    "divprune": "divprune:keep={x}",
    "visionzip": "visionzip:keep={x}",
    "fastv": "fastv:layer=1,keep={x}",
    "dart": "dart:layer=1,keep={x}",
    "topv": "topv:layer=1,keep={x}",
    "vscan-lm": "vscan-lm:layer=1/6,keep={x}",
    "p-sigmoid": "p-sigmoid:mean_keep={x}",
    "pyramiddrop": "pyramiddrop:at=1/6 1/3 1/2,ratios={x} {x2} {x3}",
    "sparsevlm": "sparsevlm:at=1/6 1/3 1/2,ratios={x} {x2} {x3}",
    "aim-pagerank": "aim-pagerank:l1=1/6,l2={y}",
    "random-kv": f"random-kv:keep={{x}},{MEMORY}",
    "window-kv": "window-kv:keep={x}",
    "snapkv": f"snapkv:keep={{x}},{MEMORY}",
    "pyramidkv": f"pyramidkv:keep={{x}},{MEMORY}",
    "adakv": f"adakv:keep={{x}},{MEMORY}",
    "sparsemm": f"sparsemm:keep={{x}},{MEMORY}",
    "vl-cache": f"vl-cache:keep={{x}},{MEMORY}",
    "prefixkv": "prefixkv:keep={x}",
    "infinipot-v": "infinipot-v:keep={x}",
    "look-m": "look-m:keep={x}",
    "meda": "meda:keep={x}",
    "hybridkv": "hybridkv:keep={x},page=8",
}


def filled(template: str, x: Fraction) -> str:
    """A plan with its knob at x in (0, 1]."""
    y = min(Fraction(1), Fraction(1, 6) + x * Fraction(5, 6))
    return template.format(x=x, x2=_short(x**2), x3=_short(x**3), y=_short(y))


def _short(x: Fraction) -> Fraction:
    return max(Fraction(1, 256), x.limit_denominator(256))


def mean_bytes(engine: Engine, plan: str, asked: Sequence[Sample]) -> float:
    """KV bytes of a request after its prompt and first token, averaged."""
    requests = [Request(images=list(s.images), question=s.question) for s in asked]
    answers = engine.generate(requests, plan, max_new_tokens=1, batch_size=16)
    found = [a.report.kv_bytes for a in answers if a.report is not None]
    known = [b for b in found if b is not None]
    if len(known) != len(asked):
        raise FoveateError(f"{plan}: {next(str(a.error) for a in answers if a.error)}")
    return sum(known) / len(known)


def search(cost: Callable[[Fraction], float], target: float, steps: int = 9) -> Fraction:
    """The knob whose cost is nearest to the target, by bisection over fractions of 512."""
    low, high = 1, 512
    best, error = Fraction(1), float("inf")
    for _ in range(steps):
        middle = (low + high) // 2
        x = Fraction(middle, 512)
        found = cost(x)
        if abs(found / target - 1) < error:
            best, error = x, abs(found / target - 1)
        if error <= WITHIN / 6 or low >= high:
            break
        low, high = (middle + 1, high) if found < target else (low, middle)
    return best


def answered(engine: Engine, plan: str, asked: Sequence[Sample]) -> list[bool]:
    requests = [Request(images=list(s.images), question=s.question) for s in asked]
    answers = engine.generate(requests, plan, max_new_tokens=12, batch_size=16)
    return [is_right(s, a.text) for s, a in zip(asked, answers, strict=True)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--bytes", type=Fraction, default=Fraction(1, 2), dest="share")
    parser.add_argument("--n", type=int, default=40, help="samples a family")
    parser.add_argument("--families", default=FAMILIES)
    parser.add_argument("--plans", default=",".join(PLANS))
    parser.add_argument("--name", default="equal-bytes")
    args = parser.parse_args()
    torch.set_num_threads(1)
    engine = Engine.from_pretrained(nano_path())
    families = args.families.split(",")
    asked = {f: samples(f, "test", args.n) for f in families}
    few = [s for f in families for s in asked[f][:2]]
    full = mean_bytes(engine, "none", few)
    target = float(args.share) * full
    right = {"none": {f: answered(engine, "none", asked[f]) for f in families}}
    rows: list[list[Any]] = [["none", "none", 1.0, *_shares(right["none"]), "", ""]]
    skipped: dict[str, str] = {}
    for name in args.plans.split(","):
        try:
            knob = search(lambda x, n=name: mean_bytes(engine, filled(PLANS[n], x), few), target)
            plan = filled(PLANS[name], knob)
            share = mean_bytes(engine, plan, few) / full
            right[name] = {f: answered(engine, plan, asked[f]) for f in families}
        except FoveateError as error:
            skipped[name] = str(error)
            print(f"{name}: not run: {error}")
            continue
        pairs = [
            (a, b) for f in families for a, b in zip(right["none"][f], right[name][f], strict=True)
        ]
        p = mcnemar_exact(sum(a and not b for a, b in pairs), sum(b and not a for a, b in pairs))
        total = sum(b for _, b in pairs)
        interval = wilson(total, len(pairs))
        rows.append(
            [
                name,
                plan,
                round(share, 3),
                *_shares(right[name]),
                f"{total / len(pairs):.3f} ({interval.low:.3f} to {interval.high:.3f})",
                f"{p:.2g}",
            ]
        )
        print(rows[-1], flush=True)
    publish(
        args.name,
        f"accuracy on lab-nano at {args.share} of the KV bytes, {args.n} questions a family (test split)",
        ["method", "plan", "bytes", *families, "all (95 %)", "p against all tokens"],
        rows,
        {"share": str(args.share), "n": args.n, "not_run": skipped},
    )


def _shares(found: dict[str, list[bool]]) -> list[float]:
    return [round(sum(v) / len(v), 3) for v in found.values()]


if __name__ == "__main__":
    main()
