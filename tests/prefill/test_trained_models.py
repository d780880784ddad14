"""DyVTE and ATP-LLaVA in a ragged batch of three against the masked reference, with random weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

import foveate
from foveate.core import Plan
from foveate.core.errors import CheckpointError
from foveate.models.adapter import adapter_for
from tests.engine.inside import generated
from tests.prefill.test_prefill_models import batch, check
from tests.prefill.trained import save_atp, save_routers
from tests.support import tiny

FAMILIES = ("llava", "qwen2_5_vl")


def exits(name: str, plan: str) -> list[list[int]]:
    """Visual tokens by layer of each row."""
    model = tiny.make_model(name)
    rows, medias = batch(name, model)
    call = {**tiny.pad_batch(rows, "left"), **tiny.join_images(name, medias)}
    _, _, run = generated(model, adapter_for(model), Plan.parse(plan), call, steps=2)
    return run.counts


def hidden(name: str) -> tuple[int, int]:
    config: Any = tiny.cached_model(name).config.get_text_config()
    return int(config.hidden_size), int(config.num_hidden_layers)


@pytest.mark.parametrize("name", FAMILIES)
@torch.no_grad()
def test_each_row_leaves_at_its_own_layer(name: str, tmp_path: Path) -> None:
    width, count = hidden(name)
    for seed in range(20):
        path = save_routers(tmp_path / f"{seed}.safetensors", width, range(count - 1), seed=seed)
        plan = f"dyvte:weights={path}"
        found = exits(name, plan)
        left = [c.index(0) if 0 in c else count for c in found]
        if len(set(left)) > 1 and min(left) < max(left) < count + 1 and left[0] > 1:
            break
    else:
        pytest.fail("no seed parts the rows")
    for row, at in zip(found, left, strict=True):
        assert set(row[:at]) == {row[0]} and not any(row[at:]), "all leave together, once"
    check(name, plan)


@pytest.mark.parametrize("name", FAMILIES)
@torch.no_grad()
def test_thresholds_part_the_tokens(name: str, tmp_path: Path) -> None:
    plan = f"atp-llava:weights={save_atp(tmp_path / 'a.safetensors', 2)},at=2 4"
    found = exits(name, plan)
    assert all(row[0] == row[1] > row[2] >= row[4] >= 1 for row in found)
    check(name, plan)


def test_both_doors_and_a_saved_plan(tmp_path: Path) -> None:
    model = tiny.make_model("llava")
    mm = tiny.split_images("llava", tiny.image_inputs("llava"))[0]
    row = tiny.prompt("llava", model, mm)
    path = save_routers(tmp_path / "r.safetensors", hidden("llava")[0], (1, 3), leaves=(1,))
    plan = Plan.from_json(json.dumps({"methods": [{"method": "dyvte", "weights": path}]}))
    outs = []
    for text in (plan, f"dyvte:weights={path}"):
        with foveate.attach(model, text):
            outs.append(model.generate(**row, **mm, max_new_tokens=6, do_sample=False))
    assert outs[0].equal(outs[1])


def test_weights_of_another_model_are_refused_before_any_compute(tmp_path: Path) -> None:
    model = tiny.make_model("llava")
    ran = []
    model.register_forward_pre_hook(lambda *_: ran.append(1))
    path = save_routers(tmp_path / "r.safetensors", 24, (1,))
    with pytest.raises(CheckpointError, match="has the shape"):
        with foveate.attach(model, f"dyvte:weights={path}"):
            pass
    assert not ran
