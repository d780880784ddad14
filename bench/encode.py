"""The grid of the token stage: what each method costs at N tokens and a keep ratio, on two
geometries: selection cost (P6), oracle ratio (P5) and extra memory (P7).

    python -m bench.encode [--methods a,b] [--tokens 576,2880] [--keep 1/4,1/9]
        [--geometry onevision,smolvlm] [--rounds 3] [--limit 60] [--missing]
        [--only time|memory|table]

A round times the dense prefill, then every method at every keep ratio, each in a fork with a limit.
Scoring (partial attention) is timed once a round for methods that read the same. The whole call is
scoring, selecting and splicing, and the model's first logits; the last part is the same call for
every method that keeps k tokens, so it is timed once a round for each k. A cell that is there with
the same code is not measured again. Results: bench/results/encode.json and bench/encode.md.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator
from fractions import Fraction
from functools import partial
from typing import Any

import torch

from bench.common import cpu_s
from bench.encode_models import GEOMETRIES, Geometry, bare, text_embedding
from bench.encode_store import Store, key, version
from bench.encode_table import write
from bench.forked import forked
from bench.geometry import prompt
from foveate.core import Budget, Plan, registry, resolve
from foveate.core.views import Need
from foveate.engine.compress import compress

TOKENS = (256, 576, 1024, 2880, 10240)
KEEPS = ("1/2", "1/4", "1/9", "1/16")
ROUNDS = {256: 5, 576: 9, 1024: 3, 2880: 3, 10240: 1}
LARGE = 4096  # above: keep at most 1/9, and the dense prefill is that of a part of the layers
PART = 6  # layers of that part
WARM = 1024  # up to here a cell runs once unmeasured, since start-up would show


def kept(n: int, keep: str) -> int:
    return resolve(Budget(keep=Fraction(keep)), [[n]]).total


class Bench:
    """One geometry at N tokens: the model, random encoder output, and what to time."""

    def __init__(self, geometry: Geometry, model: Any, adapter: Any, n: int) -> None:
        self.geometry, self.model, self.adapter, self.n = geometry, model, adapter, n
        self.token = adapter.token_id("image")
        self.facts = {video: geometry.facts(n, video) for video in (False, True)}

    def text_tower(self, _: list[int]) -> torch.Tensor:
        """Stands in for the caller's own text tower, whose cost is not the method's."""
        return text_embedding(self.geometry.width)

    def native(self, k: int) -> Any:
        """The shortened call of an engine that is fed k tokens and no plan."""
        given = {"image": bare(k, self.geometry.dim)}
        return compress(self.adapter, Plan(), prompt(k, self.token), encoded=given)

    def forward_s(self, k: int) -> float:
        """CPU seconds from the shortened call to the first logits."""
        call = self.native(k).kwargs
        return cpu_s(lambda: self.model(**call, logits_to_keep=1, use_cache=True))

    def dense_s(self) -> float:
        """The same for all N tokens; of a long one PART layers are timed and scaled."""
        if self.n <= LARGE:
            return self.forward_s(self.n)
        decoder = self.model.model.language_model
        every = decoder.layers
        try:
            decoder.layers = every[:PART]
            return self.forward_s(self.n) * len(every) / PART
        finally:
            decoder.layers = every

    def cell(self, name: str, keep: str, encoded: Any) -> dict[str, Any]:
        """Seconds of selecting, and of all that compress() does, for one method."""
        plan = Plan.parse(f"{name}:keep={keep}")
        row = prompt(self.n, self.token)
        for _ in range(2 if self.n <= WARM else 1):
            with Selecting(plan.stage("tokens")) as selecting:
                start = time.process_time()
                short = compress(
                    self.adapter, plan, row, encoded={"image": encoded}, text_tower=self.text_tower
                )
                whole = time.process_time() - start
        k = short.rows[0].visual_kept
        return {"k": k, "select_s": selecting.seconds, "compress_s": whole}

    def native_cell(self, k: int) -> dict[str, Any]:
        row, given = prompt(k, self.token), {"image": bare(k, self.geometry.dim)}
        for _ in range(2 if self.n <= WARM else 1):
            seconds = cpu_s(lambda: compress(self.adapter, Plan(), row, encoded=given))
        return {"seconds": seconds}


class Selecting:
    """CPU seconds inside a method's select() while open."""

    def __init__(self, method: Any) -> None:
        self.kind, self.seconds = type(method), 0.0

    def __enter__(self) -> Selecting:
        inner, self.own = self.kind.select, "select" in vars(self.kind)

        def select(method: Any, *arguments: Any) -> Any:
            start = time.process_time()
            try:
                return inner(method, *arguments)
            finally:
                self.seconds += time.process_time() - start

        self.inner, self.kind.select = inner, select
        return self

    def __exit__(self, *_: Any) -> None:
        if self.own:
            self.kind.select = self.inner
        else:
            del self.kind.select


def turned(items: list[Any], by: int) -> Iterator[Any]:
    """The items in order, another one first each time."""
    by %= max(1, len(items))
    yield from items[by:] + items[:by]


def needed(
    store: Store, g: str, n: int, keeps: list[str], args: argparse.Namespace, rounds: int
) -> list[tuple[str, str]]:
    """(method, keep) that want a further round."""
    out = []
    for name in args.methods:
        code = None if args.missing else version(name)
        for keep in keeps:
            have = store.rounds(key(g, n, keep, name), "time", code)
            if have is not None and have < rounds:
                out.append((name, keep))
    return out


def one_round(
    bench: Bench, store: Store, todo: list[tuple[str, str]], at: int, limit: float
) -> None:
    """Time every cell of `todo` once, all in turn."""
    g, n = bench.geometry.name, bench.n
    dense = bench.dense_s()
    shorts: dict[int, tuple[float, float]] = {}

    def short_s(k: int) -> tuple[float, float]:
        if k not in shorts:
            found = forked(partial(bench.native_cell, k), limit)
            shorts[k] = (bench.forward_s(k), found["seconds"])
        return shorts[k]

    groups: dict[tuple[frozenset[Need], bool], list[tuple[str, str]]] = {}
    for name, keep in turned(todo, at * 7):
        method = registry.get(name)
        groups.setdefault((method.needs, method.video_only), []).append((name, keep))
    for (needs, video), members in groups.items():
        start = time.process_time()
        encoded = bench.facts[video].encoded(needs)
        score = time.process_time() - start
        for name, keep in members:
            place, code = key(g, n, keep, name), version(name)
            found = forked(partial(bench.cell, name, keep, encoded), limit)
            if "not_run" in found:
                store.put(place, "time", code, found)
                print(f"{place}: {found['not_run']}", file=sys.stderr, flush=True)
                continue
            k = int(found["k"])
            short, native = short_s(k)
            select = score + found["select_s"]
            values = {
                "p5": (score + found["compress_s"] + short) / (native + short),
                "p6": select / dense,
                "p6_saved": select / (dense - short) if dense > short else float("nan"),
                "score_s": score,
                "select_s": found["select_s"],
                "dense_s": dense,
                "short_s": short,
            }
            store.append(place, code, k, values)


@torch.no_grad()
def measure_time(args: argparse.Namespace, store: Store) -> None:
    for g in args.geometry:
        geometry, built = GEOMETRIES[g], None
        for n in args.tokens:
            rounds = args.rounds or ROUNDS.get(n, 3)
            keeps = [k for k in args.keep if n <= LARGE or Fraction(k) <= Fraction(1, 9)]
            if not needed(store, g, n, keeps, args, rounds):
                continue
            built = built or geometry.build()
            bench = Bench(geometry, *built, n)
            bench.forward_s(min(n, 256))  # what only a first call costs
            for at in range(rounds):
                todo = needed(store, g, n, keeps, args, rounds)
                if not todo:
                    break
                start = time.monotonic()
                one_round(bench, store, todo, at, args.limit)
                store.save(part_layers=PART, limit_s=args.limit)
                seconds = time.monotonic() - start
                print(f"{g} {n}: round {at + 1}, {len(todo)} cells, {seconds:.0f} s by the clock",
                      file=sys.stderr, flush=True)  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n\n")[0])

    def words(text: str) -> list[str]:
        return text.split(",")

    parser.add_argument("--methods", type=words, default=list(registry.methods("tokens")))
    parser.add_argument("--tokens", type=lambda t: [int(x) for x in words(t)], default=TOKENS)
    parser.add_argument("--keep", type=words, default=list(KEEPS))
    parser.add_argument("--geometry", type=words, default=list(GEOMETRIES))
    parser.add_argument("--rounds", type=int, default=0, help="0: by N, fewer for many tokens")
    parser.add_argument("--limit", type=float, default=60.0, help="CPU seconds a cell may take")
    parser.add_argument("--missing", action="store_true", help="leave cells of older code alone")
    parser.add_argument("--only", choices=("time", "memory", "table"))
    args = parser.parse_args()
    for name in args.methods:
        registry.get(name)
    torch.set_num_threads(1)
    store = Store()
    if args.only in (None, "memory"):  # first: forks of a process that holds no model
        from bench.encode_memory import measure_memory

        measure_memory(args, store)
    if args.only in (None, "time"):
        measure_time(args, store)
    write(store)


if __name__ == "__main__":
    main()
