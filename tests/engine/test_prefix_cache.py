"""The prefix cache: equal tokens for less work, nothing served to another plan, question or picture."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch

import foveate
from foveate.core import Plan
from foveate.core.errors import CapacityError, SettingError
from foveate.engine.cache import FeatureCache
from foveate.engine.compress import compress
from foveate.engine.continuous import ContinuousEngine, serving
from foveate.engine.language_door import begin, meta_of
from foveate.engine.language_run import LanguageRun
from foveate.engine.prefix_cache import PrefixCache, boundary, reads_words
from foveate.lab import demo_pictures, nano_path
from foveate.models.adapter import adapter_for
from tests.engine.reference import relative
from tests.support import tiny

BYTES = 64 * 2**20
QUESTIONS = ("how many are there?", "what is it?", "how many are there?")
SHARED = ("none", "divprune:keep=1/2", "visionzip:keep=1/4")


@pytest.fixture(scope="module")
def engine() -> foveate.Engine:
    return foveate.Engine.from_pretrained(nano_path())


def _ask(question: str, id: str, picture: int = 0, system: str | None = None) -> foveate.Request:
    image = demo_pictures()[picture].image
    return foveate.Request(images=[image], question=question, id=id, system=system)


class Work:
    """Pictures that pass the tower, and tokens through the first decoder layer."""

    def __init__(self) -> None:
        self.pictures, self.tokens = 0, 0


@contextlib.contextmanager
def counted(run: ContinuousEngine) -> Iterator[Work]:
    work = Work()

    def layer(_: Any, args: Any, kwargs: Any) -> None:
        states = args[0] if args else kwargs["hidden_states"]
        work.tokens += int(states.shape[0] * states.shape[1])

    def tower(*_: Any) -> None:
        work.pictures += 1

    handles = [
        run.run.layers[0].register_forward_pre_hook(layer, with_kwargs=True),
        run.engine.adapter.vision.register_forward_pre_hook(tower),
    ]
    try:
        yield work
    finally:
        for handle in handles:
            handle.remove()


def _one(run: ContinuousEngine, request: foveate.Request, **options: Any) -> tuple[Any, Work]:
    with counted(run) as work:
        run.submit(request, **options)
        return run.run_all()[str(request.id)], work


@pytest.mark.parametrize("plan", SHARED)
def test_a_second_question_costs_no_tower_and_no_prefill_of_the_picture(
    engine: foveate.Engine, plan: str
) -> None:
    with serving(engine, plan, prefix_cache_bytes=BYTES) as run:
        assert run.prefix is not None
        for i, question in enumerate(QUESTIONS):
            request = _ask(question, f"q{i}")
            got, work = _one(run, request, max_new_tokens=12)
            alone = engine.generate([request], plan, max_new_tokens=12)[0]
            assert got.token_ids == alone.token_ids
            new = len(got.token_ids) - 1
            total = alone.report.prompt_tokens
            if i == 0:
                assert work.pictures == 1 and work.tokens == total + new
            else:
                assert work.pictures == 0
                assert work.tokens < 20 + new and work.tokens < total / 2
                assert any("prefix cache" in n for n in got.report.notes)
        stats = run.prefix.stats
        assert (stats.hits, stats.misses, stats.entries) == (2, 1, 1)
        assert 0 < stats.bytes <= BYTES and stats.tokens_saved > 0


@pytest.mark.parametrize(
    "plan",
    [
        "fastv:layer=2,keep=1/2",
        "divprune:keep=1/2+snapkv:keep=1/2,window=4",
        "kivi:bits=4,group=4,residual=8",
        "calibquant:bits=2",
    ],
)
def test_plans_inside_the_model_share_whole_prompts_alone(
    engine: foveate.Engine, plan: str
) -> None:
    with serving(engine, plan, prefix_cache_bytes=BYTES) as run:
        for i, question in enumerate(QUESTIONS):
            request = _ask(question, f"q{i}")
            got, work = _one(run, request, max_new_tokens=12)
            alone = engine.generate([request], plan, max_new_tokens=12)[0]
            assert got.token_ids == alone.token_ids
            assert got.report.kv_bytes == alone.report.kv_bytes
            # The third question is the first again: not a token of its prompt is computed.
            assert (work.tokens == len(got.token_ids) - 1) == (i == 2)
        assert run.prefix is not None and run.prefix.stats.hits == 1


def test_requests_in_one_batch_share_too_and_chunks_do_not_matter(engine: foveate.Engine) -> None:
    requests = [_ask(f"what is number {i}?", f"q{i}", picture=i % 2) for i in range(6)]
    for budget in (48, 400):
        with serving(
            engine, "none", prefix_cache_bytes=BYTES, token_budget_tokens=budget, max_running=2
        ) as run:
            for r in requests:
                run.submit(r, max_new_tokens=8)
            got = run.run_all()
            assert run.prefix is not None and run.prefix.stats.hits >= 2
        for r in requests:
            want = engine.generate([r], max_new_tokens=8)[0]
            assert got[str(r.id)].token_ids == want.token_ids


def test_another_picture_or_other_words_before_it_miss(engine: foveate.Engine) -> None:
    with serving(engine, "none", prefix_cache_bytes=BYTES) as run:
        asked = [_ask("what is it?", "a"), _ask("what is it?", "b", 1)]
        history = ({"role": "user", "content": "hello"}, {"role": "assistant", "content": "hi"})
        image = demo_pictures()[0].image
        asked.append(foveate.Request("what is it?", images=[image], history=history, id="c"))
        for request in asked:
            got, _ = _one(run, request)
            assert got.token_ids == engine.generate([request])[0].token_ids
        assert run.prefix is not None and run.prefix.stats.hits == 0
        text, _ = _one(run, foveate.Request("what is it?", id="t"))
        assert text.ok and run.prefix.stats.bypassed == 1


def test_another_weight_in_the_language_model_misses(engine: foveate.Engine) -> None:
    weight = engine.model.get_decoder().layers[1].mlp.down_proj.weight
    with serving(engine, "none", prefix_cache_bytes=BYTES) as run, torch.no_grad():
        _one(run, _ask("what is it?", "a"))
        weight.mul_(1.5)
        try:
            got, _ = _one(run, _ask("how many?", "b"))
            want = engine.generate([_ask("how many?", "b")])[0]
        finally:
            weight.div_(1.5)
        assert got.token_ids == want.token_ids
        assert run.prefix is not None and run.prefix.stats.hits == 0


def test_the_longest_unused_leave_and_the_budget_holds(engine: foveate.Engine) -> None:
    with serving(engine, "none", prefix_cache_bytes=BYTES) as run:
        _one(run, _ask("what is it?", "a"))
        assert run.prefix is not None
        one = run.prefix.stats.bytes
    with serving(engine, "none", prefix_cache_bytes=BYTES) as run:
        cache = run.prefix = PrefixCache(2 * one + one // 2)
        for i, picture in enumerate((0, 1, 0, 2, 0, 1)):
            _one(run, _ask("what is it?", f"q{i}", picture))
            assert cache.stats.bytes <= cache.max_bytes
        # 0 and 1 enter, 0 is used, 2 pushes 1 out, 0 is there, 1 comes anew.
        assert (cache.stats.hits, cache.stats.misses, cache.stats.evictions) == (2, 4, 2)
        cache.clear()
        assert cache.stats.bytes == cache.stats.entries == 0
        cache.max_bytes = one - 1
        _one(run, _ask("what is it?", "z"))
        assert cache.stats.entries == 0


def test_out_of_memory_empties_the_cache_and_loses_nobody(engine: foveate.Engine) -> None:
    requests, calls = [_ask(f"what is {i}?", f"q{i}") for i in range(5)], {"n": 0}

    def break_some(*_: Any) -> None:
        calls["n"] += 1
        if calls["n"] == 4:
            raise torch.OutOfMemoryError("planted")

    with serving(engine, "none", prefix_cache_bytes=BYTES, max_running=5) as run:
        handle = run.run.layers[3].register_forward_pre_hook(break_some)
        try:
            for r in requests:
                run.submit(r, max_new_tokens=10)
            got = run.run_all()
        finally:
            handle.remove()
        assert run.scheduler.stats.total.out_of_memory == 1
        # The cache was emptied and filled once more.
        assert run.prefix is not None and run.prefix.stats.misses == 2 <= run.prefix.stats.hits
    for r in requests:
        want = engine.generate([r], max_new_tokens=10)[0]
        assert got[str(r.id)].token_ids == want.token_ids


@pytest.mark.parametrize("times", [1, 9])
def test_a_request_alone_fails_for_memory_only_once_the_cache_is_empty(
    engine: foveate.Engine, times: int
) -> None:
    calls = {"n": 0}

    def breaks(*_: Any) -> None:
        calls["n"] += 1
        if calls["n"] <= times:
            raise torch.OutOfMemoryError("planted")

    with serving(engine, "none", prefix_cache_bytes=BYTES) as run:
        _one(run, _ask("what is it?", "a"))
        assert run.prefix is not None and run.prefix.stats.bytes
        handle = run.run.layers[3].register_forward_pre_hook(breaks)
        try:
            run.submit(_ask("how many?", "b", picture=1))
            got = run.run_all()["b"]
        finally:
            handle.remove()
    if times == 1:
        assert got.token_ids == engine.generate([_ask("how many?", "b", picture=1)])[0].token_ids
    else:
        assert isinstance(got.error, CapacityError) and calls["n"] == 2


def test_off_by_default_and_bad_budgets_are_refused(engine: foveate.Engine) -> None:
    assert ContinuousEngine(engine).prefix is None
    assert ContinuousEngine(engine, prefix_cache_bytes=0).prefix is None
    with pytest.raises(SettingError, match="prefix_cache_bytes"):
        ContinuousEngine(engine, prefix_cache_bytes=-1)
    own = foveate.Engine(engine.model, engine.processor, cache=FeatureCache(2**20))
    assert ContinuousEngine(own, prefix_cache_bytes=BYTES).features is own.cache


# --- names --------------------------------------------------------------------------------------
def _prepared(name: str, plan: str, tail: int = 6, seed: int = 1) -> Any:
    model = tiny.cached_model(name)
    adapter = adapter_for(model)
    mm = tiny.split_images(name, tiny.image_inputs(name))[0]
    row = tiny.prompt(name, model, mm, lead=4, tail=tail, seed=3)
    row["input_ids"][0, -2] = 5 + seed
    parsed = Plan.parse(plan)
    short = compress(adapter, parsed, {**row, **mm})
    return adapter, parsed, {**row, **mm}, short, meta_of(short)[0]


def _key(name: str, plan: str, seed: int = 1, **changes: Any) -> str:
    adapter, parsed, inputs, short, meta = _prepared(name, plan, seed=seed)
    inputs = {**inputs, **changes}
    found = PrefixCache(BYTES).name(adapter, changes.pop("plan", parsed), inputs, short, meta)
    assert found is not None
    return found.key


@torch.no_grad()
def test_a_name_holds_the_plan_the_pixels_and_what_the_plan_reads() -> None:
    name = "llava"
    assert _key(name, "none", 1) == _key(name, "none", 2)
    assert _key(name, "divprune:keep=1/2", 1) == _key(name, "divprune:keep=1/2", 2)
    for plan in ("fastv:layer=1,keep=1/2", "snapkv:keep=1/2", "kivi", "calibquant"):
        assert _key(name, plan, 1) == _key(name, plan, 1) != _key(name, plan, 2)
    # Plans that choose equal places of equal prompts: their names alone tell them apart.
    same = {_key(name, p) for p in ("none", "divprune:keep=1", "none;seed=5", "random:keep=1")}
    assert len(same) == 4
    assert len({_key(name, p) for p in ("kivi:bits=2", "kivi:bits=4", "calibquant")}) == 3
    pixels = _prepared(name, "none")[2]["pixel_values"].clone()
    pixels[0, 0, 0, 0] += 1
    assert _key(name, "none", pixel_values=pixels) != _key(name, "none")


def test_plans_that_read_the_question_say_so() -> None:
    words = {"cdpruner-clip:keep=1/2", "cdpruner-lm:keep=1/2", "fastv:layer=2,keep=1/2", "kivi"}
    assert {p for p in (*words, *SHARED, "random:keep=1/2") if reads_words(Plan.parse(p))} == words


@torch.no_grad()
def test_a_plan_that_chooses_by_the_question_shares_by_question(engine: foveate.Engine) -> None:
    plan = "cdpruner-lm:keep=1/4"
    with serving(engine, plan, prefix_cache_bytes=BYTES) as run:
        for i, question in enumerate(QUESTIONS):
            request = _ask(question, f"q{i}")
            got, _ = _one(run, request, max_new_tokens=12)
            want = engine.generate([request], plan, max_new_tokens=12)[0]
            assert got.token_ids == want.token_ids
        assert run.prefix is not None and run.prefix.stats.hits == 1


def test_words_that_look_ahead_are_not_shared() -> None:
    for name, shared in (("paligemma", False), ("gemma3", True), ("qwen2_5_vl", True)):
        _, _, _, short, meta = _prepared(name, "none")
        end = boundary(meta, short.kwargs.get("token_type_ids"))
        assert (end is not None) == shared
        if end is not None:
            assert end == int(np.flatnonzero(meta.modality > 0)[-1]) + 1 < meta.n


@pytest.mark.parametrize("name", ["llava", "gemma3", "qwen3_vl", "gemma4", "smolvlm"])
@torch.no_grad()
def test_the_rest_after_a_prefix_gives_the_logits_of_the_whole(name: str) -> None:
    adapter, plan, _, short, meta = _prepared(name, "divprune:keep=1/2")
    model = adapter.model
    end = boundary(meta, short.kwargs.get("token_type_ids"))
    assert end is not None
    run = LanguageRun(adapter, plan)
    with run.attached():
        extra = begin(run, short)
        call = {**short.kwargs, "mm_encoder_outputs": short.part(0, meta.n)}
        whole = model(**call, **extra, use_cache=True).logits[0, end:]
        sequence = extra["past_key_values"].rows[0].clone()
        sequence.truncate(meta.n - end)
        cache = run.new_cache()
        cache.rows = [sequence]
        cache.set_seen(end)
        run.resume(cache, [meta])
        rest = {k: v[:, end:] for k, v in short.kwargs.items() if k.endswith("token_type_ids")}
        with run.in_parts():
            got = model(
                input_ids=short.kwargs["input_ids"][:, end:],
                position_ids=short.kwargs["position_ids"][..., end:],
                past_key_values=cache,
                use_cache=True,
                **rest,
            ).logits[0]
    assert relative(got, whole) <= 2e-5
