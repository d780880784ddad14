"""Continuous batching gives each request the tokens it gets alone, whatever joins, leaves or fails."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

import foveate
from foveate.core.errors import CapacityError, InputError, UnsupportedError
from foveate.engine.continuous import ContinuousEngine, serving
from foveate.lab import nano_path
from foveate.lab.tasks import samples
from foveate.models.adapter import adapter_for
from tests.support import tiny


@pytest.fixture(scope="module")
def engine() -> foveate.Engine:
    return foveate.Engine.from_pretrained(nano_path())


def _requests(n: int) -> list[foveate.Request]:
    out = []
    for i, name in zip(
        range(n), ["count", "form", "code", "quadrant", "shape", "bar"] * n, strict=False
    ):
        s = samples(name, "test", 1 + i // 6)[-1]
        out.append(foveate.Request(images=[s.image], question=s.question, id=f"r{i}"))
    return out


PLANS = (
    "none",
    "divprune:keep=1/2",
    "fastv:layer=2,keep=1/2",
    "divprune:keep=1/2+fastv:layer=3,keep=1/2+snapkv:keep=1/2,window=4",
)


@pytest.mark.parametrize("plan", PLANS)
def test_tokens_are_those_of_each_request_alone(engine: foveate.Engine, plan: str) -> None:
    requests = _requests(6)
    with serving(engine, plan, max_running=4, token_budget_tokens=150) as run:
        for r in requests:
            run.submit(r)
        got = run.run_all()
    assert set(got) == {r.id for r in requests}
    for r in requests:
        alone = engine.generate([r], plan)[0]
        found = got[str(r.id)]
        assert found.ok and found.token_ids == alone.token_ids and found.text == alone.text
        assert found.report is not None and found.report.ttft_ms is not None


def test_prompts_come_in_chunks_and_answers_stream(
    engine: foveate.Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    pieces: dict[str, str] = {}
    passes: list[tuple[int, int]] = []

    def hear(id: str, token: int, text: str) -> None:
        pieces[id] = pieces.get(id, "") + text

    with serving(engine, "none", max_running=3, token_budget_tokens=64) as run:
        inner = run._prefill

        def watched(job: Any, chunk: Any) -> None:
            passes.append((chunk.start, chunk.stop))
            inner(job, chunk)

        monkeypatch.setattr(run, "_prefill", watched)
        for r in _requests(3):
            run.submit(r, on_token=hear)
        got = run.run_all()
    assert max(b - a for a, b in passes) <= 64 and len(passes) > 3 * 3
    assert pieces == {i: a.text for i, a in got.items()}


def test_a_kv_budget_preempts_and_loses_nobody(engine: foveate.Engine) -> None:
    requests = _requests(5)
    one = 6 * 2 * 192 * 4 * 224  # about one request's entries
    with serving(engine, "none", kv_budget_bytes=2 * one + one // 3, max_running=5) as run:
        for r in requests:
            run.submit(r, max_new_tokens=40)
        got = run.run_all()
        assert run.kv_bytes == 0
    for r in requests:
        assert got[str(r.id)].token_ids == engine.generate([r], max_new_tokens=40)[0].token_ids


def test_cancel_frees_at_once_and_others_go_on(engine: foveate.Engine) -> None:
    requests = _requests(3)
    with serving(engine) as run:
        for r in requests:
            run.submit(r)
        run.step()
        run.step()
        assert run.cancel("r1") and not run.cancel("r1")
        got = run.run_all()
    assert isinstance(got["r1"].error, InputError)
    for r in (requests[0], requests[2]):
        assert got[str(r.id)].token_ids == engine.generate([r])[0].token_ids


def test_out_of_memory_in_the_middle_shrinks_the_batch(engine: foveate.Engine) -> None:
    requests = _requests(6)
    calls = {"n": 0}
    with serving(engine, max_running=6) as run:
        layer = run.run.layers[3]

        def break_once(*_: Any) -> None:
            calls["n"] += 1
            if calls["n"] in (7, 9):
                raise torch.OutOfMemoryError("planted")

        handle = layer.register_forward_pre_hook(break_once)
        try:
            for r in requests:
                run.submit(r)
            got = run.run_all()
        finally:
            handle.remove()
        assert run.scheduler.stats.total.out_of_memory == 2
    for r in requests:
        assert got[str(r.id)].token_ids == engine.generate([r])[0].token_ids


def test_a_request_that_cannot_run_alone_fails_with_a_reason(engine: foveate.Engine) -> None:
    with serving(engine) as run:

        def always(*_: Any) -> None:
            raise torch.OutOfMemoryError("planted")

        handle = run.run.layers[1].register_forward_pre_hook(always)
        try:
            run.submit(_requests(1)[0])
            got = run.run_all()
        finally:
            handle.remove()
    assert isinstance(got["r0"].error, CapacityError)


def test_bad_requests_and_models_are_refused(engine: foveate.Engine) -> None:
    with pytest.raises(InputError, match="enter the engine"):
        ContinuousEngine(engine).step()
    with serving(engine) as run:
        with pytest.raises(foveate.FoveateError):
            run.submit(foveate.Request(images=["no-such-file.png"], question="what?"))
        run.submit(_requests(1)[0])
        with pytest.raises(InputError, match="in use"):
            run.submit(_requests(1)[0])
        run.run_all()
    # The refusal needs no processor, which the tiny hybrid does not have.
    hybrid: Any = SimpleNamespace(adapter=adapter_for(tiny.make_model("qwen3_5")))
    with pytest.raises(UnsupportedError, match="recurrent"):
        ContinuousEngine(hybrid)
