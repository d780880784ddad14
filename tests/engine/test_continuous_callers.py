"""Continuous batching under its callers: threads, callbacks that cancel or raise, engines side by side,
requests that fail in the middle, and what is held afterwards.
"""

from __future__ import annotations

import gc
import itertools
import threading
import time
import weakref
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch

import foveate
from foveate.core.errors import InputError, NonFiniteError, StateError
from foveate.engine.continuous import ContinuousEngine, serving
from foveate.lab import nano_path
from foveate.lab.tasks import samples

NEW = 6


@pytest.fixture(scope="module")
def engine() -> foveate.Engine:
    return foveate.Engine.from_pretrained(nano_path())


@pytest.fixture
def endless(engine: foveate.Engine) -> Iterator[None]:
    """No token stops an answer, so that all answers have NEW tokens."""
    config, tokenizer = engine.model.generation_config, engine.processor.tokenizer
    before = config.eos_token_id, tokenizer.eos_token
    config.eos_token_id = tokenizer.eos_token = None
    yield
    config.eos_token_id, tokenizer.eos_token = before


def _requests(n: int, pictures: bool = True) -> list[foveate.Request]:
    out = []
    for i, name in zip(range(n), ["count", "form", "code", "quadrant"], strict=False):
        s = samples(name, "test", 1)[-1]
        images = [s.image] if pictures else []
        out.append(foveate.Request(images=images, question=s.question, id=f"r{i}"))
    return out


def _alone(engine: foveate.Engine, requests: list[foveate.Request], plan: str = "none") -> Any:
    answers = [engine.generate([r], plan, max_new_tokens=NEW)[0] for r in requests]
    return {a.id: a.token_ids for a in answers}


def _submit(run: ContinuousEngine, requests: list[foveate.Request], **options: Any) -> None:
    for r in requests:
        run.submit(r, max_new_tokens=NEW, **options)


def _tokens(got: Any) -> Any:
    assert all(a.ok for a in got.values()), [a.error for a in got.values()]
    return {i: a.token_ids for i, a in got.items()}


def _in_thread(work: Any) -> Any:
    found: list[Any] = []
    thread = threading.Thread(target=lambda: found.append(work()))
    thread.start()
    thread.join()
    return found[0]


# --- threads and engines side by side -----------------------------------------------------------
@pytest.mark.parametrize("plan", ["none", "fastv:layer=2,keep=1/2+snapkv:keep=1/4,window=4"])
def test_another_thread_than_the_one_that_entered_may_step(
    engine: foveate.Engine, endless: None, plan: str
) -> None:
    requests = _requests(3)
    want = _alone(engine, requests, plan)
    with serving(engine, plan) as run:
        _submit(run, requests)
        assert _tokens(_in_thread(run.run_all)) == want


def test_another_thread_may_generate_under_a_plan_inside_the_model(
    engine: foveate.Engine, endless: None
) -> None:
    ready = engine.prepare(_requests(1)[0])
    call = dict(engine.processor(text=[ready.text], images=ready.pictures, return_tensors="pt"))
    call |= {"max_new_tokens": NEW, "do_sample": False, "output_logits": True}
    call |= {"return_dict_in_generate": True}
    with foveate.attach(engine.model, "snapkv:keep=1/8,window=4", processor=engine.processor):
        here = engine.model.generate(**call)
        there = _in_thread(lambda: engine.model.generate(**call))
    assert torch.equal(torch.stack(there.logits), torch.stack(here.logits))
    assert there.past_key_values.nbytes == here.past_key_values.nbytes


def test_engines_of_two_models_run_side_by_side(engine: foveate.Engine, endless: None) -> None:
    other = foveate.Engine.from_pretrained(nano_path())
    other.model.generation_config.eos_token_id = other.processor.tokenizer.eos_token = None
    requests, plan = _requests(2), "snapkv:keep=1/4,window=4"
    want = _alone(engine, requests), _alone(engine, requests, plan)
    with serving(engine) as first, serving(other, plan) as second:
        _submit(first, requests)
        _submit(second, requests)
        assert (_tokens(first.run_all()), _tokens(second.run_all())) == want


def test_an_engine_whose_model_got_another_plan_says_so(engine: foveate.Engine) -> None:
    with serving(engine, "snapkv:keep=1/4,window=4") as first:
        first.submit(_requests(1)[0])
        with serving(engine), pytest.raises(StateError, match="another plan"):
            first.step()
        assert first.run_all()["r0"].ok


def test_requests_from_several_threads(
    engine: foveate.Engine, endless: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    requests, inner = _requests(4), engine.processor
    want = _alone(engine, requests)

    class Slow:
        """Between the change of the tokenizer's padding side and its end another thread gets its turn."""

        tokenizer = inner.tokenizer

        def __call__(self, **call: Any) -> Any:
            time.sleep(0.01)
            return inner(**call)

        def __getattr__(self, name: str) -> Any:
            return getattr(inner, name)

    monkeypatch.setattr(engine, "processor", Slow())
    monkeypatch.setattr(inner.tokenizer, "padding_side", "right")
    with serving(engine) as run:

        def send(number: int) -> None:
            for r in requests:
                run.submit(replace(r, id=f"{number}-{r.id}"), max_new_tokens=NEW)

        threads = [threading.Thread(target=send, args=(i,)) for i in range(4)]
        for t in threads:
            t.start()
        while any(t.is_alive() for t in threads):
            run.step()
        got = _tokens(run.run_all())
    assert inner.tokenizer.padding_side == "right"
    assert len(got) == 16 and all(ids == want[i.split("-")[1]] for i, ids in got.items())


def _raising(at: int | tuple[int, ...], kind: type[BaseException]) -> Any:
    """A function of anything that raises in these of its calls, counted from 1."""
    calls, places = itertools.count(1), at if isinstance(at, tuple) else (at,)

    def call(*_: Any) -> None:
        if next(calls) in places:
            raise kind("planted")

    return call


def _cancelling(run: Any, victim: str, moment: int) -> tuple[Any, list[str], list[bool]]:
    """A callback that cancels a request at its moment-th call, whom it heard, and what cancel said."""
    heard: list[str] = []
    was: list[bool] = []

    def hear(id: str, _token: int, _text: str) -> None:
        heard.append(id)
        if len(heard) == moment:
            was.append(run.cancel(victim))

    return hear, heard, was


# --- callbacks ----------------------------------------------------------------------------------
def test_a_callback_that_raises_ends_its_own_request(engine: foveate.Engine, endless: None) -> None:
    requests = _requests(3)
    want = _alone(engine, requests)
    for place in (1, 3, NEW):  # the first token, one in the middle, the last
        with serving(engine) as run:
            _submit(run, requests[:1], on_token=_raising(place, ValueError))
            _submit(run, requests[1:])
            got = run.run_all()
            assert run.kv_bytes == 0
        failed = got.pop("r0")
        assert isinstance(failed.error, InputError) and "planted" in str(failed.error)
        assert isinstance(failed.error.__cause__, ValueError)
        assert failed.token_ids == want["r0"][:place] and got.keys() == {"r1", "r2"}
        assert all(want[i] == ids for i, ids in _tokens(got).items())


@pytest.mark.parametrize("victim", ["r0", "r1", "r2"])
@pytest.mark.parametrize("prefix_cache_bytes", [0, 2**24])
def test_a_callback_may_cancel_any_request_at_any_moment(
    engine: foveate.Engine, endless: None, victim: str, prefix_cache_bytes: int
) -> None:
    requests = _requests(3)
    want = _alone(engine, requests)
    for moment in range(1, 3 * NEW, 2):
        # A small budget, so that some of them decode while others are in the middle of a prompt.
        with serving(engine, token_budget_tokens=150, prefix_cache_bytes=prefix_cache_bytes) as run:
            hear, heard, was = _cancelling(run, victim, moment)
            _submit(run, requests, on_token=hear)
            got = run.run_all()
            assert run.kv_bytes == 0
        ended = got.pop(victim)
        if was[0]:
            assert isinstance(ended.error, InputError) and victim not in heard[moment:]
            assert ended.token_ids == want[victim][: len(ended.token_ids)]
        else:
            assert ended.token_ids == want[victim]
        assert _tokens(got) == {i: ids for i, ids in want.items() if i != victim}


def test_a_callback_may_submit_but_not_step(engine: foveate.Engine, endless: None) -> None:
    requests = _requests(2)
    want = _alone(engine, requests)
    with serving(engine) as run:

        def hear(_id: str, _token: int, _text: str) -> None:
            if "r1" not in run._jobs and "r1" not in run._done:
                run.submit(requests[1], max_new_tokens=NEW)

        run.submit(requests[0], max_new_tokens=NEW, on_token=hear)
        assert _tokens(run.run_all()) == want
        run.submit(requests[0], on_token=lambda *_: [run.step()].clear())
        assert "inside on_token" in str(run.run_all()["r0"].error)


def test_a_character_that_is_not_whole_yet_waits(
    engine: foveate.Engine, endless: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def decode(ids: list[int], **_: Any) -> str:
        """Two tokens a character, as byte-level tokenizers have them."""
        return ("é".encode() * len(ids))[: len(ids)].decode(errors="replace")

    monkeypatch.setattr(engine.processor.tokenizer, "decode", decode)
    pieces: list[str] = []
    for new in (NEW, NEW - 1):
        pieces.clear()
        with serving(engine) as run:
            run.submit(
                _requests(1)[0], max_new_tokens=new, on_token=lambda _, __, s: pieces.append(s)
            )
            text = run.run_all()["r0"].text
        assert "".join(pieces) == text and len(pieces) == new
        assert not any("\ufffd" in piece for piece in pieces[:-1])


# --- failures -----------------------------------------------------------------------------------
def test_what_torch_says_without_memory_on_this_machine_is_understood(
    engine: foveate.Engine, endless: None
) -> None:
    requests, calls = _requests(3), {"n": 0}
    want = _alone(engine, requests)

    def break_once(*_: Any) -> None:
        calls["n"] += 1
        if calls["n"] == 6:
            torch.empty(2**60)

    with serving(engine) as run:
        handle = run.run.layers[3].register_forward_pre_hook(break_once)
        try:
            _submit(run, requests)
            assert _tokens(run.run_all()) == want
        finally:
            handle.remove()
        assert run.scheduler.stats.total.out_of_memory == 1


@pytest.mark.parametrize("kind", [KeyboardInterrupt, RuntimeError])
def test_a_step_that_broke_off_is_run_again(
    engine: foveate.Engine, endless: None, kind: type[BaseException]
) -> None:
    requests = _requests(3)
    for plan in ("none", "kivi:bits=4,group=4,residual=4"):
        want, raised = _alone(engine, requests, plan), 0
        with serving(engine, plan) as run:
            handle = run.run.layers[3].register_forward_pre_hook(_raising((2, 6, 8), kind))
            try:
                _submit(run, requests)
                for _ in range(3):
                    with pytest.raises(kind, match="planted"):
                        while run.step():
                            pass
                    raised += 1
                assert _tokens(run.run_all()) == want and raised == 3
            finally:
                handle.remove()


@pytest.mark.parametrize("when", ["prefill", "decode"])
def test_a_request_that_cannot_go_on_takes_no_other_down(
    engine: foveate.Engine, endless: None, when: str
) -> None:
    requests = _requests(3)
    want = _alone(engine, requests)
    with serving(engine, max_running=3) as run:

        def breaks(*_: Any) -> None:
            job = run._jobs.get("r1")
            if job is None or job.meta is None:
                return
            if when == "prefill" and any(m is job.meta for m in run.run._meta):
                raise NonFiniteError("planted")
            rows = run.passes.cache.rows
            if when == "decode" and len(job.ids) > 2 and any(r is job.sequence for r in rows):
                raise NonFiniteError("planted")

        handle = run.run.layers[2].register_forward_pre_hook(breaks)
        try:
            _submit(run, requests[:2])
            for _ in range(3):
                run.step()
            _submit(run, requests[2:])
            got = run.run_all()
        finally:
            handle.remove()
        assert run.kv_bytes == 0
    assert isinstance(got.pop("r1").error, NonFiniteError)
    assert _tokens(got) == {i: ids for i, ids in want.items() if i != "r1"}


# --- what is held, and what an id names ---------------------------------------------------------
def test_nothing_of_a_request_is_held_once_it_ended(engine: foveate.Engine) -> None:
    for plan in ("none", "fastv:layer=2,keep=1/2"):
        with serving(engine, plan) as run:
            _submit(run, _requests(3))
            held: list[Any] = []
            while run.step():
                held += [weakref.ref(j.sequence) for j in run._jobs.values() if j.sequence]
            assert held and run.kv_bytes == 0
            gc.collect()
            assert all(sequence() is None for sequence in held)
            assert run.run.prefill is None and not run._jobs


def test_an_id_names_one_request_until_its_answer_was_taken(engine: foveate.Engine) -> None:
    first, second = _requests(2)
    with serving(engine) as run:
        run.submit(first)
        while run.step():
            pass
        assert not run.cancel("r0")
        with pytest.raises(InputError, match="take its answer"):
            run.submit(replace(second, id="r0"))
        old = run.answer("r0")
        run.submit(replace(second, id="r0"))
        assert run.answer("r0") is None
        new = run.run_all()["r0"]
        assert old is not None and old.token_ids != new.token_ids
        with pytest.raises(InputError, match="no request"):
            run.cancel("r0")
        run.submit(replace(first, id="request-0"))
        assert run.submit(replace(second, id=None)) == "request-1"
        run.submit(first)
    left = run.answer("r0")
    assert left is not None and isinstance(left.error, InputError) and run.kv_bytes == 0
    with pytest.raises(StateError, match="left"):
        run.submit(first)
    with pytest.raises(StateError, match="entered once"):
        run.__enter__()


# --- what a plan and a config say ---------------------------------------------------------------
@pytest.mark.parametrize("plan", ["infinipot-v:entries=4", "kivi:bits=2,group=4,residual=4"])
def test_a_plan_leaves_requests_without_pictures_alone(
    engine: foveate.Engine, endless: None, plan: str
) -> None:
    texts = [replace(r, id=f"t{i}") for i, r in enumerate(_requests(2, pictures=False))]
    requests = [*_requests(2), *texts]
    with serving(engine, plan) as run:
        _submit(run, requests)
        got = run.run_all()
    assert _tokens(got) == _alone(engine, requests, plan)
    for t in texts:
        alone = engine.generate([t], max_new_tokens=NEW)[0].report
        report = got[str(t.id)].report
        assert alone is not None and report is not None and report.kv_bytes == alone.kv_bytes


@pytest.mark.parametrize(
    "name, value", [("repetition_penalty", 0.2), ("suppress_tokens", [19, 20])]
)
def test_the_models_generation_config_holds_here_too(
    engine: foveate.Engine, endless: None, name: str, value: Any
) -> None:
    requests, config = _requests(3), engine.model.generation_config
    plain, before = _alone(engine, requests), getattr(config, name)
    setattr(config, name, value)
    try:
        want = _alone(engine, requests)
        assert want != plain
        with serving(engine, token_budget_tokens=150) as run:
            _submit(run, requests)
            assert _tokens(run.run_all()) == want
    finally:
        setattr(config, name, before)
