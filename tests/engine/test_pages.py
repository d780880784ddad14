"""Heads whose prompt lies in host memory: attention, bytes, copies, batches and every door."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers.integrations.sdpa_attention import sdpa_attention_forward

import foveate
from foveate.core import Plan, Reduction
from foveate.core.errors import PlanError, UnsupportedError
from foveate.core.language import CachePolicy, KVView, Pages
from foveate.engine.continuous import serving
from foveate.engine.kv import LayerStore, blocks
from foveate.engine.kv_attention import attend, attend_reference
from foveate.engine.kv_pages import PagedGroup, offload
from foveate.lab import demo_pictures, nano_path
from foveate.memory.hybridkv import HybridKV
from foveate.models.adapter import adapter_for
from tests.engine.inside import generated
from tests.engine.reference import relative
from tests.support import tiny

DIM = 8
PAGED = "hybridkv:keep=1/2,page=3,share=0"


class Module:
    num_key_value_groups = 2
    training = False


@dataclass(frozen=True)
class AllPages(CachePolicy):
    """Sends every head to host memory and wants all pages of it in every step."""

    name: ClassVar[str] = "all-pages"
    summary: ClassVar[str] = "for tests"
    pages: ClassVar[bool] = True
    size: int = 3

    def allocate(self, stats: Any, room: Sequence[Sequence[int]], budget: int) -> Any:
        return [list(layer) for layer in room]

    def select(self, layer: int, view: KVView, k: Sequence[int], stats: Any) -> list[Any]:
        return [Pages(self.size, Pages(self.size, 1).count(n)) for n in k]

    def retrieve(self, layer: int, query: Any, pages: Any) -> Any:
        count = pages.mean.shape[1]  # backwards in odd layers: the order cannot matter
        return np.tile(np.arange(count)[:: 1 - 2 * (layer % 2)], (query.shape[0], 1))


def wanted_by(query: Any, pages: Any) -> np.ndarray:
    """Pages with the largest q · mean of the first query head, in plain numpy."""
    score = (query[:, :1].double() @ pages.mean.double().transpose(1, 2))[:, 0].numpy()
    return np.argsort(-score, 1, kind="stable")[:, : pages.spec.wanted]


def filled(n: int, heads: int, seed: int) -> tuple[LayerStore, Any, Any]:
    g = torch.Generator().manual_seed(seed)
    k, v = (torch.randn(heads, n, DIM, generator=g) for _ in "kv")
    store = LayerStore()
    store.append(k, v, torch.arange(n))
    return store, k, v


def seen_by(q: Any, k: Any, v: Any, shown: Sequence[Sequence[int]]) -> Any:
    """One query (H, a) over the entries `shown` of each KV head: (H, b), in float64."""
    out = []
    for h in range(q.shape[0]):
        kv = h // 2
        at = torch.as_tensor(shown[kv])
        logits = k[kv, at].double() @ q[h].double() * DIM**-0.5
        out.append(torch.softmax(logits, 0) @ v[kv, at].double())
    return torch.stack(out)


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_steps_attend_to_the_pages_they_want_and_to_all_newer_entries(data: Any) -> None:
    """Random page sizes, budgets and heads; chunks of steps, copies and steps taken back."""
    size = data.draw(st.integers(1, 7), "size")
    n = data.draw(st.integers(size + 1, 40), "n")
    heads = data.draw(st.integers(1, 3), "heads")
    store, k, v = filled(n, heads, n)
    count = (n - 1) // size
    away = sorted(data.draw(st.sets(st.integers(0, heads - 1), min_size=1), "away"))
    spec = Pages(size, data.draw(st.integers(1, count), "wanted"))
    rest = {h: Reduction.pick(np.arange(h, n), n, "cache") for h in range(heads) if h not in away}
    store.groups = [*offload(store, dict.fromkeys(away, spec), wanted_by), *store.reduced(rest)]
    assert store.lengths == tuple(spec.resident(n) if h in away else n - h for h in range(heads))
    assert store.offloaded_bytes == len(away) * count * size * 2 * DIM * 4
    mean = len(away) * count * DIM * 4
    assert store.digest_bytes == mean
    room = sum(blocks(x) for x in store.lengths) * 2 * DIM * 4
    assert store.nbytes == room + mean
    g = torch.Generator().manual_seed(1)
    for s in data.draw(st.lists(st.integers(1, 3), min_size=1, max_size=4), "steps"):
        new, q = (
            torch.randn(heads, s, DIM, generator=g),
            torch.randn(1, 2 * heads, s, DIM, generator=g),
        )
        end = k.shape[1]
        act = data.draw(st.sampled_from(["go", "copy", "again"]), "act")
        if act == "copy":
            store = store.clone()
        elif act == "again":  # a step that failed and is taken back
            store.append(new + 1, new + 1, torch.arange(end, end + s))
            store.take_back(end)
        store.append(new, new, torch.arange(end, end + s))
        k, v = torch.cat([k, new], 1), torch.cat([v, new], 1)
        got = attend(
            sdpa_attention_forward, Module(), q, store, torch.arange(end, end + s), None,
            {"scaling": DIM**-0.5},
        )  # fmt: skip
        for i in range(s):
            shown = []
            for h in range(heads):
                mean_keys = [k[h, p * size : (p + 1) * size].mean(0) for p in range(count)]
                score = [-float(q[0, 2 * h, i].double() @ m.double()) for m in mean_keys]
                best = sorted(range(count), key=lambda p: (score[p], p))[: spec.wanted]
                pages = [p * size + e for p in best for e in range(size)]
                first = pages if h in away else list(range(h, count * size))
                start = count * size if h in away else max(h, count * size)
                shown.append([*first, *range(start, end + i + 1)])
            want = seen_by(q[0, :, i], k, v, shown)
            assert torch.allclose(got[0, i].double(), want, atol=1e-5)


@pytest.mark.parametrize("window", [None, 6])
@pytest.mark.parametrize("queries", [1, 3])
def test_all_pages_are_the_whole_cache(queries: int, window: int | None) -> None:
    store, k, _ = filled(20, 3, 5)
    plain = store.clone()
    store.groups = offload(
        store, dict.fromkeys(range(3), Pages(4, 4)), lambda q, p: [[3, 2, 1, 0]] * 3
    )
    new = torch.randn(3, queries, DIM)
    origin = torch.arange(20, 20 + queries)
    for s in (store, plain):
        s.append(new, new, origin)
    q = torch.randn(1, 6, queries, DIM)
    visible = None if window is None else (lambda a, b: a - b < window)
    got = attend(sdpa_attention_forward, Module(), q, store, origin, visible, {"scaling": 0.3})
    want = attend_reference(q, plain, origin, visible, 0.3)
    assert torch.allclose(got, want, atol=1e-5)


def test_only_pages_that_were_not_there_are_copied() -> None:
    store, k, _ = filled(21, 1, 6)
    asked = iter([[4, 1], [1, 4], [1, 3]])
    store.groups = offload(store, {0: Pages(4, 2)}, lambda q, p: [next(asked)])
    (group,) = store.groups
    assert isinstance(group, PagedGroup) and group.held.tolist() == [[0, 1]]
    query = torch.randn(1, 2, DIM)
    for held in ([[4, 1]], [[4, 1]], [[3, 1]]):
        group.retrieve(query)
        assert group.held.tolist() == held
        at = [held[0][0] * 4 + e for e in range(4)] + [4, 5, 6, 7, 20]
        assert group.at[0].tolist() == at
        assert torch.equal(group.k[0], k[0, at])
    other = group.clone()
    assert other.host is group.host and other.keys is not group.keys
    assert other.held is not group.held


def test_wrong_answers_are_refused() -> None:
    for answer in ([[0, 0]], [[0, 5]], [[-1, 0]], [[0]], [[0, 1], [0, 1]]):
        store, _, _ = filled(21, 1, 6)
        store.groups = offload(store, {0: Pages(4, 2)}, lambda q, p, a=answer: a)
        with pytest.raises(PlanError, match="retrieve"):
            store.groups[0].retrieve(torch.randn(1, 2, DIM))  # type: ignore[attr-defined]
    store, _, _ = filled(21, 1, 6)
    with pytest.raises(PlanError, match="6 pages of 4 are wanted; there are 5"):
        offload(store, {0: Pages(4, 6)}, wanted_by)
    with pytest.raises(foveate.core.errors.SettingError, match="at least 1"):
        Pages(4, 0)


@pytest.mark.parametrize("length", [0, 3, 9, 14, 20, 21])
def test_taking_back_into_a_prompt_cuts_pages(length: int) -> None:
    """What is left is the first `length` entries: pages of them while more are there than wanted."""
    store, k, v = filled(21, 2, 7)
    store.groups = offload(store, dict.fromkeys(range(2), Pages(4, 2)), wanted_by)
    new = torch.randn(2, 1, DIM)
    store.append(new, new, torch.tensor([21]))
    with pytest.raises(UnsupportedError, match="host memory"):
        store.truncate(3)
    store.take_back(length)
    whole = min(length, 20) // 4
    assert isinstance(store.groups[0], PagedGroup) == (whole > 2)
    assert store.lengths == ((length - 4 * max(0, whole - 2),) * 2)
    store.append(new, new, torch.tensor([length]))
    q = torch.randn(1, 4, 1, DIM)
    got = attend(
        sdpa_attention_forward,
        Module(),
        q,
        store,
        torch.tensor([length]),
        None,
        {"scaling": DIM**-0.5},
    )
    shown = []
    for h in range(2):
        score = [
            -float(q[0, 2 * h, 0].double() @ k[h, p * 4 : p * 4 + 4].mean(0).double())
            for p in range(whole)
        ]
        best = sorted(range(whole), key=lambda p: (score[p], p))[:2]
        shown.append([*(p * 4 + e for p in best for e in range(4)), *range(whole * 4, length + 1)])
    k, v = (torch.cat([x[:, :length], new], 1) for x in (k, v))
    assert torch.allclose(got[0, 0].double(), seen_by(q[0, :, 0], k, v, shown), atol=1e-5)


# --- models ----------------------------------------------------------------------------------------
def _batch(name: str, model: Any) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    singles = tiny.split_images(name, tiny.image_inputs(name))
    medias = [singles[i % len(singles)] for i in range(3)]
    rows = [
        tiny.prompt(name, model, mm, lead=5 - i, tail=4 + 2 * i, seed=1 + i)
        for i, mm in enumerate(medias)
    ]
    return rows, medias


@pytest.mark.parametrize("name", tiny.REPRESENTATIVE)
@torch.no_grad()
def test_retrieving_all_pages_is_full_attention(name: str) -> None:
    model = tiny.make_model(name)
    adapter = adapter_for(model)
    rows, medias = _batch(name, model)
    call = {**tiny.pad_batch(rows, "left"), **tiny.join_images(name, medias)}
    paged, _, _ = generated(model, adapter, Plan((AllPages(keep=1),), positions="retain"), call)
    full, _, _ = generated(model, adapter, Plan.parse("none;positions=retain"), call)
    stores = [s for row in paged.past_key_values.rows for s in row.layers if s.groups]
    assert stores and all(isinstance(g, PagedGroup) for s in stores for g in s.groups)
    assert paged.sequences.equal(full.sequences)
    assert relative(torch.stack(paged.logits), torch.stack(full.logits)) <= 2e-5


@pytest.mark.parametrize("name", ["llava", "qwen2_5_vl", "qwen3_vl", "gemma3", "gemma3_w16"])
@torch.no_grad()
def test_a_ragged_batch_equals_single_requests(name: str) -> None:
    model = tiny.make_model(name)
    adapter, plan = adapter_for(model), Plan.parse(PAGED)
    rows, medias = _batch(name, model)
    call = {**tiny.pad_batch(rows, "left"), **tiny.join_images(name, medias)}
    out, _, _ = generated(model, adapter, plan, call)
    got = torch.stack(out.logits, 1)
    for i, (row, mm) in enumerate(zip(rows, medias, strict=True)):
        alone, _, _ = generated(model, adapter, plan, {**row, **mm})
        mine, theirs = out.past_key_values.rows[i].layers, alone.past_key_values.rows[0].layers
        assert all(isinstance(g, PagedGroup) for s in mine for g in s.groups)
        assert [s.offloaded_bytes for s in mine] == [s.offloaded_bytes for s in theirs]
        assert relative(got[i], torch.stack(alone.logits, 1)[0]) <= 2e-5
        assert alone.sequences[0, -16:].equal(out.sequences[i, -16:])


@pytest.fixture(scope="module")
def engine() -> foveate.Engine:
    return foveate.Engine.from_pretrained(nano_path())


def _requests(n: int = 3) -> list[foveate.Request]:
    return [
        foveate.Request(images=[d.image], question=d.question, id=f"r{i}")
        for i, d in enumerate(demo_pictures()[:n])
    ]


def test_a_report_says_what_is_resident_and_what_is_offloaded(engine: foveate.Engine) -> None:
    (full,) = engine.generate(_requests(1), max_new_tokens=1)
    (answer,) = engine.generate(_requests(1), "hybridkv:keep=1/4,share=0", max_new_tokens=1)
    a, b = full.report, answer.report
    assert a is not None and b is not None and a.kv_bytes and b.kv_bytes
    n, size = b.prompt_tokens, 16
    one = a.kv_bytes // n  # a token in all layers and heads
    count = (n - 1) // size
    newest = n - count * size
    pages = (round(n / 4 + 1e-9) - newest) // size
    digest = count * one // 2  # a mean key is half an entry
    assert a.kv_offloaded_bytes is None and b.kv_offloaded_bytes == count * size * one
    # What is left of the budget is more pages, for the first heads.
    each, spare = newest + pages * size, round(n / 4 + 1e-9) - newest - pages * size
    assert b.kv_bytes == each * one + digest + 36 * spare // size * size * one // 36
    assert any("host memory" in note and "CPU" in note for note in b.notes)
    assert not any("host memory" in note for note in a.notes)
    (saving,) = b.saved
    assert saving.kv_bytes == a.kv_bytes - b.kv_bytes


def test_every_door_gives_the_same_answer(engine: foveate.Engine) -> None:
    plan = "divprune:keep=1/2+fastv:layer=2,keep=1/2+hybridkv:keep=1/3,page=4,share=1/20"
    together = engine.generate(_requests(), plan)
    with serving(engine, plan) as run:
        for r in _requests():
            run.submit(r)
        served = run.run_all()
    for request, answer in zip(_requests(), together, strict=True):
        alone, found = engine.generate([request], plan)[0], served[str(request.id)]
        assert answer.token_ids == alone.token_ids == found.token_ids
        for a in (alone, found):
            assert a.report is not None and answer.report is not None
            assert a.report.kv_offloaded_bytes == answer.report.kv_offloaded_bytes
            assert a.report.kv_offloaded_bytes


def test_a_preempted_request_retrieves_as_before(engine: foveate.Engine) -> None:
    def served(preempt: Sequence[int]) -> Any:
        with serving(engine, PAGED) as run:
            run.stop_ids = set()
            for r in _requests():
                run.submit(r, max_new_tokens=12)
            step = 0
            while True:
                if step in preempt:
                    job = [j for j in run._jobs.values() if j.sequence is not None][-1]
                    run.scheduler._preempt(run.scheduler.ticket(job.id))
                    job.sequence = None
                if not run.step():
                    break
                step += 1
            done = run.run_all()
            return {i: a.token_ids for i, a in done.items()}, run.scheduler.stats.total

    calm, _ = served(())
    got, counts = served((6, 9))
    assert counts.preemptions == 2 and got == calm


def test_a_budget_in_bytes_counts_pages_where_they_are(engine: foveate.Engine) -> None:
    """On a CPU the scheduler sees the pages in host memory too: they take the same memory."""
    with serving(engine, PAGED) as run:
        run.stop_ids = set()
        run.submit(_requests(1)[0], max_new_tokens=4)
        while not run.kv_bytes:
            assert run.step()
        (job,) = run._jobs.values()
        layers = job.sequence.layers
        away = sum(layer.offloaded_bytes for layer in layers)
        assert away and run.kv_bytes == sum(layer.nbytes for layer in layers) + away
        run.run_all()


def test_beams_share_pages_in_host_memory() -> None:
    model = tiny.make_model("llava")
    mm = tiny.split_images("llava", tiny.image_inputs("llava"))[0]
    row = tiny.prompt("llava", model, mm)
    with foveate.attach(model, PAGED):
        beams = model.generate(**row, **mm, num_beams=3, num_return_sequences=3, max_new_tokens=12)
    assert len({tuple(b) for b in beams.tolist()}) > 1


def test_a_policy_must_say_that_it_pages() -> None:
    @dataclass(frozen=True)
    class Silent(HybridKV):
        name: ClassVar[str] = "silent"
        pages: ClassVar[bool] = False

    model = tiny.make_model("llava")
    mm = tiny.split_images("llava", tiny.image_inputs("llava"))[0]
    plan = Plan((Silent(keep="1/2", page=3, share="0"),))  # type: ignore[arg-type]
    with pytest.raises(PlanError, match="without `pages`"):
        generated(model, adapter_for(model), plan, {**tiny.prompt("llava", model, mm), **mm})
