"""Decoding over a cache of which a tenth is left, against all of it: tokens a second and bytes.

    python -m bench.decode [--geometry smolvlm,onevision,llava15] [--batch 1,4,16]
        [--context 636,2940,4096,10300] [--keep 1/10] [--new 16] [--rounds 3] [--limit 60] [--table]

Three caches in turn, each in transformers' own generate() on the same model: `dense`, its
DynamicCache with the whole context; `kept`, our ragged store with `keep` of the entries in every KV
head, which is what snapkv leaves; `full`, our store with everything, whose distance from `dense` is
what attention row by row costs. The caches hold random keys and values: the time of a step does not
depend on them, and no prompt of this length has to be computed. Figures are medians of process CPU
seconds, each run in a process of its own; `held` is what the cache allocates at the end, `peak` the
growth of resident memory from before the cache to the largest moment of decoding. A cell that does
not fit or takes longer says so, and fits on a geometry cut to a few layers, such as llava15-4
(bench.prefill); one that was measured on the same code is not measured again. The contexts are 60
words and 576, 2880 or 10240 visual tokens, and the one that I4 names. Results:
bench/results/decode.json, one row a cell.
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

from bench.common import RESULTS, cpu_s, median, numbers, words
from bench.encode_store import Store, version
from bench.forked import forked
from bench.inside import FLOAT_BYTES, Inside
from bench.inside import GEOMETRIES as WHOLE
from bench.prefill import GEOMETRIES
from foveate.core import Plan
from foveate.engine.language_pass import RowMeta
from foveate.engine.language_run import LanguageRun
from foveate.measure.memory import PeakRss

MOST_BYTES = 12 * 10**9
KINDS = ("dense", "kept", "full")
COLUMNS = [
    "dense_tokens_per_s",
    "kept_tokens_per_s",
    "full_tokens_per_s",
    "kept_over_dense",
    "full_over_dense",
    *(f"{kind}_{what}_bytes" for what in ("held", "peak") for kind in KINDS),
]
CLAIMED = (4096, "1/10")
PATH = RESULTS / "decode.json"
CHOOSER = "snapkv"  # the method whose cache `kept` looks like
SHARED = (
    "foveate.engine.language_run",
    "foveate.engine.kv",
    "foveate.engine.kv_attention",
    "foveate.engine.kv_cache",
    "foveate.models.compat_language",
    "bench.inside",
)


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


def one(
    bench: Inside, kind: str, args: argparse.Namespace, context: int, batch: int
) -> dict[str, Any]:
    """One run of one cache, in a process of its own so that freed memory of others is not reused."""
    keep = Fraction(args.keep) if kind == "kept" else Fraction(1)
    with contextlib.ExitStack() as stack, PeakRss(interval_s=0.02) as peak:
        if kind == "dense":
            cache = dynamic(bench, context, batch)
        else:
            run = stack.enter_context(LanguageRun(bench.adapter, Plan()).attached())
            cache = ragged(bench, run, context, batch, keep)
        seconds = cpu_s(lambda: generate(bench, cache, context, batch, args.new))
        held = held_bytes(cache)
    speed = batch * args.new / seconds
    return {"tokens_per_s": speed, "held_bytes": held, "peak_bytes": peak.extra_bytes}


def why_not(bench: Inside, context: int, batch: int) -> str | None:
    """Why a batch is not run: transformers' cache is copied while it grows."""
    cached = sum(2 * x.kv_heads * x.head_dim for x in bench.shape.layers) * context * batch
    size = bench.weights_bytes + FLOAT_BYTES * cached * 5 // 4
    return f"about {size / 1e9:.0f} GB" if size > MOST_BYTES else None


def key(geometry: str, context: int, keep: str, new: int, batch: int) -> str:
    return f"{geometry} {context} {keep} +{new} x{batch}"


def measure(
    bench: Inside, store: Store, args: argparse.Namespace, context: int, batch: int
) -> None:
    """One cell, unless it was measured on this code with as many rounds."""
    place, code = (
        key(bench.geometry.name, context, args.keep, args.new, batch),
        version(CHOOSER, SHARED),
    )
    done = store.rounds(place, "time", code)
    if done is None or done >= args.rounds:
        return
    reason = why_not(bench, context, batch)
    if reason is not None:
        store.put(place, "time", code, {"not_run": reason})
        return
    for _ in range(args.rounds - done):
        values: dict[str, float] = {}
        for kind in KINDS:
            work = functools.partial(one, bench, kind, args, context, batch)
            found = forked(work, args.limit)
            if "not_run" in found:
                store.put(place, "time", code, {"not_run": f"{kind}: {found['not_run']}"})
                return
            values |= {f"{kind}_{name}": x for name, x in found.items()}
        for kind in ("kept", "full"):
            values[f"{kind}_over_dense"] = (
                values[f"{kind}_tokens_per_s"] / values["dense_tokens_per_s"]
            )
        store.append(place, code, max(1, round(Fraction(args.keep) * context)), values)
        print(place, values, file=sys.stderr, flush=True)


def write(store: Store) -> None:
    """The table, the rows and the claims of all cells."""
    from rich.console import Console
    from rich.table import Table

    table = Table(title="decode over a part of the KV entries, CPU time; medians")
    table.add_column("cell (geometry, context, kept, new tokens, batch)")
    for column in COLUMNS:
        table.add_column(column.replace("_", " "), justify="right")
    for place in sorted(store.cells):
        cell = store.cells[place]["time"]
        if "not_run" in cell:
            table.add_row(place, f"not run: {cell['not_run']}")
            continue
        shown = [median(cell[c]) for c in COLUMNS]
        table.add_row(place, *[f"{x / 2**20:.0f} MiB" if c.endswith("bytes") else f"{x:.2f}"
                               for c, x in zip(COLUMNS, shown, strict=True)])  # fmt: skip
    Console(width=170).print(table)
    store.save(claims=claims(store))


def claims(store: Store) -> list[dict[str, Any]]:
    """A line a cell of a whole model at the context and share that I4 names; cells that do not fit
    are no claim.
    """
    out = []
    for place in sorted(store.cells):
        cell = store.cells[place]["time"]
        name, context, keep, _, batch = place.split()
        if name not in WHOLE or (int(context), keep) != CLAIMED or "not_run" in cell:
            continue
        ratio = median(cell["kept_over_dense"])
        out.append(
            {
                "id": "I4",
                "what": f"decode at {keep} of the KV entries, {context} tokens of context, "
                f"{GEOMETRIES[name].title} {batch}, median of {cell['rounds']}",
                "figure": f"{ratio:.2f} times the speed of dense",
                "bound": "above 1",
                "holds": ratio > 1,
            }
        )
    return out


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n\n")[0])

    parser.add_argument("--geometry", type=words, default=list(WHOLE))
    parser.add_argument("--batch", type=numbers, default=[1, 4, 16])
    parser.add_argument("--context", type=numbers, default=[636, 2940, CLAIMED[0], 10300])
    parser.add_argument("--keep", default=CLAIMED[1])
    parser.add_argument("--new", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--limit", type=float, default=60.0, help="CPU seconds a run may take")
    parser.add_argument("--table", action="store_true", help="measure nothing")
    args = parser.parse_args()
    torch.set_num_threads(1)
    store = Store(PATH)
    for g in [] if args.table else args.geometry:
        bench = Inside(GEOMETRIES[g])
        generate(bench, dynamic(bench, 16, 1), 16, 1, 2)  # what only a first call costs
        for context in args.context:
            for batch in args.batch:
                measure(bench, store, args, context, batch)
                store.save()
    write(store)


if __name__ == "__main__":
    main()
