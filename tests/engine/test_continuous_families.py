"""Prompts in parts: wherever a prompt is cut, its logits are those of the whole, or its family says that
it may not be cut.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from foveate.core import Plan
from foveate.engine.compress import compress
from foveate.engine.language_door import begin, meta_of
from foveate.engine.language_run import LanguageRun
from foveate.models.adapter import adapter_for
from tests.engine.reference import relative
from tests.support import tiny

SHORT = ("llava", "qwen3_vl", "gemma3", "gemma4", "gemma4_bidir", "gemma4_kvshare", "molmo2")
UNCUT = {"paligemma", "paligemma2", "gemma3", "gemma3_w16", "gemma4_bidir", "molmo2"}
FAMILIES = [
    pytest.param(name, marks=[] if name in SHORT else pytest.mark.full)
    for name in tiny.FAMILIES
    if name not in tiny.RECURRENT
]


def _worst(name: str) -> tuple[float, bool]:
    """The largest difference over cuts around and inside the picture and between all tokens; whether
    the family lets its prompt be cut.
    """
    model = tiny.cached_model(name)
    adapter, plan = adapter_for(model), Plan.parse("uniform:keep=1/2")
    mm = tiny.split_images(name, tiny.image_inputs(name))[0]
    inputs: dict[str, Any] = {**tiny.prompt(name, model, mm, lead=4, tail=6, seed=3), **mm}
    short = compress(adapter, plan, inputs)
    meta, call = meta_of(short)[0], short.kwargs
    visual = np.flatnonzero(meta.modality > 0)
    first, end = int(visual[0]), int(visual[-1]) + 1
    run, worst = LanguageRun(adapter, plan), 0.0
    with run.attached():
        extra = begin(run, short)
        whole = model(**{**call, "mm_encoder_outputs": short.part(0, meta.n)}, **extra).logits[0]
        cuts = [[first], [first + 1], [end - 1], [end], [end + 1], list(range(1, meta.n))]
        for at in cuts:
            cache = run.new_cache()
            cache.rows = [cache.new_row()]
            run.resume(cache, [meta])
            parts = []
            for start, stop in zip([0, *at], [*at, meta.n], strict=True):
                cache.set_seen(start)
                more = {
                    k: v[:, start:stop] for k, v in call.items() if k.endswith("token_type_ids")
                }
                if media := short.part(start, stop):
                    more["mm_encoder_outputs"] = media
                with run.in_parts():
                    out = model(
                        input_ids=call["input_ids"][:, start:stop],
                        position_ids=call["position_ids"][..., start:stop],
                        past_key_values=cache,
                        use_cache=True,
                        **more,
                    )
                parts.append(out.logits[0])
            worst = max(worst, relative(torch.cat(parts), whole))
    return worst, adapter.cuttable(inputs)


@pytest.mark.parametrize("name", FAMILIES)
@torch.no_grad()
def test_parts_give_the_logits_of_the_whole_or_the_family_refuses_cuts(name: str) -> None:
    worst, cuttable = _worst(name)
    if cuttable:
        assert worst <= 2e-5
    assert (name in UNCUT) == (worst > 2e-5)
