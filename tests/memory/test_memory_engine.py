"""Every cache policy on models: batches, bytes, composition with other stages, overflow."""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any

import pytest
import torch

import foveate
from foveate.core import Plan, Reduction, flops
from foveate.core.errors import CheckpointError
from foveate.engine.kv import LayerStore
from foveate.engine.language_run import LanguageRun
from foveate.lab import demo_pictures, nano_path
from foveate.models.adapter import adapter_for
from foveate.models.shapes import model_shape
from tests.engine.inside import generated
from tests.engine.reference import relative
from tests.memory.test_contract import POLICIES, ROUNDED
from tests.support import tiny

NANO = (6, 6)
"""Layers and query heads of lab-nano."""
POOLING = {"snapkv", "pyramidkv", "adakv", "sparsemm", "random-kv"}
"""Those whose window is longer than half of a short prompt by default."""
SLACK = {**ROUNDED, "hybridkv": 16}
"""Entries a head beside the budget: what is rounded, and half an entry for each page's mean key."""


@functools.cache
def engine() -> foveate.Engine:
    return foveate.Engine.from_pretrained(nano_path())


def requests() -> list[foveate.Request]:
    return [foveate.Request(images=[d.image], question=d.question) for d in demo_pictures()]


def text(name: str, folder: Path, shape: tuple[int, int], budget: str = "keep=1/4") -> str:
    """The plan of one policy, with what it needs on a model of so many layers and query heads."""
    parts = [budget]
    if name in POOLING:
        parts.append("window=8")
    if name == "sparsemm":
        path = folder / "heads.json"
        path.write_text(
            json.dumps({"scores": [list(range(i, i + shape[1])) for i in range(shape[0])]})
        )
        parts.append(f"heads={path}")
    return f"{name}:" + ",".join(parts)


@pytest.mark.parametrize("family", ["llava", "qwen2_5_vl", "gemma3"])
@pytest.mark.parametrize("name", POLICIES)
@torch.no_grad()
def test_a_ragged_batch_equals_single_requests(name: str, family: str, tmp_path: Path) -> None:
    model = tiny.make_model(family)
    adapter = adapter_for(model)
    config = model.config.get_text_config()
    shape = (config.num_hidden_layers, config.num_attention_heads)
    singles = tiny.split_images(family, tiny.image_inputs(family))
    medias = [singles[i % len(singles)] for i in range(3)]
    rows = [
        tiny.prompt(family, model, mm, lead=5 - i, tail=4 + 2 * i, seed=1 + i)
        for i, mm in enumerate(medias)
    ]
    plan = Plan.parse(text(name, tmp_path, shape, "keep=1/2") + ";positions=retain")
    call = {**tiny.pad_batch(rows, "left"), **tiny.join_images(family, medias)}
    out, _, _ = generated(model, adapter, plan, call, steps=8)
    got = torch.stack(out.logits, 1)
    for i, (row, mm) in enumerate(zip(rows, medias, strict=True)):
        alone, _, _ = generated(model, adapter, plan, {**row, **mm}, steps=8)
        lengths = [store.lengths for store in alone.past_key_values.rows[0].layers]
        assert [s.lengths for s in out.past_key_values.rows[i].layers] == lengths
        assert relative(got[i], torch.stack(alone.logits, 1)[0]) <= 2e-5


def test_equal_budgets_are_equal_bytes(tmp_path: Path) -> None:
    """After the prompt every policy holds the same bytes, so that a table compares like with like."""
    held = {}
    for name in POLICIES:
        plan = text(name, tmp_path, NANO)
        answers = engine().generate(requests(), plan, max_new_tokens=1)
        held[name] = [a.report.kv_bytes for a in answers if a.report is not None]
        assert len(held[name]) == 3
    want = held["window-kv"]
    full = engine().generate(requests(), max_new_tokens=1)
    for name, found in held.items():
        for got, exact, answer in zip(found, want, full, strict=True):
            assert got and exact and answer.report and answer.report.kv_bytes
            entry = answer.report.kv_bytes // answer.report.prompt_tokens  # of all layers and heads
            assert exact == entry * round(answer.report.prompt_tokens / 4 + 1e-9)
            assert abs(got - exact) <= entry * SLACK.get(name, 0)
            assert name in ROUNDED or got == exact


def test_a_budget_in_bytes_is_kept(tmp_path: Path) -> None:
    budget = 200_000
    for name in POLICIES:
        plan = text(name, tmp_path, NANO, f"bytes={budget}")
        report = engine().generate(requests()[:1], plan, max_new_tokens=1)[0].report
        assert report is not None and report.kv_bytes
        assert 0.9 * budget <= report.kv_bytes <= budget * (1.1 if name in ROUNDED else 1)


@pytest.mark.parametrize("name", POLICIES)
def test_with_an_encode_and_a_prefill_method(name: str, tmp_path: Path) -> None:
    before = "visionzip:keep=1/2+fastv:keep=1/2"
    plain = engine().generate(requests(), before, max_new_tokens=4)
    both = engine().generate(
        requests(), f"{before}+{text(name, tmp_path, NANO, 'keep=1/2')}", max_new_tokens=4
    )
    for a, b in zip(plain, both, strict=True):
        assert b.ok and a.report and b.report and a.report.kv_bytes and b.report.kv_bytes
        assert b.report.kv_bytes < 0.75 * a.report.kv_bytes
        assert b.report.layers == a.report.layers


@pytest.mark.parametrize("name", POLICIES)
def test_all_entries_is_the_answer_without_a_plan(name: str, tmp_path: Path) -> None:
    want = engine().generate(requests(), max_new_tokens=6)
    got = engine().generate(requests(), text(name, tmp_path, NANO, "keep=1"), max_new_tokens=6)
    for a, b in zip(want, got, strict=True):
        assert a.token_ids == b.token_ids
        assert a.report and b.report and a.report.kv_bytes == b.report.kv_bytes


@pytest.mark.parametrize("name", POLICIES)
def test_a_prompt_without_pictures(name: str, tmp_path: Path) -> None:
    request = foveate.Request(question="what shape is red ?")
    answer = engine().generate([request], text(name, tmp_path, NANO), max_new_tokens=2)[0]
    assert answer.ok, answer.error


@torch.no_grad()
def test_infinipot_v_stays_within_its_capacity_while_it_answers() -> None:
    """A cache at |M| is brought to |C|, again and again, and never goes above |M|."""
    family = "qwen2_5_vl"
    model = tiny.make_model(family)
    mm = tiny.split_images(family, tiny.image_inputs(family))[0]
    row = tiny.prompt(family, model, mm, lead=5, tail=4, seed=1)
    held: list[int] = []
    write = LanguageRun._write

    def watched(self: Any, cache: Any, layer: int, k: Any, v: Any) -> bool:
        done = write(self, cache, layer, k, v)
        if self.prefill is None:
            held.append(max(cache.rows[0].layers[layer].lengths))
        return done

    plan = Plan.parse("infinipot-v:entries=10,capacity=16;positions=retain")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(LanguageRun, "_write", watched)
        out, _, _ = generated(model, adapter_for(model), plan, {**row, **mm}, steps=20)
    layers = len(out.past_key_values.rows[0].layers)
    one = held[::layers]
    # 10 after the prompt; the step that reaches 16 leaves 10 once it has attended.
    assert one == [11, 12, 13, 14, 15, 16] * 3 + [11]
    last = out.past_key_values.rows[0].layers[0]
    assert int(last.head(0)[2][-1]) == row["input_ids"].shape[1] + 18


def watched_steps(patch: pytest.MonkeyPatch) -> dict[int, list[int]]:
    """Entries that each decode step attends to, by layer, of the run that follows."""
    seen: dict[int, list[int]] = {}
    write = LanguageRun._write

    def watched(self: Any, cache: Any, layer: int, k: Any, v: Any) -> bool:
        done = write(self, cache, layer, k, v)
        if self.prefill is not None:
            seen.setdefault(layer, []).clear()
        else:
            seen[layer].append(max(cache.rows[0].layers[layer].lengths))
        return done

    patch.setattr(LanguageRun, "_write", watched)
    return seen


@pytest.mark.parametrize("before", ["", "fastv:layer=2,keep=1/4+"])
def test_a_share_stays_one_of_what_its_layer_was_given(before: str) -> None:
    """Layers that a prefill method made shorter once grew to the share of the whole prompt."""
    with pytest.MonkeyPatch.context() as patch:
        seen = watched_steps(patch)
        plan = f"{before}infinipot-v:keep=1/4"
        (answer,) = engine().generate(requests()[:1], plan, max_new_tokens=70, min_new_tokens=70)
    report = answer.report
    assert report is not None and report.layers is not None
    text = report.prompt_tokens - report.visual_tokens_kept
    for layer, visual in enumerate(report.layers):
        share = round((text + visual) / 4 + 1e-9)
        assert max(seen[layer]) == share + -(-share // 3)
        assert min(seen[layer]) == share + 1


@pytest.mark.parametrize("new", [1, 5, 70])
def test_decode_flops_are_those_of_the_entries_each_step_saw(new: int) -> None:
    """They were once counted as if the store had grown from what was left less all steps."""
    plan = "fastv:layer=2,keep=1/4+infinipot-v:keep=1/4"
    options = {"max_new_tokens": new, "min_new_tokens": new}
    with pytest.MonkeyPatch.context() as patch:
        seen = watched_steps(patch)
        (answer,) = engine().generate(requests()[:1], plan, **options)
    report = answer.report
    assert report is not None and len(seen[0]) == new - 1
    shape = model_shape(engine().model.config, engine().model.dtype.itemsize)
    whole = flops.decode(shape.text, (report.prompt_tokens_in,) * NANO[0], new - 1).total
    none = flops.decode(shape.text, (0,) * NANO[0], new - 1)
    attention = sum(
        4 * layer.heads * layer.head_dim * n
        for i, layer in enumerate(shape.text.layers)
        for n in seen[i]
    )
    left = whole - sum(s.decode_flops for s in report.saved)
    assert left == none.total - none.attention + attention
    assert not any("FLOPs" in note for note in report.notes)


def test_head_scores_of_another_model_are_refused_before_anything_runs(tmp_path: Path) -> None:
    for shape in ((4, 6), (6, 8)):
        with pytest.raises(CheckpointError, match="6 layers that keep entries, of 6 query heads"):
            LanguageRun(engine().adapter, Plan.parse(text("sparsemm", tmp_path, shape)))


def test_taking_back_counts_in_each_head() -> None:
    """Heads that hold equally many entries may hold other ones: each forgets its own."""
    store = LayerStore()
    k = torch.randn(3, 20, 4)
    store.append(k, k, torch.arange(20))
    picks = [[0, 1, 2, 3, 19], [0, 16, 17, 18, 19], [1, 2, 18]]
    store.reduce([Reduction.pick(p, 20, "cache") for p in picks])
    store.take_back(18)
    assert store.lengths == (4, 3, 2)
    for head, pick in enumerate(picks):
        want = [i for i in pick if i < 18]
        got = store.head(head)
        assert got[2].tolist() == want and torch.equal(got[0], k[head, want])
