"""Cache policies in the engine: batch equals single, bytes are what is kept, attention over uneven heads."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from transformers.integrations.sdpa_attention import sdpa_attention_forward

import foveate
from foveate.core import Plan, Reduction
from foveate.core.errors import PlanError, SettingError
from foveate.core.language import CachePolicy, KVView
from foveate.engine.kv import BLOCK_ENTRIES, LayerStore, blocks
from foveate.engine.kv_attention import attend, attend_reference
from foveate.lab import demo_pictures, nano_path
from foveate.models.adapter import adapter_for
from tests.engine.inside import generated, reference_logits
from tests.engine.reference import relative
from tests.support import tiny


@dataclass(frozen=True)
class Uneven(CachePolicy):
    """Keeps other entries in every head and layer: the worst case for the store."""

    name: ClassVar[str] = "uneven"
    summary: ClassVar[str] = "for tests"

    def allocate(self, stats: Any, room: Sequence[Sequence[int]], budget: int) -> Any:
        return [[max(2, n // 2 - 2 * h) for h, n in enumerate(layer)] for layer in room]

    def select(self, layer: int, view: KVView, k: Sequence[int], stats: Any) -> list[Reduction]:
        out = []
        for h, count in enumerate(k):
            n = len(view.keys[h])
            rng = np.random.default_rng(10 * layer + h)
            picks = rng.permutation(n - 1)[: count - 1]
            out.append(Reduction.pick(np.append(picks, n - 1), n, "cache"))
        return out


@dataclass(frozen=True)
class SameForAllHeads(Uneven):
    name: ClassVar[str] = "same-for-all-heads"

    def allocate(self, stats: Any, room: Sequence[Sequence[int]], budget: int) -> Any:
        return [[max(2, n // 2) for n in layer] for layer in room]

    def select(self, layer: int, view: KVView, k: Sequence[int], stats: Any) -> list[Reduction]:
        n = len(view.keys[0])
        picks = np.random.default_rng(layer).permutation(n - 1)[: k[0] - 1]
        return [Reduction.pick(np.append(picks, n - 1), n, "cache") for _ in k]


def _batch(
    name: str, model: Any, count: int = 3
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    singles = tiny.split_images(name, tiny.image_inputs(name))
    medias = [singles[i % len(singles)] for i in range(count)]
    rows = [
        tiny.prompt(name, model, mm, lead=5 - i, tail=4 + 2 * i, seed=1 + i)
        for i, mm in enumerate(medias)
    ]
    return rows, medias


@pytest.mark.parametrize("name", tiny.REPRESENTATIVE)
@torch.no_grad()
def test_evicted_entries_are_hidden_from_every_later_step(name: str) -> None:
    """The first token sees all; each later one what was kept: a full-length forward says the same."""
    model = tiny.make_model(name)
    adapter = adapter_for(model)
    rows, medias = _batch(name, model)
    plan = Plan((SameForAllHeads(keep="1/2"),), positions="retain")  # type: ignore[arg-type]
    call = {**tiny.pad_batch(rows, "left"), **tiny.join_images(name, medias)}
    out, short, run = generated(model, adapter, plan, call)
    prompt = short.kwargs["input_ids"].shape[1]
    for i, (row, mm) in enumerate(zip(rows, medias, strict=True)):
        real = short.kwargs["attention_mask"][i].bool()
        p = short.kwargs["position_ids"]
        p = (p[:, i] if p.ndim == 3 else p[i][None])[:, real]
        n = row["input_ids"].shape[1]
        stores = out.past_key_values.rows[i].layers
        present = [np.sort(s.head(0)[2].numpy()) for s in stores]
        present = [x[x < n] for x in present]
        assert all(len(x) == max(2, n // 2) for x in present)
        sequence = torch.cat([row["input_ids"][0], out.sequences[i, prompt:]])
        # Prompt queries saw everything: only queries after the prompt are to be compared, and their
        # inputs at the prompt must come from the whole model. See `evicted_reference`.
        want = evicted_reference(model, adapter, row, mm, sequence, present, p)
        got = torch.stack([x[i] for x in out.logits[1:]])
        assert relative(got, want) <= 2e-5


def evicted_reference(
    model: Any, adapter: Any, row: Any, mm: Any, sequence: Any, present: Any, p: Any
) -> Any:
    """Logits of the new tokens from one full-length forward whose masks hide evicted columns from
    queries after the prompt only.
    """
    n = row["input_ids"].shape[1]

    def late_only(mask: Any, gone: Any, length: int) -> Any:
        causal = torch.ones(length, length, dtype=torch.bool).tril()[None, None]
        base = causal if mask is None else mask
        hide = torch.zeros(length, length, dtype=torch.bool)
        hide[n:] = gone
        if base.dtype == torch.bool:
            return base & ~hide
        return base.masked_fill(hide, torch.finfo(base.dtype).min)

    return reference_logits(model, adapter, row, mm, sequence, present, p, mask_of=late_only)[1:]


@pytest.mark.parametrize("policy", [Uneven, SameForAllHeads])
@pytest.mark.parametrize("name", ["llava", "qwen2_5_vl", "qwen3_vl", "gemma3"])
@torch.no_grad()
def test_a_ragged_batch_equals_single_requests(name: str, policy: Any) -> None:
    model = tiny.make_model(name)
    adapter = adapter_for(model)
    rows, medias = _batch(name, model)
    plan = Plan((policy(keep="1/2"),), positions="retain")
    call = {**tiny.pad_batch(rows, "left"), **tiny.join_images(name, medias)}
    out, _, _ = generated(model, adapter, plan, call)
    got = torch.stack(out.logits, 1)
    for i, (row, mm) in enumerate(zip(rows, medias, strict=True)):
        alone, _, _ = generated(model, adapter, plan, {**row, **mm})
        assert relative(got[i], torch.stack(alone.logits, 1)[0]) <= 2e-5
        assert alone.sequences[0, -16:].equal(out.sequences[i, -16:])


@pytest.mark.parametrize("queries", [1, 3])
@pytest.mark.parametrize("window", [None, 5])
def test_attention_over_uneven_heads_equals_the_plain_loop(
    queries: int, window: int | None
) -> None:
    g = torch.Generator().manual_seed(0)
    store = LayerStore()
    store.append(
        torch.randn(3, 20, 8, generator=g), torch.randn(3, 20, 8, generator=g), torch.arange(20)
    )
    store.reduce([Reduction.pick(np.arange(20)[h :: h + 1], 20, "cache") for h in range(3)])
    assert store.lengths == (20, 10, 6)
    new = torch.randn(3, queries, 8, generator=g)
    origin = torch.arange(20, 20 + queries)
    store.append(new, new, origin)
    q = torch.randn(1, 6, queries, 8, generator=g)
    visible = None if window is None else (lambda a, b: a - b < window)

    class Module:
        num_key_value_groups = 2
        training = False

    got = attend(sdpa_attention_forward, Module(), q, store, origin, visible, {"scaling": 8**-0.5})
    want = attend_reference(q, store, origin, visible, 8**-0.5)
    assert torch.allclose(got, want.transpose(1, 2) if got.shape != want.shape else want, atol=1e-5)


def test_bytes_are_those_of_the_entries_kept_within_a_block() -> None:
    engine = foveate.Engine.from_pretrained(nano_path())
    d = demo_pictures()[0]
    request = foveate.Request(images=[d.image], question=d.question)
    report = engine.generate([request], "snapkv:keep=1/10")[0].report
    full = engine.generate([request])[0].report
    assert report is not None and full is not None and report.kv_bytes and full.kv_bytes
    assert report.kv_bytes < full.kv_bytes / 4


@pytest.mark.claim("I3")
def test_a_store_frees_what_it_drops_and_grows_by_blocks() -> None:
    store = LayerStore()
    k = torch.randn(2, 100, 4)
    store.append(k, k, torch.arange(100))
    assert store.nbytes == 2 * 2 * blocks(100) * 4 * 4
    store.reduce([Reduction.pick(np.arange(0, 100, 3), 100, "cache")] * 2)
    assert store.lengths == (34, 34) and store.nbytes == 2 * 2 * 48 * 4 * 4
    for i in range(30):
        store.append(k[:, i : i + 1], k[:, i : i + 1], torch.tensor([100 + i]))
        spare = store.nbytes - store.entries * store.bytes_per_entry
        assert 0 <= spare <= 2 * BLOCK_ENTRIES * store.bytes_per_entry
    assert torch.equal(store.head(1)[0][-1], k[1, 29])
    store.truncate(30)
    assert store.lengths == (34, 34) and store.head(0)[2].tolist() == list(range(0, 100, 3))


def test_bad_budgets_and_layers_are_refused() -> None:
    with pytest.raises(SettingError, match="exactly one"):
        Plan.parse("snapkv")
    with pytest.raises(SettingError, match="keep"):
        Plan.parse("snapkv:keep=0")
    with pytest.raises(SettingError, match="entries"):
        Plan.parse("snapkv:entries=0")
    with pytest.raises(PlanError, match="both act at stage"):
        Plan.parse("snapkv:keep=1/2+snapkv:keep=1/4")
