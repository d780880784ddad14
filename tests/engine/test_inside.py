"""FastV in a ragged batch of three, prefill and 16 decode steps, against the masked reference."""

from __future__ import annotations

import pytest
import torch

from foveate.core import Plan
from foveate.models.adapter import adapter_for
from tests.engine.inside import STEPS, generated, reference_logits
from tests.engine.reference import relative
from tests.support import tiny


@pytest.mark.parametrize("name", tiny.REPRESENTATIVE)
@pytest.mark.parametrize("side", ["left"])
@torch.no_grad()
def test_fastv_in_a_ragged_batch_of_three_equals_the_masked_reference(name: str, side: str) -> None:
    model = tiny.make_model(name)
    adapter = adapter_for(model)
    rows, medias = [], []
    singles = tiny.split_images(name, tiny.image_inputs(name))
    for i in range(3):
        mm = singles[i % len(singles)]
        rows.append(tiny.prompt(name, model, mm, lead=5 - i, tail=4 + 2 * i, seed=1 + i))
        medias.append(mm)
    plan = Plan.parse("fastv:layer=2,keep=1/2;positions=retain")
    call = {**tiny.pad_batch(rows, side), **tiny.join_images(name, medias)}
    out, short, run = generated(model, adapter, plan, call)
    got = torch.stack(out.logits, 1)
    prompt = short.kwargs["input_ids"].shape[1]
    for i, (row, mm) in enumerate(zip(rows, medias, strict=True)):
        present = run.attached_record.present[i]
        real = short.kwargs["attention_mask"][i].bool()
        positions = short.kwargs["position_ids"]
        positions = (positions[:, i] if positions.ndim == 3 else positions[i][None])[:, real]
        sequence = torch.cat([row["input_ids"][0], out.sequences[i, prompt:]])
        n_visual = int((row["input_ids"] == adapter.token_id("image")).sum())
        assert len(present[0]) - len(present[2]) == n_visual - (n_visual + 1) // 2
        want = reference_logits(model, adapter, row, mm, sequence, present, positions)
        assert want.shape[0] == STEPS
        assert relative(got[i], want) <= 2e-5, name
        wrong = reference_logits(model, adapter, row, mm, sequence, present, positions, shift=1)
        assert relative(got[i], wrong) >= 1e-3, "a shifted position must show"
