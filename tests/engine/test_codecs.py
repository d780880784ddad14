"""KV codecs through the engine: close answers, ragged batches, composition, refusals, every door."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import foveate
from foveate.core import Plan
from foveate.core.errors import UnsupportedError
from foveate.engine.continuous import serving
from foveate.engine.kv_coded import CodedStore
from foveate.engine.language_run import LanguageRun
from foveate.lab import demo_pictures, nano_path
from foveate.models.adapter import adapter_for
from tests.engine.inside import generated
from tests.engine.reference import relative
from tests.support import tiny

SMALL = "kivi:bits=4,group=4,residual=8"
PLANS = (SMALL, "kivi:bits=2,group=3,residual=6", "calibquant:bits=1", "calibquant:bits=8")


@pytest.fixture(scope="module")
def engine() -> foveate.Engine:
    return foveate.Engine.from_pretrained(nano_path())


def _requests(n: int = 4) -> list[foveate.Request]:
    return [
        foveate.Request(images=[d.image], question=d.question, id=f"r{i}")
        for i, d in enumerate(demo_pictures()[:n])
    ]


def _batch(name: str, model: Any) -> tuple[list[Any], list[Any]]:
    singles = tiny.split_images(name, tiny.image_inputs(name))
    medias = [singles[i % len(singles)] for i in range(3)]
    rows = [
        tiny.prompt(name, model, mm, lead=5 - i, tail=4 + 2 * i, seed=1 + i)
        for i, mm in enumerate(medias)
    ]
    return rows, medias


@pytest.mark.parametrize("plan", ["kivi:bits=8,group=8,residual=16", "calibquant:bits=8"])
def test_eight_bits_answer_as_full_precision_does(engine: foveate.Engine, plan: str) -> None:
    requests = _requests(6)
    full, coded = engine.generate(requests), engine.generate(requests, plan)
    assert [a.text for a in coded] == [a.text for a in full]
    for a, b in zip(full, coded, strict=True):
        assert a.report is not None and b.report is not None
        assert a.report.kv_bytes and b.report.kv_bytes
        assert b.report.kv_bytes < 0.6 * a.report.kv_bytes


@pytest.mark.parametrize("plan", PLANS)
@pytest.mark.parametrize("name", ["llava", "qwen2_5_vl", "qwen3_vl", "smolvlm"])
@torch.no_grad()
def test_a_ragged_batch_equals_single_requests(name: str, plan: str) -> None:
    model = tiny.make_model(name)
    adapter, parsed = adapter_for(model), Plan.parse(plan)
    rows, medias = _batch(name, model)
    call = {**tiny.pad_batch(rows, "left"), **tiny.join_images(name, medias)}
    out, _, _ = generated(model, adapter, parsed, call)
    got = torch.stack(out.logits, 1)
    for i, (row, mm) in enumerate(zip(rows, medias, strict=True)):
        alone, _, _ = generated(model, adapter, parsed, {**row, **mm})
        assert relative(got[i], torch.stack(alone.logits, 1)[0]) <= 2e-5
        assert alone.sequences[0, -16:].equal(out.sequences[i, -16:])
        assert all(isinstance(s, CodedStore) for s in alone.past_key_values.rows[0].layers)


@pytest.mark.parametrize("plan", ["kivi:bits=8,group=4,residual=8", "calibquant:bits=8"])
@torch.no_grad()
def test_logits_of_eight_bits_stay_near_over_many_windows(plan: str) -> None:
    """20 steps are more than two windows; the same tokens are fed, so that logits compare."""
    model = tiny.make_model("llava")
    adapter = adapter_for(model)
    rows, medias = _batch("llava", model)
    call = {**rows[0], **medias[0]}
    full, _, _ = generated(model, adapter, Plan.parse("none"), call, steps=20)
    coded, _, _ = generated(model, adapter, Plan.parse(plan), call, steps=20)
    assert torch.equal(full.logits[0], coded.logits[0])  # prefill attends before coding
    assert full.sequences[0, -20:].equal(coded.sequences[0, -20:])
    for a, b in zip(full.logits[1:], coded.logits[1:], strict=True):
        assert relative(b, a) <= 0.05 and not torch.equal(a, b)


@pytest.mark.parametrize("codec", [SMALL, "calibquant:bits=2"])
def test_codecs_follow_other_stages_through_every_door(engine: foveate.Engine, codec: str) -> None:
    plan = f"divprune:keep=1/2+fastv:layer=2,keep=1/2+{codec}"
    requests = _requests(3)
    together = engine.generate(requests, plan)
    with serving(engine, plan, token_budget_tokens=300) as run:
        for r in requests:
            run.submit(r)
        served = run.run_all()
    for request, answer in zip(requests, together, strict=True):
        alone = engine.generate([request], plan)[0]
        found = served[str(request.id)]
        assert answer.token_ids == alone.token_ids == found.token_ids
        assert alone.report is not None and found.report is not None
        assert found.report.kv_bytes == alone.report.kv_bytes
        ready = engine.prepare(request)
        inputs = engine.processor(text=[ready.text], images=ready.pictures, return_tensors="pt")
        with foveate.attach(engine.model, plan, processor=engine.processor):
            out = engine.model.generate(**inputs, max_new_tokens=64, do_sample=False)
        assert out[0, inputs["input_ids"].shape[1] :].tolist() == list(answer.token_ids)


def _served(
    engine: foveate.Engine, plan: str, disturb: Any = None, count: int = 3
) -> tuple[dict[str, Any], Any]:
    """Token ids of answers of 30 tokens, and the counts; disturb(run, step) comes before each."""
    with serving(engine, plan) as run:
        run.stop_ids = set()
        for r in _requests(count):
            run.submit(r, max_new_tokens=30)
        step = 0
        while True:
            if disturb is not None:
                disturb(run, step)
            if not run.step():
                break
            step += 1
        got = {i: a.token_ids for i, a in run.run_all().items()}
        return got, run.scheduler.stats.total


@pytest.mark.parametrize("plan", [SMALL, "calibquant:bits=1"])
def test_a_preempted_request_goes_on_with_the_codes_it_had(
    engine: foveate.Engine, plan: str
) -> None:
    """What is computed anew after a preemption sees what each step saw at first."""

    def preempt(run: Any, step: int) -> None:
        if step in (12, 26):
            job = [j for j in run._jobs.values() if j.sequence is not None][-1]
            run.scheduler._preempt(run.scheduler.ticket(job.id))
            job.sequence = None

    calm, _ = _served(engine, plan)
    got, counts = _served(engine, plan, preempt)
    assert counts.preemptions == 2 and all(len(ids) == 30 for ids in got.values())
    assert got == calm


@pytest.mark.parametrize("plan", [SMALL, "calibquant:bits=2"])
def test_out_of_memory_in_a_step_takes_codes_back(engine: foveate.Engine, plan: str) -> None:
    calls = {"n": 0}

    def break_some(*_: Any) -> None:
        calls["n"] += 1
        if calls["n"] in (20, 60):
            raise torch.OutOfMemoryError("planted")

    def plant(run: Any, step: int) -> None:
        if step == 0:
            handles.append(run.run.layers[3].register_forward_pre_hook(break_some))

    handles: list[Any] = []
    calm, _ = _served(engine, plan, count=6)
    try:
        got, counts = _served(engine, plan, plant, count=6)
    finally:
        for handle in handles:
            handle.remove()
    assert counts.out_of_memory == 2 and got == calm


@pytest.mark.parametrize("plan", [SMALL, "calibquant:bits=1"])
def test_a_prompt_without_pictures_is_served_in_full(engine: foveate.Engine, plan: str) -> None:
    request = foveate.Request(question="how many?", id="t")
    want = engine.generate([request])[0]
    assert engine.generate([request], plan)[0].token_ids == want.token_ids
    with serving(engine, plan) as run:
        run.submit(request)
        assert run.run_all()["t"].token_ids == want.token_ids


@pytest.mark.parametrize("plan", [SMALL, "calibquant:bits=1"])
def test_beams_copy_codes(plan: str) -> None:
    model = tiny.make_model("llava")
    mm = tiny.split_images("llava", tiny.image_inputs("llava"))[0]
    row = tiny.prompt("llava", model, mm)
    with foveate.attach(model, plan):
        beams = model.generate(**row, **mm, num_beams=3, num_return_sequences=3, max_new_tokens=20)
    assert len({tuple(b) for b in beams.tolist()}) > 1


@pytest.mark.parametrize("plan", ["kivi", "calibquant"])
@pytest.mark.parametrize(
    ("name", "why"),
    [("gemma3_w16", "sliding_attention"), ("paligemma2", "sliding|cap"), ("llama4", "chunked")],
)
def test_windows_and_caps_are_refused(name: str, why: str, plan: str) -> None:
    with pytest.raises(UnsupportedError, match=why):
        LanguageRun(adapter_for(tiny.make_model(name)), Plan.parse(plan))
