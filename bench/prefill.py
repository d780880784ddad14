"""What dropping tokens inside the language model costs beside what it saves: time to the first
token against (time of all tokens x FLOP ratio), process CPU time.

    python -m bench.prefill [--methods fastv,pyramiddrop] [--geometry smolvlm,onevision,llava15]
        [--tokens 576,2880,10240] [--batch 1,4,16] [--rounds 3] [--limit 60] [--most-gb 12]
        [--table]

A geometry with a number behind it, such as onevision-4, is cut to so many of its layers: all of a
layer's sizes are kept, and cells that take too long whole are measured so.

A round times transformers' own forward on the untouched model, then every method on the same
inputs, in turn; choosing and filing the KV cache are inside. The FLOP ratio counts the tokens that
each layer had (foveate.core.flops). 1 would be a method whose choice costs nothing and whose layers
run at the speed of long ones. A cell that is expected over `limit` CPU seconds or over `most-gb` is
not run, and says so. A cell that was measured on the same code is not measured again. Results:
bench/results/prefill.json, one row a cell.
"""

from __future__ import annotations

import argparse
import gc
import sys
from typing import Any

import torch

from bench.common import RESULTS, cpu_s, median, numbers, words
from bench.encode_store import Store, version
from bench.inside import GEOMETRIES as WHOLE
from bench.inside import Geometry, Inside
from foveate.core import Plan, registry
from foveate.core.errors import FoveateError
from foveate.engine.language_run import LanguageRun
from foveate.models.adapter import AutoAdapter, adapter_for

BOUND = 1.15
CLAIMED = ("smolvlm", 2880, 1, ("fastv", "pyramiddrop"))
PATH = RESULTS / "prefill.json"
MOST_GB = 12.0
WARM = 256  # visual tokens of the run that tells how fast this machine is
SHARED = (
    "foveate.engine.language_run",
    "foveate.engine.language_pass",
    "foveate.engine.language_view",
    "foveate.engine.language_step",
    "foveate.engine.kv",
    "foveate.models.compat_language",
    "bench.inside",
)
LAYERS = 4  # the fewest of which PyramidDrop's three stages are all inside


def cut(whole: Geometry, layers: int) -> Geometry:
    """The geometry with the first layers of its language model alone."""

    def build() -> tuple[Any, AutoAdapter]:
        model, _ = whole.build()
        language, text = model.model.language_model, model.config.text_config
        language.layers = language.layers[:layers]
        for config in (text, language.config):
            config.num_hidden_layers = layers
            if getattr(config, "layer_types", None):
                config.layer_types = config.layer_types[:layers]
        return model, adapter_for(model)

    return Geometry(f"{whole.name}-{layers}", f"{whole.title}, {layers} layers", build)


CUT = [cut(g, LAYERS) for g in WHOLE.values()]
GEOMETRIES = {**WHOLE, **{g.name: g for g in CUT}}


def key(geometry: str, n: int, batch: int, method: str) -> str:
    return f"{geometry} {n} x{batch} {method}"


def one_round(bench: Inside, store: Store, n: int, batch: int, methods: list[str]) -> None:
    """Time all tokens once, then each method once."""
    g = bench.geometry.name
    dense = cpu_s(bench.dense(n, batch))
    for name in methods:
        place, code = key(g, n, batch, name), version(name, SHARED)
        try:
            with LanguageRun(bench.adapter, Plan.parse(name)).attached() as run:
                seconds = cpu_s(bench.planned(n, batch, run))
                counts = run.counts[0]
        except FoveateError as error:  # a method that needs weights or a sibling model
            store.put(place, "time", code, {"not_run": str(error)[:160]})
            continue
        ideal = bench.ratio(n, counts)
        values = {"dense_s": dense, "plan_s": seconds, "ratio": seconds / (dense * ideal)}
        store.append(place, code, counts[-1], values)
        store.cells[place]["time"]["flop_ratio"] = round(ideal, 4)
        print(f"{place}: {seconds:.2f} s of {dense:.2f} s, FLOPs {ideal:.3f}, ratio "
              f"{values['ratio']:.3f}", file=sys.stderr, flush=True)  # fmt: skip
    gc.collect()


def why_not(
    bench: Inside, n: int, batch: int, speed: float, limit: float, most_gb: float = MOST_GB
) -> str | None:
    """Why a cell is not run; speed in FLOPs a second of this machine."""
    seconds, size = bench.dense_flops(n, batch) / speed, bench.peak_bytes(n, batch)
    if seconds > limit:
        return f"about {seconds:.0f} s of CPU"
    if size > most_gb * 1e9:
        return f"about {size / 1e9:.0f} GB"
    return None


@torch.no_grad()
def measure(args: argparse.Namespace, store: Store) -> None:
    for g in args.geometry:
        bench: Inside | None = None
        for n in args.tokens:
            for batch in args.batch:
                wanted = [m for m in args.methods if _rounds(store, g, n, batch, m) < args.rounds]
                if not wanted:
                    continue
                if bench is None:
                    bench = Inside(GEOMETRIES[g])
                    bench.dense(WARM, 1)()
                    speed = bench.dense_flops(WARM, 1) / cpu_s(bench.dense(WARM, 1))
                reason = why_not(bench, n, batch, speed, args.limit, args.most_gb)
                if reason is not None:
                    for m in wanted:
                        place = key(g, n, batch, m)
                        store.put(place, "time", version(m, SHARED), {"not_run": reason})
                    store.save()
                    continue
                for _ in range(args.rounds):
                    todo = [m for m in wanted if _rounds(store, g, n, batch, m) < args.rounds]
                    if not todo:
                        break
                    one_round(bench, store, n, batch, todo)
                    store.save()


def _rounds(store: Store, g: str, n: int, batch: int, method: str) -> float:
    """Rounds measured on this code; no end where a cell was given up on it."""
    place, code = key(g, n, batch, method), version(method, SHARED)
    found = store.rounds(place, "time", code)
    return float("inf") if found is None else found


def write(store: Store) -> None:
    """The table, the rows and the claims of all cells."""
    from rich.console import Console
    from rich.table import Table

    columns = ["cell", "dense_s", "plan_s", "FLOP ratio", "ratio", "min", "max", "rounds"]
    table = Table(title="TTFT of the language model over (all tokens x FLOP ratio), CPU time")
    for column in columns:
        table.add_column(column, justify="left" if column == "cell" else "right")
    for place in sorted(store.cells):
        cell = store.cells[place]["time"]
        if "not_run" in cell:
            table.add_row(place, f"not run: {cell['not_run']}", *[""] * (len(columns) - 2))
            continue
        ratios = cell["ratio"]
        shown = [median(cell["dense_s"]), median(cell["plan_s"]), cell["flop_ratio"],
                 median(ratios), min(ratios), max(ratios)]  # fmt: skip
        table.add_row(place, *[f"{x:.3f}" for x in shown], str(cell["rounds"]))
    Console(width=140).print(table)
    store.save(bound=BOUND, claims=claims(store))


def claims(store: Store) -> list[dict[str, Any]]:
    """A line a method for the geometry that always has one, and for each other whole one measured."""
    first, n, batch, methods = CLAIMED
    out = []
    for g, name in ((g, m) for g in WHOLE for m in methods):
        cell = store.get(key(g, n, batch, name), "time")
        known = cell is not None and "ratio" in cell
        if not known and g != first:
            continue
        value = median(cell["ratio"]) if cell is not None and known else None
        rounds = f", median of {cell['rounds']}" if cell is not None and known else ""
        out.append(
            {
                "id": "I2",
                "what": f"prefill with {name} over (dense time x FLOP ratio), N = {n}, "
                f"{GEOMETRIES[g].title}{rounds}",
                "figure": "not measured" if value is None else f"{value:.3f}",
                "bound": f"at most {BOUND:g}",
                "holds": None if value is None else value <= BOUND,
            }
        )
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n\n")[0])

    parser.add_argument("--methods", type=words, default=["fastv", "pyramiddrop"])
    parser.add_argument("--geometry", type=words, default=list(WHOLE))
    parser.add_argument("--tokens", type=numbers, default=[576, 2880, 10240])
    parser.add_argument("--batch", type=numbers, default=[1, 4, 16])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--limit", type=float, default=60.0, help="CPU seconds a cell may take")
    parser.add_argument("--most-gb", type=float, default=MOST_GB, help="memory a cell may take")
    parser.add_argument("--table", action="store_true", help="measure nothing")
    args = parser.parse_args()
    if args.methods == ["all"]:
        args.methods = list(registry.methods("prefill"))
    for name in args.methods:
        registry.get(name)
    torch.set_num_threads(1)
    store = Store(PATH)
    if not args.table:
        measure(args, store)
    write(store)


if __name__ == "__main__":
    main()
