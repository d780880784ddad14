"""P1: with every token kept, a compressed call gives the untouched model's logits on every family."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from foveate.core import Plan
from foveate.engine.compress import compress
from foveate.models.adapter import adapter_for
from tests.engine.matrix import logits
from tests.engine.reference import relative
from tests.support import tiny

BOUND = 1e-6


@pytest.mark.claim("F1")
@pytest.mark.parametrize("name", tiny.FAMILIES)
@torch.no_grad()
def test_identity(name: str, record_property: Callable[[str, Any], None]) -> None:
    model = tiny.make_model(name)
    adapter = adapter_for(model)
    mm = tiny.image_inputs(name)
    row = tiny.prompt(name, model, mm)
    want = model(**{k: v.clone() for k, v in {**row, **mm}.items()}, use_cache=False).logits
    worst = 0.0
    for plan in ("none", "uniform:keep=1", "divprune:per_request=100000"):
        short = compress(adapter, Plan.parse(plan), {**row, **mm})
        assert short.identity
        worst = max(worst, relative(logits(model, short), want))
    record_property("figure", f"{name}: {worst:.1e}")
    record_property("bound", f"<= {BOUND} x max abs logit")
    assert worst <= BOUND
