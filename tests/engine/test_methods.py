"""P4: every token method on model inputs: a ragged batch equals its single runs, counts are exact.

Six representative families in the normal run; `pytest -m full` takes every family.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch

from foveate.core import Plan, registry
from foveate.core.errors import UnsupportedError
from foveate.engine.compress import Compressed, compress
from foveate.models.adapter import adapter_for
from tests.engine.matrix import EXACT, logits, real_rows
from tests.engine.reference import relative
from tests.support import tiny

METHODS = list(registry.methods("tokens"))
VIDEO_ONLY = {"evs", "framefusion", "dycoke"}
BLOCKS = {"middle", "shallow"}  # settings that name a block deeper than a tiny tower has
NEEDS_USER_TOWER = {"cdpruner-clip"}


def plan_of(name: str, keep: str = "1/3") -> Plan:
    """The method at a budget, with block settings that a tiny tower of three blocks has."""
    cls = registry.get(name)
    fields = {f.name: f.default for f in dataclasses.fields(cls)}
    low = {k: 0 for k in fields if k in BLOCKS}
    return Plan((cls.from_settings({"keep": keep, **low}),), seed=5)


def refused(name: str, family: str, kind: str) -> bool:
    """The closed list of refusals: what a method reads and this family or request cannot give."""
    if name in NEEDS_USER_TOWER:
        return True
    if name in VIDEO_ONLY and kind == "picture":
        return True
    needs = {n for n in plan_of(name).stage("tokens").needs if n.what not in ("question", "clip")}
    if not needs:
        return False
    if kind == "video":
        return family == "llava_onevision"  # frames are pooled: no encoder token is a projected one
    support = FACTS.setdefault(family, facts(family))
    given = support | ({"saliency"} if "received" in support else set())
    return not {n.what for n in needs} <= given


FACTS: dict[str, set[str]] = {}


def facts(family: str) -> set[str]:
    from tests.engine.make_matrix import facts_of

    return set(facts_of(family))


def requests(family: str, model: Any) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    parts = tiny.split_images(family, tiny.image_inputs(family))
    parts = [parts[i % len(parts)] for i in range(2)]
    rows = [
        tiny.prompt(family, model, mm, lead=6 - 3 * i, tail=7, seed=i) for i, mm in enumerate(parts)
    ]
    return rows, parts


def anchors(short: Compressed) -> list[list[list[int]]]:
    return [[r.anchor.tolist() for r in row.reductions] for row in short.rows]


@torch.no_grad()
def batch_equals_single(name: str, family: str) -> None:
    model = tiny.cached_model(family)
    adapter = adapter_for(model)
    plan = plan_of(name)
    rows, parts = requests(family, model)
    alone = [compress(adapter, plan, {**r, **mm}) for r, mm in zip(rows, parts, strict=True)]
    singles = [real_rows(s, logits(model, s), 1)[0] for s in alone]
    for side in ("left", "right"):
        batch = {**tiny.pad_batch(rows, side), **tiny.join_images(family, parts)}
        both = compress(adapter, plan, batch)
        assert anchors(both) == [anchors(s)[0] for s in alone]
        for got, want in zip(real_rows(both, logits(model, both), 2), singles, strict=True):
            assert relative(got, want) <= EXACT
    exact = plan.stage("tokens").counts != "adaptive"
    for short in alone:
        for row in short.rows:
            assert 0 < row.visual_kept <= row.visual_in
            assert row.visual_kept < row.visual_in or not exact
            assert len(row.index) == row.text_tokens + row.visual_kept + sum(
                s.fixed_kept for s in row.reports
            )
            for reduction in row.reductions:
                assert (np.diff(reduction.anchor) >= 0).all()


def run(name: str, family: str) -> None:
    model = tiny.cached_model(family)
    if refused(name, family, "picture"):
        rows, parts = requests(family, model)
        with pytest.raises(UnsupportedError):
            compress(adapter_for(model), plan_of(name), {**rows[0], **parts[0]})
        return
    batch_equals_single(name, family)


@pytest.mark.claim("F3")
@pytest.mark.parametrize("family", tiny.REPRESENTATIVE)
@pytest.mark.parametrize("name", METHODS)
def test_a_ragged_batch_equals_its_single_runs(name: str, family: str) -> None:
    run(name, family)


@pytest.mark.claim("F3")
@pytest.mark.parametrize("family", ["llava_onevision", "qwen2_5_vl", "qwen3_vl"])
@pytest.mark.parametrize("name", METHODS)
@torch.no_grad()
def test_videos(name: str, family: str) -> None:
    model = tiny.cached_model(family)
    adapter = adapter_for(model)
    clip = tiny.video_inputs(family)
    assert clip is not None
    call = {**tiny.video_prompt(family, model, clip), **clip}
    if refused(name, family, "video"):
        with pytest.raises(UnsupportedError):
            compress(adapter, plan_of(name), call)
        return
    short = compress(adapter, plan_of(name, "1/2"), call)
    again = compress(adapter, plan_of(name, "1/2"), call)
    assert anchors(short) == anchors(again)
    row = short.rows[0]
    assert 0 < row.visual_kept <= row.visual_in and row.segments[0].kind == "video"
    assert torch.isfinite(logits(model, short)).all()


@pytest.mark.parametrize("family", tiny.REPRESENTATIVE)
@pytest.mark.parametrize("name", METHODS)
def test_a_budget_over_every_token_keeps_them_all(name: str, family: str) -> None:
    if refused(name, family, "picture"):
        return
    model = tiny.cached_model(family)
    rows, parts = requests(family, model)
    short = compress(adapter_for(model), plan_of(name, "1"), {**rows[0], **parts[0]})
    if plan_of(name).stage("tokens").counts != "adaptive":
        assert short.identity


@pytest.mark.full
@pytest.mark.parametrize("family", tiny.FAMILIES)
@pytest.mark.parametrize("name", METHODS)
def test_full_product(name: str, family: str) -> None:
    run(name, family)
