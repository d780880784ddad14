"""P5, the oracle ratio: CPU time from encoder outputs to first logits with a plan that keeps k of N
tokens, over the
same engine natively fed k tokens. 1 would be a plan that costs nothing beyond what it keeps.

    python -m bench.oracle [--methods a,b] [--tokens 576] [--keep 1/4] [--repeats 9]
"""

from __future__ import annotations

import argparse
from fractions import Fraction

import torch

from bench.common import interleaved, median, publish
from bench.geometry import Facts, grid_for, grid_of, onevision, prompt
from foveate.core import Budget, Plan, registry, resolve
from foveate.engine.compress import compress

BOUND = 1.10


def runnable() -> list[str]:
    """Every token method but those that need a tower of the user's."""
    found = registry.methods("tokens")
    return [n for n, c in found.items() if not any(x.what == "clip" for x in c.needs)]


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--methods", default="visionzip,divprune,trimtokenator-lc,uniform")
    parser.add_argument("--tokens", type=int, default=576)
    parser.add_argument("--keep", default="1/4")
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--name", default="oracle")
    args = parser.parse_args()
    torch.set_num_threads(1)
    names = runnable() if args.methods == "all" else args.methods.split(",")
    model, adapter = onevision()
    token = adapter.token_id("image")
    pictures = {v: Facts(args.tokens, grid_for(v, args.tokens)) for v in (False, True)}
    row = prompt(args.tokens, token)

    def run(plan: Plan, source: Facts, inputs: dict) -> None:
        method = plan.stage("tokens")
        needs = method.needs if method else frozenset()
        short = compress(adapter, plan, inputs, encoded={"image": source.encoded(needs)})
        model(**short.kwargs, logits_to_keep=1, use_cache=True)

    rows = []
    for name in names:
        plan = Plan.parse(f"{name}:keep={args.keep}")
        method = plan.stage("tokens")
        k = resolve(Budget(keep=Fraction(args.keep)), [[args.tokens]]).total
        facts = pictures[method.video_only]
        k = method.count(facts.grid, k)
        native, native_row = Facts(k, grid_of(k)), prompt(k, token)
        times = interleaved(
            {
                "plan": lambda plan=plan, facts=facts: run(plan, facts, row),
                "native": lambda s=native, r=native_row: run(Plan(), s, r),
            },
            args.repeats,
        )
        ratios = [a / b for a, b in zip(times["plan"], times["native"], strict=True)]
        rows.append(
            [
                name,
                k,
                median(times["plan"]),
                median(times["native"]),
                median(ratios),
                min(ratios),
                max(ratios),
            ]
        )
    publish(
        args.name,
        f"oracle ratio, N = {args.tokens}, keep {args.keep}, LLaVA-OneVision-0.5B geometry, bound {BOUND}",
        ["method", "k", "plan_cpu_s", "native_cpu_s", "ratio", "ratio_min", "ratio_max"],
        rows,
        {"bound": BOUND, "tokens": args.tokens, "keep": args.keep, "repeats": args.repeats},
    )


if __name__ == "__main__":
    main()
