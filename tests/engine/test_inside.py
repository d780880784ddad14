"""Plans inside the language model, in ragged batches of three, against the masked reference: prefill
and 16 decode steps. Claim I1 for dropping.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch

from foveate.core import Plan
from foveate.engine.compress import compress
from foveate.engine.language_door import begin
from foveate.engine.language_run import LanguageRun
from foveate.models import compat_language
from foveate.models.adapter import AutoAdapter, adapter_for
from tests.engine.inside import STEPS, generated, reference_logits
from tests.engine.reference import relative
from tests.support import tiny

pytestmark = pytest.mark.claim("I1")
EXACT, BITE = 2e-5, 1e-3


def _batch(name: str, model: Any) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    singles = tiny.split_images(name, tiny.image_inputs(name))
    medias = [singles[i % len(singles)] for i in range(3)]
    rows = [
        tiny.prompt(name, model, mm, lead=5 - i, tail=4 + 2 * i, seed=1 + i)
        for i, mm in enumerate(medias)
    ]
    return rows, medias


def _plan(adapter: AutoAdapter) -> Plan:
    """FastV after the first layer, from layer 1 on, that has attention: layer 2 but in hybrids."""
    text = adapter.text_config
    kinds = compat_language.layer_kinds(text, text.num_hidden_layers)
    before = next(i for i, k in enumerate(kinds) if i and k in compat_language.CACHED_KINDS)
    return Plan.parse(f"fastv:layer={before + 1},keep=1/2;positions=retain")


def _check(name: str) -> None:
    model = tiny.make_model(name)
    adapter = adapter_for(model)
    rows, medias = _batch(name, model)
    plan = _plan(adapter)
    call = {**tiny.pad_batch(rows, "left"), **tiny.join_images(name, medias)}
    out, short, run = generated(model, adapter, plan, call)
    got = torch.stack(out.logits, 1)
    prompt = short.kwargs["input_ids"].shape[1]
    for i, (row, mm) in enumerate(zip(rows, medias, strict=True)):
        alone, _, _ = generated(model, adapter, plan, {**row, **mm})
        assert relative(got[i], torch.stack(alone.logits, 1)[0]) <= EXACT, "batch against single"
        if adapter.recurrent:
            continue  # a recurrent state has no mask to compare with
        present = run.record.present[i]
        real = short.kwargs["attention_mask"][i].bool()
        positions = short.kwargs["position_ids"]
        positions = (positions[:, i] if positions.ndim == 3 else positions[i][None])[:, real]
        sequence = torch.cat([row["input_ids"][0], out.sequences[i, prompt:]])
        visual = int((row["input_ids"] == adapter.token_id("image")).sum())
        at = run.at[0]
        assert len(present[0]) - len(present[at]) == visual - (visual + 1) // 2
        want = reference_logits(model, adapter, row, mm, sequence, present, positions)
        assert want.shape[0] == STEPS
        assert relative(got[i], want) <= EXACT
        wrong = reference_logits(model, adapter, row, mm, sequence, present, positions, shift=1)
        assert relative(got[i], wrong) >= BITE, "a shifted position must show"


@pytest.mark.parametrize("name", tiny.REPRESENTATIVE)
@torch.no_grad()
def test_a_ragged_batch_of_three_equals_the_masked_reference(name: str) -> None:
    _check(name)


@pytest.mark.full
@pytest.mark.parametrize("name", [n for n in tiny.FAMILIES if n not in tiny.REPRESENTATIVE])
@torch.no_grad()
def test_every_family(name: str) -> None:
    _check(name)


@pytest.mark.parametrize("name", ["llava", "qwen2_5_vl", "gemma3", "paligemma"])
@torch.no_grad()
def test_right_padded_prompts_give_the_same_last_logits(name: str) -> None:
    model = tiny.make_model(name)
    adapter = adapter_for(model)
    rows, medias = _batch(name, model)
    plan = _plan(adapter)
    found = {}
    for side in ("left", "right"):
        call = {**tiny.pad_batch(rows, side), **tiny.join_images(name, medias)}
        short = compress(adapter, plan, call)
        run = LanguageRun(adapter, plan)
        with run.attached():
            begin(run, short)
            # The shortened rows end where fewer tokens are left than the padded prompt had.
            logits = model(**short.kwargs, use_cache=False).logits
            version = run.prefill.now if run.prefill is not None else None
        assert version is not None
        last = [int(v.nonzero()[-1, 0]) for v in version.valid]
        found[side] = torch.stack([logits[i, at] for i, at in enumerate(last)])
    assert relative(found["right"], found["left"]) <= EXACT
