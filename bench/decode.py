"""Decoding over a cache of which a tenth is left, against all of it: tokens a second and bytes.

    python -m bench.decode [--geometry smolvlm,onevision,llava15] [--batch 1,4,16]
        [--context 4096] [--keep 1/10] [--new 16] [--rounds 3] [--limit 60]

Three caches in turn, each in transformers' own generate() on the same model: `dense`, its
DynamicCache with the whole context; `kept`, our ragged store with `keep` of the entries in every KV
head, which is what snapkv leaves; `full`, our store with everything, whose distance from `dense` is
what attention row by row costs. The caches hold random keys and values: the time of a step does not
depend on them, and no prompt of this length has to be computed. Figures are medians of process CPU
seconds, each run in a process of its own; `held` is what the cache allocates at the end, `peak` the
growth of resident memory from before the cache to the largest moment of decoding. Results:
bench/results/decode.json.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import sys
from fractions import Fraction
from typing import Any

import numpy as np
import torch

from bench.common import cpu_s, median, publish
from bench.forked import forked
from bench.inside import FLOAT_BYTES, GEOMETRIES, Inside
from foveate.core import Plan
from foveate.engine.language_pass import RowMeta
from foveate.engine.language_run import LanguageRun
from foveate.measure.memory import PeakRss

MOST_BYTES = 12 * 10**9
KINDS = ("dense", "kept", "full")
COLUMNS = [
    "cell",
    "dense_tokens_per_s",
    "kept_tokens_per_s",
    "full_tokens_per_s",
    "kept_over_dense",
    "full_over_dense",
    "dense_held_bytes",
    "kept_held_bytes",
    "full_held_bytes",
    "dense_peak_bytes",
    "kept_peak_bytes",
    "full_peak_bytes",
]


def dynamic(bench: Inside, context: int, batch: int) -> Any:
    """transformers' cache, filled."""
    from transformers import DynamicCache

    cache = DynamicCache(config=bench.model.config.get_text_config())
    for i, layer in enumerate(bench.shape.layers):
        size = (batch, layer.kv_heads, context, layer.head_dim)
        cache.update(torch.randn(size), torch.randn(size), i)
    return cache


def ragged(bench: Inside, run: LanguageRun, context: int, batch: int, keep: Fraction) -> Any:
    """Our cache with `keep` of a context in every head, entries spread evenly over it."""
    cache = run.new_cache()
    kept = max(1, round(keep * context))
    at = torch.from_numpy(np.linspace(0, context - 1, kept).round().astype(np.int32))
    for _ in range(batch):
        row = cache.new_row()
        for store, layer in zip(row.layers, bench.shape.layers, strict=True):
            size = (layer.kv_heads, kept, layer.head_dim)
            store.append(torch.randn(size), torch.randn(size), at)
        row.length = context
        cache.rows.append(row)
    cache.set_seen(context)
    text = RowMeta(
        np.zeros(context, np.int8),
        np.full(context, -1, np.int32),
        np.ones(context, bool),
        np.arange(context)[None],
        np.full(context, -1, np.int64),
    )
    run.resume(cache, [text] * batch)
    return cache


def held_bytes(cache: Any) -> int:
    """Keys and values that a cache has allocated."""
    if hasattr(cache, "rows"):
        return int(cache.nbytes)
    return sum(int(x.keys.nbytes + x.values.nbytes) for x in cache.layers)


def generate(bench: Inside, cache: Any, context: int, batch: int, new: int) -> None:
    ids = torch.full((batch, context + 1), 100)
    config = bench.model.generation_config
    config.eos_token_id = None
    bench.model.generate(
        input_ids=ids,
        attention_mask=torch.ones_like(ids),
        past_key_values=cache,
        max_new_tokens=new,
        do_sample=False,
        use_cache=True,
    )


def one(bench: Inside, kind: str, args: argparse.Namespace, batch: int) -> dict[str, Any]:
    """One run of one cache, in a process of its own so that freed memory of others is not reused."""
    keep = Fraction(args.keep) if kind == "kept" else Fraction(1)
    with contextlib.ExitStack() as stack, PeakRss(interval_s=0.02) as peak:
        if kind == "dense":
            cache = dynamic(bench, args.context, batch)
        else:
            run = stack.enter_context(LanguageRun(bench.adapter, Plan()).attached())
            cache = ragged(bench, run, args.context, batch, keep)
        seconds = cpu_s(lambda: generate(bench, cache, args.context, batch, args.new))
        held = held_bytes(cache)
    return {"tokens_per_s": batch * args.new / seconds, "held": held, "peak": peak.extra_bytes}


def why_not(bench: Inside, context: int, batch: int) -> str | None:
    """Why a batch is not run: transformers' cache is copied while it grows."""
    cached = sum(2 * x.kv_heads * x.head_dim for x in bench.shape.layers) * context * batch
    size = bench.weights_bytes + FLOAT_BYTES * cached * 5 // 4
    return f"about {size / 1e9:.0f} GB" if size > MOST_BYTES else None


def row(bench: Inside, args: argparse.Namespace, batch: int) -> list[Any]:
    """One row of the table."""
    title = f"{bench.geometry.title} x{batch}"
    reason = why_not(bench, args.context, batch)
    if reason is not None:
        return [title, f"not run: {reason}", *[None] * (len(COLUMNS) - 2)]
    seen: dict[str, list[dict[str, Any]]] = {k: [] for k in KINDS}
    for _ in range(args.rounds):
        for kind in KINDS:
            found = forked(functools.partial(one, bench, kind, args, batch), args.limit)
            if "not_run" in found:
                return [title, f"not run: {found['not_run']}", *[None] * (len(COLUMNS) - 2)]
            seen[kind].append(found)
            print(title, kind, found, file=sys.stderr, flush=True)
    speed = {k: median([x["tokens_per_s"] for x in v]) for k, v in seen.items()}

    def over(kind: str) -> float:
        pairs = zip(seen[kind], seen["dense"], strict=True)
        return median([a["tokens_per_s"] / b["tokens_per_s"] for a, b in pairs])

    held = [seen[k][-1]["held"] for k in KINDS]
    peak = [round(median([x["peak"] for x in seen[k]])) for k in KINDS]
    return [title, *speed.values(), over("kept"), over("full"), *held, *peak]


def claim(found: list[Any], args: argparse.Namespace) -> dict[str, Any]:
    """The line of one row."""
    known = isinstance(found[1], float)
    figure = f"{found[4]:.2f} times the speed of dense" if known else str(found[1])
    return {
        "id": "I4",
        "what": f"decode at {args.keep} of the KV entries, {args.context} tokens of context, "
        f"{found[0]}",
        "figure": figure,
        "bound": "above 1",
        "holds": found[4] > 1 if known else None,
    }


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n\n")[0])
    parser.add_argument("--geometry", type=lambda t: t.split(","), default=list(GEOMETRIES))
    parser.add_argument(
        "--batch", type=lambda t: [int(x) for x in t.split(",")], default=[1, 4, 16]
    )
    parser.add_argument("--context", type=int, default=4096)
    parser.add_argument("--keep", default="1/10")
    parser.add_argument("--new", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--limit", type=float, default=60.0, help="CPU seconds a run may take")
    parser.add_argument("--name", default="decode")
    args = parser.parse_args()
    torch.set_num_threads(1)
    rows = []
    for g in args.geometry:
        bench = Inside(GEOMETRIES[g])
        generate(bench, dynamic(bench, 16, 1), 16, 1, 2)  # what only a first call costs
        rows += [row(bench, args, batch) for batch in args.batch]
    publish(
        args.name,
        f"decode at {args.context} tokens of context, {args.keep} of the entries, CPU time",
        COLUMNS,
        rows,
        {
            "context": args.context,
            "keep": args.keep,
            "new": args.new,
            "rounds": args.rounds,
            # A cell that does not fit here says so in its row and is no claim.
            "claims": [claim(r, args) for r in rows if isinstance(r[1], float)],
        },
    )


if __name__ == "__main__":
    main()
