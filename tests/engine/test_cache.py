"""The feature cache: the same answers without the tower, and never another picture's or model's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from foveate.core.errors import UnsupportedError
from foveate.core.plan import Plan
from foveate.core.views import Need
from foveate.engine.attach import attach
from foveate.engine.cache import FeatureCache
from foveate.engine.compress import Compressed, compress
from foveate.engine.engine import Engine
from foveate.engine.request import Request
from foveate.models.adapter import adapter_for
from tests.engine.test_engine import NO_MARKS, picture
from tests.models.tiny_processors import save_folder
from tests.support import tiny

PLANS = ("none", "divprune:keep=1/2", "visionzip:keep=1/2", "uniform:keep=1/4")
GREEDY = {"max_new_tokens": 6, "min_new_tokens": 6, "do_sample": False}


@pytest.fixture(params=tiny.REPRESENTATIVE)
def family(request: pytest.FixtureRequest) -> str:
    return str(request.param)


class Tower:
    """How often a model's vision tower ran while open."""

    def __init__(self, model: Any) -> None:
        self.calls = 0
        self.vision = adapter_for(model).vision

    def _count(self, *_: Any) -> None:
        self.calls += 1

    def __enter__(self) -> Tower:
        self.hook = self.vision.register_forward_hook(self._count)
        return self

    def __exit__(self, *_: Any) -> None:
        self.hook.remove()


def ask(name: str, pictures: list[dict[str, Tensor]], seeds: list[int]) -> dict[str, Any]:
    """A batch of one picture a row; a row's seed makes its question."""
    model = tiny.cached_model(name)
    rows = [
        tiny.prompt(name, model, mm, lead=4 + i, tail=8 - i, seed=seed)
        for i, (mm, seed) in enumerate(zip(pictures, seeds, strict=True))
    ]
    return {**tiny.pad_batch(rows, "left"), **tiny.join_images(name, pictures)}


def images(name: str, count: int = 2, seed: int = 0) -> list[dict[str, Tensor]]:
    return tiny.split_images(name, tiny.random_images(name, count, seed=seed))


@torch.no_grad()
def short(model: Any, plan: str, inputs: dict[str, Any], cache: Any = None) -> Compressed:
    kwargs = {k: v.clone() for k, v in inputs.items()}
    return compress(adapter_for(model), Plan.parse(plan), kwargs, cache=cache)


@torch.no_grad()
def logits(model: Any, call: Compressed) -> Tensor:
    out: Tensor = model(**call.kwargs).logits
    return out


def same(model: Any, plan: str, inputs: dict[str, Any], cache: FeatureCache) -> Compressed:
    """Run with and without the cache, and hold one to the other."""
    plain, cached = short(model, plan, inputs), short(model, plan, inputs, cache)
    for a, b in zip(plain.rows, cached.rows, strict=True):
        assert a.index.tolist() == b.index.tolist()
        assert [p.image for p in a.placed] == [p.image for p in b.placed]
    want, got = logits(model, plain), logits(model, cached)
    assert want.shape == got.shape
    assert float((want - got).abs().max()) <= 1e-6 * float(want.abs().max())
    return cached


def runs(model: Any, plan: str, inputs: dict[str, Any], cache: FeatureCache) -> int:
    with Tower(model) as tower:
        short(model, plan, inputs, cache)
    return tower.calls


@pytest.mark.claim("C5")
@pytest.mark.parametrize("plan", PLANS)
def test_a_second_question_encodes_nothing_and_answers_as_without_a_cache(
    family: str, plan: str
) -> None:
    model, cache = tiny.cached_model(family), FeatureCache()
    pics = images(family)
    same(model, plan, ask(family, pics, [1, 2]), cache)
    missed = cache.stats.misses
    assert missed >= 2 and cache.stats.hits == 0
    for seeds in ([1, 2], [7, 8]):
        again = same(model, plan, ask(family, pics, seeds), cache)
        assert all(r.cached == len(r.segments) > 0 for r in again.rows)
        assert runs(model, plan, ask(family, pics, seeds), cache) == 0
    assert cache.stats.misses == missed


@pytest.mark.claim("C5")
def test_generate_gives_equal_tokens_by_either_way(family: str) -> None:
    """Greedy tokens with and without the cache are equal, and known pictures run no tower."""
    model, cache = tiny.cached_model(family), FeatureCache()
    for seeds in ([1, 2], [3, 4]):
        inputs = ask(family, images(family), seeds)
        for plan in ("none", "divprune:keep=1/2"):
            with attach(model, plan):
                want = model.generate(**{k: v.clone() for k, v in inputs.items()}, **GREEDY)
            with Tower(model) as tower, attach(model, plan, cache=cache):
                got = model.generate(**{k: v.clone() for k, v in inputs.items()}, **GREEDY)
            assert torch.equal(want, got)
    assert tower.calls == 0


def test_a_known_picture_in_another_batch_costs_only_its_neighbour(family: str) -> None:
    model, cache = tiny.cached_model(family), FeatureCache()
    known, new = images(family, 2, seed=5)
    same(model, "uniform:keep=1/2", ask(family, [known], [1]), cache)
    before = cache.stats
    call = same(model, "uniform:keep=1/2", ask(family, [new, known], [2, 3]), cache)
    first, second = call.rows
    assert first.cached == 0 and second.cached == len(second.segments) > 0
    assert cache.stats.hits > before.hits
    alone = ask(family, [new], [9])
    assert runs(model, "uniform:keep=1/2", alone, cache) == 0


def test_the_same_picture_twice_in_a_batch_is_kept_once(family: str) -> None:
    model, cache = tiny.cached_model(family), FeatureCache()
    one = images(family, 1)
    same(model, "divprune:keep=1/2", ask(family, one, [1]), cache)
    entries = cache.stats.entries
    cache = FeatureCache()
    same(model, "divprune:keep=1/2", ask(family, one * 2, [1, 2]), cache)
    assert cache.stats.entries == entries


def test_plans_share_what_they_read_and_no_more(family: str) -> None:
    """Two plans without encoder facts share; one that reads attention has entries of its own."""
    model, cache = tiny.cached_model(family), FeatureCache()
    inputs = ask(family, images(family), [1, 2])
    assert runs(model, "divprune:keep=1/2", inputs, cache) > 0
    assert runs(model, "uniform:keep=1/4", inputs, cache) == 0
    assert runs(model, "visionzip:keep=1/2", inputs, cache) > 0
    assert runs(model, "visionzip:keep=1/4", inputs, cache) == 0
    same(model, "visionzip:keep=1/2", inputs, cache)


def test_captured_facts_come_back_as_they_were(family: str) -> None:
    adapter, cache = adapter_for(tiny.cached_model(family)), FeatureCache()
    mm = tiny.random_images(family, 2, seed=3)
    mm = adapter.media_kwargs(mm, "image")
    needs = frozenset({Need("features", -2), Need("received", -1), Need("keys", 0)})
    with torch.no_grad():
        want = adapter.encode(mm, "image", needs)
        cache.encode(adapter, mm, "image", needs)
        got = cache.encode(adapter, mm, "image", needs).encoded
    assert want.tokens.hidden.keys() == got.tokens.hidden.keys()
    for block, state in want.tokens.hidden.items():
        torch.testing.assert_close(got.tokens.hidden[block], state, rtol=1e-5, atol=1e-6)
    for block, at in want.tokens.attention.items():
        for name in ("received", "keys"):
            torch.testing.assert_close(
                getattr(got.tokens.attention[block], name), getattr(at, name), rtol=1e-5, atol=1e-6
            )
    for a, b in zip(want.pieces, got.pieces, strict=True):
        assert (a.kind, a.grid, a.picture) == (b.kind, b.grid, b.picture)
        for name in ("fixed", "source", "group", "part"):
            x, y = getattr(a, name), getattr(b, name)
            assert (x is None) == (y is None) and (x is None or torch.equal(x, y))


@pytest.mark.parametrize("change", ["pixel", "weights", "in place", "projector", "dtype", "name"])
def test_what_must_miss_does(family: str, change: str) -> None:
    model, cache = tiny.make_model(family), FeatureCache()
    inputs = ask(family, images(family, 1), [1])
    assert runs(model, "none", inputs, cache) > 0
    assert runs(model, "none", inputs, cache) == 0
    if change == "pixel":
        inputs["pixel_values"] = inputs["pixel_values"].clone()
        inputs["pixel_values"].view(-1)[0] += 1e-3
    elif change == "weights":
        model = tiny.make_model(family, seed=1)
    elif change == "dtype":
        model = tiny.make_model(family, dtype=torch.float64)
        inputs["pixel_values"] = inputs["pixel_values"].double()
    elif change == "name":
        model.config._name_or_path = "another/model"
    else:
        name = "vision|visual" if change == "in place" else "projector|connector|merger"
        found = [p for n, p in model.named_parameters() if any(x in n for x in name.split("|"))]
        with torch.no_grad():
            found[-1].view(-1)[0] += 0.5
    assert runs(model, "none", inputs, cache) > 0


def test_another_language_model_shares_the_vision_side() -> None:
    """Only what pictures pass is fingerprinted, so a write to the text side costs no encoding."""
    model, cache = tiny.make_model("llava"), FeatureCache()
    inputs = ask("llava", images("llava", 1), [1])
    short(model, "none", inputs, cache)
    with torch.no_grad():
        model.get_decoder().layers[0].mlp.up_proj.weight.mul_(1.5)
    assert runs(model, "none", inputs, cache) == 0


def test_the_question_still_chooses_when_features_are_cached() -> None:
    """Features are the picture's alone; which of them are kept is decided anew by the question."""
    model, cache = tiny.cached_model("llava"), FeatureCache()
    plan, pics = "trimtokenator-lc:keep=1/4", images("llava", 1)
    kept = []
    for seed in range(1, 7):
        call = same(model, plan, ask("llava", pics, [seed]), cache)
        kept.append(tuple(call.rows[0].index.tolist()))
    assert len(set(kept)) > 1
    assert cache.stats.misses == 1 and cache.stats.hits == 5
    # Asked in the other order, the answers are the same: nothing of a question was kept.
    other = FeatureCache()
    for seed in range(6, 0, -1):
        call = short(model, plan, ask("llava", pics, [seed]), other)
        assert tuple(call.rows[0].index.tolist()) == kept[seed - 1]


def test_entries_are_not_written_by_the_runs_that_use_them(family: str) -> None:
    model, cache = tiny.cached_model(family), FeatureCache()
    inputs = ask(family, images(family), [1, 2])
    logits(model, short(model, "none", inputs, cache))
    before = {k: {n: t.clone() for n, t in e.tensors.items()} for k, e in cache._entries.items()}
    for plan in ("none", "pool:keep=1/2", "uniform:keep=1/2"):
        logits(model, short(model, plan, inputs, cache))
    for key, tensors in before.items():
        assert all(torch.equal(t, cache._entries[key].tensors[n]) for n, t in tensors.items())


# --- when it stands aside -----------------------------------------------------------------------
def test_plans_inside_the_tower_are_neither_stored_nor_served() -> None:
    model, cache = tiny.cached_model("llava"), FeatureCache()
    inputs = ask("llava", images("llava", 1), [1])
    short(model, "none", inputs, cache)
    before = cache.stats
    for _ in range(2):
        assert runs(model, "tome:r=2", inputs, cache) > 0
    after = cache.stats
    assert after.bypassed == before.bypassed + 2 and after.entries == before.entries
    same(model, "none", inputs, cache)


def test_gradients_and_training_pass_by() -> None:
    model, cache = tiny.make_model("llava"), FeatureCache()
    inputs = ask("llava", images("llava", 1), [1])
    with attach(model, "uniform:keep=1/2", cache=cache):
        model(**inputs).logits.sum().backward()
    assert any(
        p.grad is not None and p.grad.abs().sum() > 0 for p in model.model.vision_tower.parameters()
    )
    model.train()
    with torch.no_grad(), attach(model, "uniform:keep=1/2", cache=cache):
        model(**inputs)
    assert cache.stats.bypassed == 2 and cache.stats.entries == 0


def test_features_kept_in_inference_mode_serve_a_frozen_tower_with_gradients() -> None:
    model, cache = tiny.make_model("llava"), FeatureCache()
    inputs = ask("llava", images("llava", 1), [1])
    with torch.inference_mode():
        compress(adapter_for(model), Plan.parse("none"), inputs, cache=cache)
    text = {id(p) for p in [*model.get_decoder().parameters(), *model.lm_head.parameters()]}
    for p in model.parameters():
        p.requires_grad_(id(p) in text)
    with Tower(model) as tower, attach(model, "uniform:keep=1/2", cache=cache):
        model(**inputs).logits.sum().backward()
    assert tower.calls == 0 and model.lm_head.weight.grad is not None


def test_weights_that_are_elsewhere_are_refused() -> None:
    model = tiny.make_model("llava")
    model.model.multi_modal_projector.to("meta")
    adapter = adapter_for(model)
    mm = adapter.media_kwargs(tiny.random_images("llava", 1, seed=0), "image")
    with torch.no_grad(), pytest.raises(UnsupportedError, match="offloaded"):
        FeatureCache().encode(adapter, mm)


# --- through the engine -------------------------------------------------------------------------
@pytest.mark.claim("C5")
def test_the_engine_notes_a_hit_and_spends_nothing_on_the_tower(tmp_path: Path) -> None:
    model = tiny.make_model("qwen2_5_vl")
    folder = save_folder("qwen2_5_vl", model, tmp_path)
    cache = FeatureCache()
    engine = Engine.from_pretrained(folder, cache=cache)
    plain = Engine.from_pretrained(folder)
    shot = picture(60, 40, 1)
    for turn, words in enumerate(("what is in the picture ?", "colour ?", "is it red ?")):
        request = Request(words, images=[shot])
        with Tower(engine.model) as tower:
            got = engine.generate([request], "divprune:keep=1/2", max_new_tokens=6, **NO_MARKS)[0]
        want = plain.generate([request], "divprune:keep=1/2", max_new_tokens=6, **NO_MARKS)[0]
        assert got.ok and got.token_ids == want.token_ids and got.report is not None
        assert (tower.calls > 0) == (turn == 0)
        noted = "encoder features from the cache" in got.report.notes
        assert noted == (turn > 0)
        assert not any("cache" in note for note in want.report.notes)  # type: ignore[union-attr]
    both = [Request("and ?", images=[shot, picture(28, 28, 2)])]
    notes = engine.generate(both, max_new_tokens=2, **NO_MARKS)[0].report.notes  # type: ignore[union-attr]
    assert "encoder features from the cache for 1 segments" in notes
