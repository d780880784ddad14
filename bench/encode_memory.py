"""P7 for the grid: peak resident memory that scoring and selecting adds, in a fork of a process
that holds the encoder's output and no model.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import gc
import sys
from fractions import Fraction
from typing import Any

import torch

from bench.encode_models import GEOMETRIES, text_embedding
from bench.encode_store import Store, key, version
from bench.forked import forked
from foveate.core import Plan, registry
from foveate.core.choice import counts_of
from foveate.core.rng import PlanRng
from foveate.core.views import Question, Segment
from foveate.engine.select import in_joint_space
from foveate.measure.memory import PeakRss
from foveate.models.encoded import encoder_view

MIB = 2**20
LARGE = 4096


def given_back() -> None:
    """Return what is free to the system, or memory that is resident anyway would not count."""
    gc.collect()
    with contextlib.suppress(OSError, AttributeError):  # a libc other than glibc keeps what it has
        ctypes.CDLL(None).malloc_trim(0)


def select_once(plan: Plan, facts: Any, question: Question) -> int:
    """Score and select as the engine does; returns the tokens kept."""
    method = plan.stage("tokens")
    encoded = facts.encoded(method.needs)
    wants = any(n.what not in ("question", "clip") for n in method.needs)
    segments = [
        Segment(
            0,
            i,
            piece.kind,
            piece.grid,
            piece.features,
            encoder=encoder_view(encoded, piece, method.needs) if wants else None,
        )
        for i, piece in enumerate(encoded.pieces)
    ]
    segments = in_joint_space(method, segments, lambda _: question.clip)
    counts = counts_of(method, segments)
    return sum(r.k for r in method.select(segments, counts, question, PlanRng(0)))


@torch.no_grad()
def measure_memory(args: argparse.Namespace, store: Store) -> None:
    """Fill the memory cells that `args` names and the store does not have."""
    for g in args.geometry:
        geometry = GEOMETRIES[g]
        words = torch.randn(30, geometry.dim, generator=torch.Generator().manual_seed(1))
        clip = text_embedding(geometry.width)
        question = Question(-1, torch.arange(len(words)), words, clip)
        for n in args.tokens:
            todo = []
            for name in args.methods:
                for keep in args.keep:
                    if n > LARGE and Fraction(keep) > Fraction(1, 9):
                        continue
                    code = None if args.missing else version(name)
                    if store.rounds(key(g, n, keep, name), "memory", code) == 0:
                        todo.append((name, keep))
            if not todo:
                continue
            facts = {v: geometry.facts(n, v) for v in {registry.get(m).video_only for m, _ in todo}}
            small = {v: geometry.facts(256, v) for v in facts}
            bound = 3 * next(iter(facts.values())).features.nbytes + 64 * MIB
            for name, keep in todo:
                video = registry.get(name).video_only
                plan = Plan.parse(f"{name}:keep={keep}")

                def work(
                    plan: Plan = plan,
                    warm: Any = small[video],
                    whole: Any = facts[video],
                    question: Any = question,
                ) -> dict[str, Any]:
                    select_once(plan, warm, question)  # imports are not the method's
                    given_back()
                    with PeakRss(interval_s=0.002) as peak:
                        select_once(plan, whole, question)
                    return {"bytes": peak.extra_bytes}

                found = forked(work, args.limit)
                if "bytes" in found:
                    found = {"mib": round(found["bytes"] / MIB, 1),
                             "share": float(f"{found['bytes'] / bound:.4g}")}  # fmt: skip
                else:
                    print(f"{key(g, n, keep, name)} memory: {found}", file=sys.stderr, flush=True)
                store.put(key(g, n, keep, name), "memory", version(name), found)
            store.save()
            print(f"{g} {n}: memory of {len(todo)} cells", file=sys.stderr, flush=True)
