"""Dropped patches on a GPU: the same choice and the same answer as on the CPU.

Run on a machine with a CUDA device: `python -m pytest tests/gpu`.
"""

from __future__ import annotations

import pytest
import torch

from foveate.core import Plan
from tests.engine import patches as P
from tests.engine.reference import relative

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


@pytest.mark.parametrize("name", P.PACKED)
@torch.no_grad()
def test_a_gpu_drops_what_a_cpu_drops(name: str) -> None:
    c = P.case(name)
    plan = Plan((P.Scattered(),))
    short = c.short(plan)
    want = c.model(**short.kwargs, use_cache=False).logits
    c.model.to("cuda")
    c.row = {k: v.to("cuda") for k, v in c.row.items()}
    c.mm = {k: v.to("cuda") for k, v in c.mm.items()}
    there = c.short(plan)
    got = c.model(**there.kwargs, use_cache=False).logits.cpu()
    assert there.rows[0].index.tolist() == short.rows[0].index.tolist()
    assert relative(got, want) <= 1e-3
