"""What a report says of bytes and savings: the parts sum up to the whole, and bytes are those held."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from typing import Any

import pytest

import foveate
from foveate.core import attribution
from foveate.core.report import Report
from foveate.engine.continuous import serving
from foveate.engine.kv import BLOCK_ENTRIES
from foveate.lab import nano_path
from foveate.lab.tasks import samples
from foveate.models.shapes import model_shape

PHASES = ("encode_flops", "prefill_flops", "decode_flops", "kv_bytes")
PLANS = {
    "divprune:keep=1/2+fastv:layer=2,keep=1/2+snapkv:keep=1/2,window=4": [
        "tokens",
        "prefill",
        "memory",
    ],
    "downscale:keep=1/4+fastv:layer=3,keep=1/4": ["pixels", "prefill"],
    "tome:r=8+divprune:keep=1/4": ["tower", "tokens"],
    "tome:r=8": ["tower"],
    "snapkv:keep=1/4,window=4": ["memory"],
}


@pytest.fixture(scope="module")
def engine() -> foveate.Engine:
    return foveate.Engine.from_pretrained(nano_path())


def _requests(n: int = 2) -> list[foveate.Request]:
    found = samples("count", "test", n)
    return [
        foveate.Request(images=[s.image], question=s.question, id=f"r{i}")
        for i, s in enumerate(found)
    ]


def _report(engine: foveate.Engine, plan: str, new: int = 5, n: int = 2) -> list[Report]:
    answers = engine.generate(_requests(n), plan, max_new_tokens=new)
    return [a.report for a in answers if a.report is not None]


def _whole(engine: foveate.Engine, report: Report) -> attribution.Cost:
    """The cost of a request without any plan, by hand: one pass of 196 patches and all tokens."""
    shape = model_shape(engine.model.config, engine.model.dtype.itemsize)
    assert shape.vision is not None
    count = len(shape.text.layers)
    rows = (report.prompt_tokens_in,) * count
    work = attribution.Work(shape.vision.passes(1), rows, report.new_tokens - 1)
    return attribution.cost(shape, work)


@pytest.mark.parametrize("plan", PLANS)
def test_the_parts_sum_up_to_the_whole(engine: foveate.Engine, plan: str) -> None:
    """Dense cost less what the stages saved is what the tokens and entries that were there cost."""
    for report in _report(engine, plan):
        assert [s.stage for s in report.saved] == PLANS[plan]
        whole = _whole(engine, report)
        left = {p: getattr(whole, p.removesuffix("_flops")) for p in PHASES}
        for s in report.saved:
            for p in PHASES:
                left[p] -= getattr(s, p)
        assert left["kv_bytes"] == report.kv_bytes == sum(report.layer_kv_bytes or ())
        shape = model_shape(engine.model.config, engine.model.dtype.itemsize)
        text = report.prompt_tokens - report.visual_tokens_kept
        visual = report.layers or (report.visual_tokens_kept,) * len(shape.text.layers)
        prefill = attribution.flops.prefill(shape.text, [text + v for v in visual]).total
        assert left["prefill_flops"] == prefill
        assert 0 < left["encode_flops"] <= whole.encode
        assert any(getattr(s, p) > 0 for s in report.saved for p in PHASES)


def test_each_stage_has_its_own(engine: foveate.Engine) -> None:
    """Dropping before the model, inside it and from the cache save in different phases."""
    tokens, prefill, memory = _report(engine, next(iter(PLANS)))[0].saved
    assert tokens.prefill_flops > prefill.prefill_flops > memory.prefill_flops == 0
    assert tokens.encode_flops == prefill.encode_flops == memory.encode_flops == 0
    assert min(tokens.kv_bytes, prefill.kv_bytes, memory.kv_bytes) > 0
    assert tokens.kv_share is not None and 0 < tokens.kv_share < 1
    tower, after = _report(engine, "tome:r=8+divprune:keep=1/4")[0].saved
    assert tower.encode_flops > 0 == tower.prefill_flops and after.encode_flops == 0


def test_an_identity_saves_nothing(engine: foveate.Engine) -> None:
    for plan in ("divprune:keep=1", "fastv:layer=2,keep=1+snapkv:keep=1"):
        for report in _report(engine, plan):
            assert report.identity and report.saved
            assert not any(getattr(s, p) for s in report.saved for p in PHASES)
    assert _report(engine, "none")[0].saved == ()


def test_a_cached_picture_credits_the_tower_with_nothing(engine: foveate.Engine) -> None:
    """Features from a cache cost nothing, with the plan or without it."""
    cached = foveate.Engine(engine.model, engine.processor, cache=foveate.FeatureCache())
    _report(cached, "divprune:keep=1/2", n=1)
    (saving,) = _report(cached, "divprune:keep=1/2", n=1)[0].saved
    assert saving.encode_flops == 0 and saving.encode_share is None and saving.prefill_flops > 0


def test_a_family_whose_cost_is_not_known_says_so(
    engine: foveate.Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine.model.config.get_text_config(), "model_type", "lfm2")
    report = _report(engine, "divprune:keep=1/2", n=1)[0]
    assert report.saved == () and report.kv_bytes
    assert any("what each stage saved is not counted" in n for n in report.notes)


def test_bytes_do_not_depend_on_company(engine: foveate.Engine) -> None:
    """A request of a padded batch holds what it holds alone."""
    members = _requests(1) + [
        foveate.Request(images=_requests(1)[0].images, question="how many are red and round ?")
    ]
    for plan in ("none", "divprune:keep=1/2", next(iter(PLANS))):
        both = engine.generate(members, plan, max_new_tokens=3)
        for request, answer in zip(members, both, strict=True):
            alone = engine.generate([request], plan, max_new_tokens=3)[0].report
            assert alone is not None and answer.report is not None
            assert answer.report.layer_kv_bytes == alone.layer_kv_bytes
            assert answer.report.saved == alone.saved


@pytest.mark.parametrize(
    "plan",
    ["kivi:bits=2,residual=32", "kivi:bits=4,group=8,residual=208", "calibquant:bits=1",
     "infinipot-v:entries=50,capacity=51", "hybridkv:keep=1/4"],
)  # fmt: skip
def test_bytes_do_not_depend_on_longer_answers(engine: foveate.Engine, plan: str) -> None:
    """A short answer beside a longer one holds what it holds alone."""
    found = [*samples("code", "test", 1), *samples("shape", "test", 1)]
    members = [foveate.Request(images=[s.image], question=s.question) for s in found]
    both = engine.generate(members, plan)
    reports = [a.report for a in both if a.report is not None]
    assert reports[0].new_tokens > reports[1].new_tokens
    for request, report in zip(members, reports, strict=True):
        alone = engine.generate([request], plan)[0].report
        assert alone is not None
        assert report.layer_kv_bytes == alone.layer_kv_bytes
        assert report.saved == alone.saved


@pytest.mark.parametrize("plan", ["none", *PLANS])
def test_continuous_batching_reports_the_same(engine: foveate.Engine, plan: str) -> None:
    with serving(engine, plan) as run:
        for r in _requests():
            run.submit(r, max_new_tokens=5)
        got = run.run_all()
    for r in _requests():
        alone = engine.generate([r], plan, max_new_tokens=5)[0]
        found = got[str(r.id)]
        assert found.report is not None and alone.report is not None
        for name in ("layers", "kv_bytes", "layer_kv_bytes", "saved", "identity"):
            assert getattr(found.report, name) == getattr(alone.report, name), name


@pytest.mark.claim("I3")
@pytest.mark.parametrize("plan", [next(iter(PLANS)), "snapkv:keep=1/10,window=4", "none"])
def test_allocated_bytes_are_the_entries_within_one_block_each(
    engine: foveate.Engine, plan: str, monkeypatch: pytest.MonkeyPatch, record_property: Any
) -> None:
    """Allocated KV bytes are the sum over layers and KV heads of the entries kept, within one block
    of each head.
    """
    held: list[Any] = []
    with serving(engine, plan) as run:
        finish = run._finish

        def look(job: Any) -> None:
            held.append(job.sequence)
            finish(job)

        monkeypatch.setattr(run, "_finish", look)
        for r in _requests():
            run.submit(r, max_new_tokens=5)
        got = run.run_all()
    spare = []
    for answer, sequence in zip(got.values(), held, strict=True):
        assert answer.report is not None and answer.report.layer_kv_bytes is not None
        for store, exact in zip(sequence.layers, answer.report.layer_kv_bytes, strict=True):
            one = store.heads * BLOCK_ENTRIES * store.bytes_per_entry
            assert exact == sum(store.lengths) * store.bytes_per_entry
            assert 0 <= store.nbytes - exact < one
            spare.append((store.nbytes - exact) / one)
    record_property("figure", f"at most {max(spare):.2f} blocks a head are spare")
    record_property("bound", "less than 1")


BIG = """
    import torch
    from foveate.core.views import Reduction
    from foveate.engine.kv import LayerStore
    from foveate.measure.memory import rss_bytes, trim

    torch.set_num_threads(1)
    at = torch.arange(4096, dtype=torch.int32)
    pick = Reduction.pick(range(0, 4096, 4), 4096, "cache")

    def one():
        store = LayerStore()
        store.append(torch.ones(3, 4096, 64), torch.ones(3, 4096, 64), at)
        return store

    one().reduce([pick] * 3)  # what only a first call loads
    trim()
    before = rss_bytes()
    stores = [one() for _ in range(48)]
    trim()
    print(sum(s.nbytes for s in stores), rss_bytes() - before)
    for s in stores:
        s.reduce([pick] * 3)
    trim()
    print(sum(s.nbytes for s in stores), rss_bytes() - before)
"""


@pytest.mark.claim("I3")
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_resident_memory_agrees_with_the_allocated_bytes(record_property: Any) -> None:
    """Resident memory grows by the 288 MiB that a cache says it allocates and shrinks when it drops,
    once the C library gave back what was freed.
    """
    run = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(BIG)], capture_output=True, text=True, check=True
    )
    lines = [[int(x) for x in line.split()] for line in run.stdout.splitlines()]
    off = [abs(resident - said) / said for said, resident in lines]
    record_property("figure", f"{off[0]:.1%} full, {off[1]:.1%} after dropping 3/4")
    record_property("bound", "at most 10 %")
    assert lines[0][0] == 48 * 2 * 3 * 4096 * 64 * 4 and lines[1][0] * 4 == lines[0][0]
    assert max(off) <= 0.10


def test_the_plan_of_a_run_without_pictures_saves_nothing(engine: foveate.Engine) -> None:
    request = foveate.Request(question="what is red ?")
    report = engine.generate([request], next(iter(PLANS)), max_new_tokens=3)[0].report
    assert report is not None
    assert [s.stage for s in report.saved] == PLANS[next(iter(PLANS))]
    assert not any(getattr(s, p) for s in report.saved for p in PHASES)
