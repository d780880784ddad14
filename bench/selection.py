"""P6, selection cost: CPU time of scoring and selecting, over the prefill time that dropping N - k
tokens saves.

python -m bench.selection [--methods a,b] [--tokens 2880] [--keep 1/9] [--repeats 5]
"""

from __future__ import annotations

import argparse

import torch

from bench.common import interleaved, median, publish
from bench.geometry import Facts, grid_for, onevision, prompt
from bench.oracle import runnable
from foveate.core import Plan, registry
from foveate.core.choice import counts_of
from foveate.core.rng import PlanRng
from foveate.core.views import Question, Segment
from foveate.models.encoded import encoder_view

BOUND = 0.05


def select_once(plan: Plan, facts: Facts, words: torch.Tensor) -> int:
    """Score and select as the engine does; returns the tokens kept."""
    method = plan.stage("tokens")
    encoded = facts.encoded(method.needs)
    view = encoder_view(encoded, encoded.pieces[0], method.needs)
    segment = Segment(0, 0, encoded.pieces[0].kind, facts.grid, facts.features, encoder=view)
    question = Question(-1, torch.arange(len(words)), words)
    counts = counts_of(method, [segment])
    return sum(r.k for r in method.select([segment], counts, question, PlanRng(0)))


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--methods", default="visionzip,divprune,trimtokenator-lc,uniform")
    parser.add_argument("--tokens", type=int, default=2880)
    parser.add_argument("--keep", default="1/9")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--name", default="selection")
    args = parser.parse_args()
    torch.set_num_threads(1)
    names = runnable() if args.methods == "all" else args.methods.split(",")
    model, adapter = onevision()
    token = adapter.token_id("image")
    pictures = {v: Facts(args.tokens, grid_for(v, args.tokens)) for v in (False, True)}
    words = torch.randn(30, 896, generator=torch.Generator().manual_seed(1))
    plans = {n: Plan.parse(f"{n}:keep={args.keep}") for n in names}
    facts = {n: pictures[registry.get(n).video_only] for n in names}
    kept = {n: select_once(p, facts[n], words) for n, p in plans.items()}
    k = max(kept.values())

    def prefill(n: int) -> None:
        call = prompt(n, token)
        embeds = model.get_input_embeddings()(call["input_ids"])
        model.model.language_model(
            inputs_embeds=embeds, attention_mask=call["attention_mask"], use_cache=True
        )

    base = interleaved({"N": lambda: prefill(args.tokens), "k": lambda: prefill(k)}, 3, warm=0)
    saved = median(base["N"]) - median(base["k"])
    times = interleaved(
        {n: (lambda p=p, f=facts[n]: select_once(p, f, words)) for n, p in plans.items()},
        args.repeats,
    )
    rows = [[n, kept[n], median(times[n]), saved, median(times[n]) / saved] for n in names]
    publish(
        args.name,
        f"selection cost, N = {args.tokens}, keep {args.keep}, LLaVA-OneVision-0.5B geometry, bound {BOUND}",
        ["method", "k", "select_cpu_s", "prefill_saved_cpu_s", "share"],
        rows,
        {"bound": BOUND, "tokens": args.tokens, "keep": args.keep, "repeats": args.repeats},
    )


if __name__ == "__main__":
    main()
