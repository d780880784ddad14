"""Continuous batching against one request after the other on lab-nano: requests a second.

    python -m bench.continuous [--requests 8,32] [--new 8,64] [--repeats 3] [--plan none]

Both sides get the same pictures and questions of the lab's tasks and start from pictures in memory:
the processor's work is inside. `sequential` is transformers' own generate() on the untouched model,
batch 1, greedy. "64" has no stop token, so that every answer has 64 tokens; "8" stops where the
model does. Runs are taken in turn; figures are medians of process CPU seconds, and of the clock.
The answers of both sides are compared token by token.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch

from bench.common import machine, publish
from foveate.engine.continuous import serving
from foveate.engine.engine import Engine
from foveate.engine.request import Request
from foveate.lab import nano_path
from foveate.lab.tasks import samples

BOUND = 2.0
TASKS = ("count", "form", "code", "quadrant", "shape", "bar", "leftof", "exists")
STOPS_UP_TO = 8  # answers of at most so many new tokens may stop where the model does

Tokens = dict[str, tuple[int, ...]]


def requests(n: int) -> list[Request]:
    """n questions about n pictures of the lab's test split, tasks in turn."""
    each = -(-n // len(TASKS))
    found = [s for group in zip(*(samples(t, "test", each) for t in TASKS), strict=True)
             for s in group]  # fmt: skip
    return [
        Request(images=[s.image], question=s.question, id=f"r{i}") for i, s in enumerate(found[:n])
    ]


def sequential(engine: Engine, members: list[Request], new: int) -> Tokens:
    """transformers' generate(), one request after the other."""
    config = copy.deepcopy(engine.model.generation_config)
    config.max_new_tokens, config.do_sample = new, False
    if new > STOPS_UP_TO:
        config.eos_token_id = -1  # None would be filled in from the model's own
    out = {}
    for request in members:
        ready = engine.prepare(request)
        inputs = engine.processor(text=[ready.text], images=[ready.pictures], return_tensors="pt")
        with torch.no_grad():
            found = engine.model.generate(**inputs, generation_config=config)
        out[str(request.id)] = tuple(found[0, inputs["input_ids"].shape[1] :].tolist())
    return out


def continuous(engine: Engine, members: list[Request], new: int, plan: str) -> Tokens:
    """The same through ContinuousEngine, all submitted at once."""
    with serving(engine, plan) as run:
        if new > STOPS_UP_TO:
            run.stop_ids = set()
        for request in members:
            run.submit(request, max_new_tokens=new)
        found = run.run_all()
    return {i: a.token_ids for i, a in found.items()}


def timed(run: Callable[[], Tokens]) -> tuple[float, float, Tokens]:
    """(process CPU seconds, seconds by the clock, what it gave)."""
    cpu, clock = time.process_time(), time.perf_counter()
    found = run()
    return time.process_time() - cpu, time.perf_counter() - clock, found


def measure(engine: Engine, n: int, new: int, plan: str, repeats: int) -> list[Any]:
    """One row of the table."""
    members = requests(n)
    sides = {
        "sequential": lambda: sequential(engine, members, new),
        "continuous": lambda: continuous(engine, members, new, plan),
    }
    continuous(engine, members[:2], 2, plan)  # what only a first call costs
    seen: dict[str, list[tuple[float, float, Tokens]]] = {k: [] for k in sides}
    for _ in range(repeats):
        for name, side in sides.items():
            seen[name].append(timed(side))
    cpu = {k: statistics.median(x[0] for x in v) for k, v in seen.items()}
    clock = {k: statistics.median(x[1] for x in v) for k, v in seen.items()}
    one, two = seen["sequential"][-1][2], seen["continuous"][-1][2]
    ratios = [a[0] / b[0] for a, b in zip(*seen.values(), strict=True)]
    equal = sum(one[i] == two[i] for i in one)
    tokens = sum(map(len, two.values()))
    return [
        f"{n} requests, {'up to ' if new <= STOPS_UP_TO else ''}{new} tokens",
        tokens,
        n / cpu["sequential"],
        n / cpu["continuous"],
        cpu["sequential"] / cpu["continuous"],
        min(ratios),
        max(ratios),
        clock["sequential"] / clock["continuous"],
        f"{equal} of {n}",
    ]


COLUMNS = [
    "load",
    "new_tokens",
    "sequential_per_cpu_s",
    "continuous_per_cpu_s",
    "ratio",
    "ratio_min",
    "ratio_max",
    "clock_ratio",
    "equal_answers",
]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n\n")[0])

    def numbers(text: str) -> list[int]:
        return [int(x) for x in text.split(",")]

    parser.add_argument("--requests", type=numbers, default=[8, 32])
    parser.add_argument("--new", type=numbers, default=[8, 64])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--plan", default="none")
    parser.add_argument("--name", default="continuous")
    args = parser.parse_args()
    torch.set_num_threads(1)
    engine = Engine.from_pretrained(nano_path())
    rows = [
        measure(engine, n, new, args.plan, args.repeats) for n in args.requests for new in args.new
    ]
    claims = [
        {
            "id": "I5",
            "what": f"throughput of continuous batching over sequential generate: {row[0]}",
            "figure": f"{row[4]:.2f} times (process CPU time; by the clock {row[7]:.2f})",
            "bound": f"at least {BOUND:g} times",
            "holds": row[4] >= BOUND,
        }
        for row in rows
    ]
    publish(
        args.name,
        f"continuous batching on lab-nano, plan {args.plan}, {machine()['threads']} thread",
        COLUMNS,
        rows,
        {"bound": BOUND, "plan": args.plan, "repeats": args.repeats, "claims": claims},
    )


if __name__ == "__main__":
    main()
