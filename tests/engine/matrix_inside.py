"""What each family does inside the language model: a prefill drop, a cache policy and a codec, each in
a ragged batch of three against single requests and, where a mask can imitate it, a full-length forward.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch

from foveate.core import Plan, Reduction
from foveate.core.errors import FoveateError
from foveate.core.language import CachePolicy, KVView
from foveate.engine.language_run import LanguageRun
from foveate.models import compat_language
from foveate.models.adapter import AutoAdapter, adapter_for
from tests.engine.inside import generated, reference_logits
from tests.engine.matrix import EXACT
from tests.engine.reference import relative
from tests.support import tiny

STEPS = 4
CODEC = "kivi:bits=8,group=2,residual=4"
KINDS = {
    "full_attention": "full",
    "sliding_attention": "sliding",
    "chunked_attention": "chunked",
}


@dataclass(frozen=True)
class Halves(CachePolicy):
    """Half of the entries, others in each layer, the same for all heads: a mask can imitate that."""

    name: ClassVar[str] = "halves"
    summary: ClassVar[str] = "for the matrix"

    def allocate(self, stats: Any, room: Sequence[Sequence[int]], budget: int) -> Any:
        return [[max(2, n // 2) for n in layer] for layer in room]

    def select(self, layer: int, view: KVView, k: Sequence[int], stats: Any) -> list[Reduction]:
        n = len(view.keys[0])
        picks = np.random.default_rng(layer).permutation(n - 1)[: k[0] - 1]
        return [Reduction.pick(np.append(picks, n - 1), n, "cache") for _ in k]


def layers_of(adapter: AutoAdapter) -> str:
    """What the decoder's layers are, such as "1 full, 2 sliding (16)"."""
    text = adapter.text_config
    found: dict[str, int] = {}
    for kind in compat_language.layer_kinds(text, text.num_hidden_layers):
        window = compat_language.window_of(text, kind)
        name = KINDS.get(kind, "recurrent")
        if kind in ("sliding_attention", "chunked_attention"):
            name = f"{name} ({window[1]})" if window else "full"
        found[name] = found.get(name, 0) + 1
    return ", ".join(f"{count} {name}" for name, count in found.items())


def batch(name: str, model: Any) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Three ragged prompts with their pictures."""
    singles = tiny.split_images(name, tiny.image_inputs(name))
    medias = [singles[i % len(singles)] for i in range(3)]
    rows = [
        tiny.prompt(name, model, mm, lead=5 - i, tail=4 + 2 * i, seed=1 + i)
        for i, mm in enumerate(medias)
    ]
    return rows, medias


def drop_layer(adapter: AutoAdapter) -> int:
    """The first layer from 2 on that follows a layer with attention."""
    text = adapter.text_config
    kinds = compat_language.layer_kinds(text, text.num_hidden_layers)
    return 1 + next(i for i, k in enumerate(kinds) if i and k in compat_language.CACHED_KINDS)


def late_only(length_of_prompt: int) -> Any:
    """A mask that hides evicted columns from queries after the prompt alone."""

    def mask_of(mask: Any, gone: Any, length: int) -> Any:
        causal = torch.ones(length, length, dtype=torch.bool).tril()[None, None]
        base = causal if mask is None else mask
        hide = torch.zeros(length, length, dtype=torch.bool)
        hide[length_of_prompt:] = gone
        if base.dtype == torch.bool:
            return base & ~hide
        return base.masked_fill(hide, torch.finfo(base.dtype).min)

    return mask_of


def differs(name: str, plan: Plan, kind: str) -> tuple[float, str]:
    """The largest difference found, relative to the largest logit, and what it was compared with."""
    model = tiny.make_model(name)
    adapter = adapter_for(model)
    rows, medias = batch(name, model)
    call = {**tiny.pad_batch(rows, "left"), **tiny.join_images(name, medias)}
    out, short, run = generated(model, adapter, plan, call, steps=STEPS)
    got, worst = torch.stack(out.logits, 1), 0.0
    masked = kind != "codec" and not adapter.recurrent
    for i, (row, mm) in enumerate(zip(rows, medias, strict=True)):
        alone, _, _ = generated(model, adapter, plan, {**row, **mm}, steps=STEPS)
        worst = max(worst, relative(got[i], torch.stack(alone.logits, 1)[0]))
        if not masked:
            continue
        n = row["input_ids"].shape[1]
        real = short.kwargs["attention_mask"][i].bool()
        p = short.kwargs["position_ids"]
        p = (p[:, i] if p.ndim == 3 else p[i][None])[:, real]
        prompt = short.kwargs["input_ids"].shape[1]
        sequence = torch.cat([row["input_ids"][0], out.sequences[i, prompt:]])
        if kind == "prefill":
            present: Any = run.record.present[i]
            want = reference_logits(model, adapter, row, mm, sequence, present, p)
            worst = max(worst, relative(got[i], want))
            continue
        stores = out.past_key_values.rows[i].layers
        present = []
        for layer in range(len(stores)):
            at = np.sort(stores[run.sources[layer]].head(0)[2].numpy())
            present.append(at[at < n])
        want = reference_logits(model, adapter, row, mm, sequence, present, p, mask_of=late_only(n))
        worst = max(worst, relative(got[i][1:], want[1:]))
    return worst, "exact" if masked else "batch-equals-single"


@torch.no_grad()
def check_inside(name: str) -> dict[str, Any]:
    """The entry `inside` of the support matrix: a status for each kind of plan, and reasons."""
    model = tiny.make_model(name)
    adapter = adapter_for(model)
    plans = {
        "prefill": Plan.parse(f"fastv:layer={drop_layer(adapter)},keep=1/2;positions=retain"),
        "policy": Plan((Halves(keep="1/2"),), positions="retain"),  # type: ignore[arg-type]
        "codec": Plan.parse(f"{CODEC};positions=retain"),
    }
    entry: dict[str, Any] = {"layers": layers_of(adapter)}
    reasons = []
    for kind, plan in plans.items():
        try:
            worst, status = differs(name, plan, kind)
        except FoveateError as error:
            entry[kind] = "refused"
            reasons.append(f"{kind}: {error}".replace(f"; {adapter.model_type} has", "; here is"))
            continue
        if not worst <= EXACT:
            entry[kind] = "refused"
            reasons.append(f"{kind}: differs from its reference by {worst:.1e}")
            continue
        entry[kind], entry[f"{kind}_worst"] = status, float(f"{worst:.1e}")
    recurrent = LanguageRun(adapter, Plan.parse("none")).new_cache().recurrent
    entry["continuous"] = "refused" if recurrent else "runs"
    if recurrent:
        reasons.append(
            "continuous: a recurrent state belongs to a whole batch; use Engine.generate"
        )
    entry["reasons"] = reasons
    return entry
