"""What a cache policy that looked at one question costs the next: on lab-nano, a picture and a first
question are prefilled under each policy, the first question's own entries are taken back, and an
unrelated second question about the same picture is asked over what is left.

    python -m bench.second_question [--n 60] [--keep 1/8] [--policies a,b]

"alone" is the second question under a cache that was chosen for itself, at the same budget; the loss is
alone minus second, on the same pictures. In both the words of the question are taken back and given
anew, so that they come on top of the budget in both. A query-agnostic policy should lose nothing: it
chose without the question. "first" is answered over its own cache as it is, words included.
The figures speak of lab-nano and rendered pictures alone.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bench.common import publish
from foveate.core import Plan, registry
from foveate.core.language import CachePolicy
from foveate.engine.engine import Engine
from foveate.engine.language_door import begin, meta_of
from foveate.engine.language_run import LanguageRun
from foveate.engine.request import Request
from foveate.lab import nano_path
from foveate.lab.head_probe import probe_heads, write_scores
from foveate.lab.score import is_right
from foveate.lab.tasks import DRAWERS, SPLITS, Sample, sample, stream
from foveate.measure.stats import mcnemar_exact

KINDS = {"print": ("code",), "shapes": ("shape", "colour"), "form": ("form",), "bars": ("bar",)}
"""Kinds of pictures, and the families of which one question of a pair must be."""
NEW_TOKENS = 8
WINDOW = 8
"""Last queries that vote, for policies that have such a window: lab-nano's questions are short."""
PAGE = 8
"""Entries a page, for policies that have pages: a larger one does not fit the budget of a short prompt."""


@dataclass(frozen=True)
class Pair:
    """Two questions about one picture whose evidence lies in different boxes."""

    first: Sample
    second: Sample


def pairs(n: int, seed: int) -> list[Pair]:
    """n pairs from the test split, kinds of pictures in turn, either question first."""
    rows = [_pairs_of(kind, families, seed) for kind, families in KINDS.items()]
    return [next(rows[i % len(rows)]) for i in range(n)]


def _pairs_of(kind: str, families: tuple[str, ...], seed: int) -> Iterator[Pair]:
    index = 0
    while True:
        rng = stream("test", f"second/{kind}", seed, index)
        index += 1
        drawn = DRAWERS[kind](rng, SPLITS["test"][1], 0)
        found = [sample(drawn, ask, 0) for ask in drawn.asks if 1 <= len(ask.boxes) <= 2]
        for one in (s for s in found if s.family in families):
            others = [s for s in found if s.boxes != one.boxes and s.answer != one.answer]
            if others:
                two = [one, others[int(rng.integers(len(others)))]]
                rng.shuffle(two)
                yield Pair(*two)
                break


def prepared(engine: Engine, asked: Sample, plan: Plan) -> Any:
    """The shortened call of one question."""
    request = Request(asked.question, images=asked.images)
    return engine.compressed(engine.preprocessed([engine.prepare(request)], plan)).short


@torch.no_grad()
def answers(engine: Engine, plan: Plan, first: Sample, second: Sample) -> list[str]:
    """The first question's answer, and the second's over what the first left in the cache."""
    short = prepared(engine, first, plan)
    with LanguageRun(engine.adapter, plan).attached() as run:
        call = {**short.kwargs, **begin(run, short, engine.special_ids)}
        length = call["input_ids"].shape[1]
        if "mm_encoder_outputs" in call:  # forward() edits what it is given
            call["mm_encoder_outputs"] = short.part(0, length)
        out = engine.model(**call, use_cache=True, logits_to_keep=1)
        cache, last = call["past_key_values"], call["position_ids"][..., -1:]
        found = [decoded(engine, cache, out, last)]
        other = prepared(engine, second, plan)
        shared = int(np.flatnonzero(meta_of(short)[0].modality > 0)[-1]) + 1
        ids, places = other.kwargs["input_ids"], other.kwargs["position_ids"]
        assert torch.equal(ids[:, :shared], short.kwargs["input_ids"][:, :shared])
        cache.rows[0].take_back(shared)
        cache.set_seen(shared)
        run.resume(cache, meta_of(other, engine.special_ids))
        with run.in_parts():
            out = engine.model(
                input_ids=ids[:, shared:],
                position_ids=places[..., shared:],
                past_key_values=cache,
                use_cache=True,
                logits_to_keep=1,
            )
        found.append(decoded(engine, cache, out, places[..., -1:]))
    return found


def decoded(engine: Engine, cache: Any, out: Any, last: Any) -> str:
    """Greedy tokens from a prompt's logits on, as text; `last` is the prompt's last position."""
    stop, ids = engine.stop_ids({}), []
    for step in range(NEW_TOKENS):
        token = int(out.logits[0, -1].float().argmax())
        if token in stop:
            break
        ids.append(token)
        out = engine.model(
            input_ids=torch.tensor([[token]], device=last.device),
            position_ids=last + step + 1,
            past_key_values=cache,
            use_cache=True,
        )
    return str(engine.processor.tokenizer.decode(ids, skip_special_tokens=True)).strip()


def plan_of(name: str, keep: str, heads: Path) -> Plan:
    known = registry.get(name)
    extra: dict[str, Any] = {"window": WINDOW} if "window" in known.__dataclass_fields__ else {}
    if name == "sparsemm":
        extra["heads"] = str(heads)
    if name == "hybridkv":
        extra["page"] = PAGE
    return Plan((registry.build(name, keep=keep, **extra),))


def measured(engine: Engine, plan: Plan, found: list[Pair]) -> dict[str, list[bool]]:
    """Right or wrong, pair by pair: the first question, the second after it, the second alone."""
    right: dict[str, list[bool]] = {"first": [], "second": [], "alone": []}
    for pair in found:
        one, two = answers(engine, plan, pair.first, pair.second)
        right["first"].append(is_right(pair.first, one))
        right["second"].append(is_right(pair.second, two))
        alone = answers(engine, plan, pair.second, pair.second)[1]
        right["alone"].append(is_right(pair.second, alone))
    return right


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--n", type=int, default=60)
    parser.add_argument("--keep", default="1/8")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--policies", default=None)
    parser.add_argument("--probe", type=int, default=60, help="samples of the probe of heads")
    args = parser.parse_args()
    torch.set_num_threads(1)
    engine = Engine.from_pretrained(nano_path())
    found_classes = registry.methods("memory").items()
    known = {n: bool(c.reads) for n, c in found_classes if issubclass(c, CachePolicy)}
    names = args.policies.split(",") if args.policies else list(known)
    found = pairs(args.n, args.seed)
    rows: list[list[Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        heads = Path(folder) / "heads.json"
        if "sparsemm" in names:
            write_scores(probe_heads(engine, args.probe, args.seed), heads)
        runs = [("all entries", plan_of("window-kv", "1", heads), "-")]
        for name in sorted(names, key=lambda n: (not known[n], n)):
            runs.append((name, plan_of(name, args.keep, heads), "yes" if known[name] else "no"))
        for name, plan, aware in runs:
            right = measured(engine, plan, found)
            share = {k: sum(v) / len(v) for k, v in right.items()}
            p = mcnemar_exact(*discordant(right["alone"], right["second"]))
            loss = share["alone"] - share["second"]
            rows.append([name, aware, *(share[k] for k in ("first", "alone", "second")), loss, p])
            print(rows[-1], flush=True)
    publish(
        "second_question",
        f"a second question over the first one's cache: lab-nano, keep {args.keep}, {args.n} pairs",
        ["policy", "reads the question", "first", "alone", "second", "loss", "p (McNemar)"],
        rows,
        {"keep": args.keep, "n": args.n, "seed": args.seed, "window": WINDOW},
    )


def discordant(a: list[bool], b: list[bool]) -> tuple[int, int]:
    """Pairs right in one run alone: (only a, only b)."""
    both = list(zip(a, b, strict=True))
    return sum(x and not y for x, y in both), sum(y and not x for x, y in both)


if __name__ == "__main__":
    main()
