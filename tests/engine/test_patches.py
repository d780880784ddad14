"""Dropped patches: equal to a tower of full length that hides them, on every packed family."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
import torch

from foveate.core import Need, PixelMethod, PixelPlan, Plan
from foveate.core.errors import InputError, PlanError, UnsupportedError
from foveate.engine.attach import attach
from foveate.engine.compress import compress
from foveate.engine.patches import patches_of
from foveate.models.adapter import adapter_for
from foveate.models.encoded import encoder_view
from foveate.models.packed import KeptPatches, Packing
from tests.engine import patches as P
from tests.engine.reference import relative
from tests.support import tiny

EXACT, BITE = 2e-5, 1e-3
VIDEOS = tuple(n for n in P.PACKED if n in tiny.VIDEO_FAMILIES)
CASES = [(n, "image") for n in P.PACKED] + [(n, "video") for n in VIDEOS]


def present(short) -> np.ndarray:  # type: ignore[no-untyped-def]
    return np.concatenate([p.piece.present.numpy() for p in short.rows[0].placed])


@pytest.mark.parametrize(("name", "modality"), CASES)
@torch.no_grad()
def test_the_tower_gives_what_a_full_one_gives_that_hides_them(name: str, modality: str) -> None:
    c = P.case(name, modality)
    short = c.short(Plan((P.Scattered(),)))
    there = present(short)
    assert 0 < there.sum() < there.size / 2
    want, deep = P.masked_features(c, there)
    pieces = [p.piece for p in short.rows[0].placed]
    got = torch.cat([p.payload[p.present] for p in pieces])
    keep = torch.as_tensor(there)
    assert relative(got, torch.cat(want)[keep]) <= EXACT
    dense = torch.cat([p.payload for p in c.adapter.encode(c.mm, modality).pieces])[keep]
    assert relative(got, dense) > BITE  # hiding matters, or this test could not fail
    for i, layer in enumerate(deep):
        mine = torch.cat([p.deepstack[i][p.present] for p in pieces])
        assert relative(mine, layer[keep]) <= EXACT


@pytest.mark.parametrize(("name", "modality"), [x for x in CASES if x[0] != "qwen3_5"])
@torch.no_grad()
def test_the_answer_is_that_of_a_full_run_that_hides_them(name: str, modality: str) -> None:
    c = P.case(name, modality)
    short = c.short(Plan((P.Scattered(),)))
    got = c.model(**short.kwargs, use_cache=False).logits[0]
    want = P.reference_logits(c, short, present(short))
    assert relative(got, want) <= EXACT


@pytest.mark.parametrize("name", P.PACKED)
@pytest.mark.parametrize("side", ["left", "right"])
@torch.no_grad()
def test_a_batch_of_unequal_pictures_equals_single_runs(name: str, side: str) -> None:
    c = P.case(name)
    singles = tiny.split_images(name, c.mm)
    rows = [tiny.prompt(name, c.model, mm, lead=5 - i, seed=i) for i, mm in enumerate(singles)]
    assert rows[0]["input_ids"].shape != rows[1]["input_ids"].shape
    plan = Plan((P.Scattered(),))
    call = {**tiny.pad_batch(rows, side), **tiny.join_images(name, singles)}  # type: ignore[arg-type]
    both = compress(c.adapter, plan, call)
    out = c.model(**both.kwargs, use_cache=False).logits
    mask = both.kwargs["attention_mask"].bool()
    for i, (row, mm) in enumerate(zip(rows, singles, strict=True)):
        alone = compress(c.adapter, plan, {**row, **mm})
        assert both.rows[i].unseen == alone.rows[0].unseen > 0
        want = c.model(**alone.kwargs, use_cache=False).logits[0]
        assert relative(out[i][mask[i]], want) <= EXACT


@pytest.mark.parametrize("name", [n for n in VIDEOS if n != "video_llama_3"])
def test_the_grid_has_a_row_for_each_run_that_is_left(name: str) -> None:
    """A step of a video that lost all its patches has neither a border nor a row of the grid."""
    c = P.case(name, "video")
    packing = Packing(c.adapter, c.mm, "video")
    masks = []
    for t, h, w in packing.grids:
        mask = np.ones((t, h * w), dtype=bool)
        mask[t // 2] = False
        masks.append(mask.reshape(-1))
    steps = sum(t for t, _, _ in packing.grids)
    handed = KeptPatches(packing, masks)._before(
        {"hidden_states": packing.pixels, "grid_thw": c.mm["video_grid_thw"]}
    )
    assert handed["grid_thw"].shape[0] == steps - len(masks)
    assert handed["cu_seqlens"].numel() == steps - len(masks) + 1


@pytest.mark.parametrize("name", P.PACKED)
@torch.no_grad()
def test_encoder_facts_are_those_of_the_patches_that_are_there(name: str) -> None:
    needs = frozenset({Need("features", -1), Need("keys", -1), Need("received", -1)})
    c = P.case(name)
    packing = Packing(c.adapter, c.mm, "image")
    rng = np.random.default_rng(5)
    masks = [np.arange(n) % 3 != 1 for n in packing.sizes]
    masks = [m & (rng.random(m.size) < 0.7) | (np.arange(m.size) == 0) for m in masks]
    there = np.concatenate(masks)
    got = c.adapter.encode(c.mm, needs=needs, kept=KeptPatches(packing, masks))
    with P.unseen_patches(c, ~there[P.token_of_patches(c)]):
        want = c.adapter.encode(c.mm, needs=needs)
    for a, b, mask in zip(got.pieces, want.pieces, masks, strict=True):
        mine, full = encoder_view(got, a, needs), encoder_view(want, b, needs)
        assert mine is not None and full is not None
        kept = torch.as_tensor(mask)[full.group]
        rank = torch.as_tensor(np.cumsum(mask) - 1)
        assert torch.equal(mine.group, rank[full.group[kept]])
        assert relative(mine.features, full.features[kept]) <= EXACT
        assert relative(mine.at[-1].keys, full.at[-1].keys[kept]) <= EXACT
        assert float(mine.at[-1].received.sum()) == pytest.approx(1.0, abs=1e-4)


@torch.no_grad()
def test_a_token_method_sees_what_the_tower_saw_and_no_grid_that_is_full() -> None:
    c = P.case("qwen3_vl")
    for text, share in (("divprune:keep=1/2", 2), ("visionzip:keep=1/2", 2)):
        both = Plan((P.Scattered(), *Plan.parse(text).methods))
        short = c.short(both)
        alone = c.short(Plan((P.Scattered(),)))
        for a, b in zip(short.rows[0].placed, alone.rows[0].placed, strict=True):
            assert torch.equal(a.piece.present, b.piece.present)
        row = short.rows[0]
        seen = [int(p.piece.present.sum()) for p in row.placed]
        assert [r.k for r in row.reductions] == [int(n / share + 0.5) for n in seen]
        assert set(row.index) < set(alone.rows[0].index)
        for p, r, s in zip(row.placed, row.reductions, row.reports, strict=True):
            assert bool(p.piece.present[p.cells(r.anchor)].all())
            assert (s.tokens_in, s.tokens_kept) == (p.piece.n, r.k)
        got = c.model(**short.kwargs, use_cache=False).logits[0]
        if text.startswith("divprune"):  # a pick: the reference needs no merging
            assert relative(got, P.reference_logits(c, short, present(short))) <= EXACT
    with pytest.raises(UnsupportedError, match="full grid"):
        c.short(Plan((P.Scattered(), *Plan.parse("pool:keep=1/2").methods)))


@pytest.mark.parametrize("name", tiny.FAMILIES)
def test_families_without_a_packed_tower_are_refused_with_the_reason(name: str) -> None:
    model = tiny.cached_model(name)
    adapter = adapter_for(model)
    if name in P.PACKED:
        assert patches_of(adapter, Plan.parse("pixelprune")) is not None
        with pytest.raises(UnsupportedError, match="packed"):
            patches_of(adapter, Plan.parse("pixelprune+tome:r=2"))
        return
    with pytest.raises(
        UnsupportedError, match=f"pixelprune is not available on {adapter.model_type}"
    ):
        with attach(model, "pixelprune"):
            raise AssertionError("refused too late")


def told(*plans: PixelPlan) -> PixelMethod:
    body = {"name": "told", "summary": "test", "acts": "patches", "reduce": lambda *_: list(plans)}
    return dataclass(frozen=True)(type("Told", (PixelMethod,), body))()  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    "plans",
    [
        (),
        (PixelPlan(patches=()), PixelPlan()),
        (PixelPlan(patches=(1, 0)), PixelPlan()),
        (PixelPlan(patches=(0, 99)), PixelPlan()),
        (PixelPlan(size=(8, 8)), PixelPlan()),
    ],
)
def test_plans_that_do_not_fit_are_refused(plans: tuple[PixelPlan, ...]) -> None:
    c = P.case("qwen2_vl")
    with pytest.raises(PlanError, match="told"):
        c.short(Plan((told(*plans),)))


def test_ids_and_patches_that_disagree_are_refused_before_the_tower_runs() -> None:
    c = P.case("qwen2_vl")
    c.adapter.vision.register_forward_pre_hook(lambda *_: pytest.fail("the tower ran"))
    plan = Plan((P.Scattered(),))
    ids = c.row["input_ids"].clone()
    ids[0, 0] = tiny.IMAGE
    with pytest.raises(InputError, match="placeholders"):
        compress(c.adapter, plan, {**c.row, **c.mm, "input_ids": ids})
    with pytest.raises(InputError, match="do not fill"):
        compress(c.adapter, plan, {**c.row, **c.mm, "pixel_values": c.mm["pixel_values"][:-4]})


@pytest.mark.parametrize("name", P.PACKED)
@torch.no_grad()
def test_without_repetition_nothing_changes_and_hooks_are_gone(name: str) -> None:
    c = P.case(name)
    short = c.short("pixelprune")
    assert short.identity and short.rows[0].unseen == 0
    got = c.model(**short.kwargs, use_cache=False).logits
    want = c.model(**c.row, **c.mm, use_cache=False).logits
    assert relative(got, want) <= 1e-6
    c.short(Plan((P.Scattered(),)))
    hooks = [len(m._forward_pre_hooks) + len(m._forward_hooks) for m in c.model.modules()]
    assert sum(hooks) == 0
    again = c.model(**c.row, **c.mm, use_cache=False).logits
    assert torch.equal(again, want)
