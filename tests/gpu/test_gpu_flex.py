"""Flex attention over a plan's cache on a GPU: it is chosen by itself, and agrees with SDPA."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from transformers.integrations.sdpa_attention import sdpa_attention_forward

import foveate
from foveate.core import Reduction
from foveate.core.language import Pages
from foveate.engine import kv_flex
from foveate.engine.continuous import serving
from foveate.engine.kv import LayerStore
from foveate.engine.kv_attention import attend
from foveate.engine.kv_flex import attention_path
from foveate.engine.kv_pages import offload
from foveate.lab import demo_pictures, nano_path

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
HEADS, DIM = 4, 64


class Module:
    num_key_value_groups = 2
    training = False


def filled(dtype: torch.dtype, n: int) -> LayerStore:
    out = LayerStore()
    k, v = (torch.randn(HEADS, n, DIM, device="cuda", dtype=dtype) for _ in "kv")
    out.append(k, v, torch.arange(n, device="cuda"))
    return out


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("window", [None, 50])
@pytest.mark.parametrize("queries", [2, 37, 300])
@torch.no_grad()
def test_chunks_go_through_flex_attention(queries: int, window: int | None, dtype: Any) -> None:
    store = filled(dtype, 200)
    store.reduce([Reduction.pick(np.arange(h, 200, 1 + h % 2), 200, "cache") for h in range(HEADS)])
    new = torch.randn(HEADS, queries, DIM, device="cuda", dtype=dtype)
    origin = torch.arange(200, 200 + queries, device="cuda")
    store.append(new, new, origin)
    q = torch.randn(1, 2 * HEADS, queries, DIM, device="cuda", dtype=dtype)
    visible = None if window is None else (lambda a, b: a - b < window)
    assert kv_flex.chosen(sdpa_attention_forward, q, q)
    found = {}
    for path in ("auto", "sdpa"):
        with attention_path(path):  # type: ignore[arg-type]
            found[path] = attend(
                sdpa_attention_forward, Module(), q, store, origin, visible, {"scaling": DIM**-0.5}
            )
    bound = 1e-3 if dtype == torch.float32 else 3e-2
    assert float((found["auto"] - found["sdpa"]).abs().max()) <= bound


def test_chunks_of_prompts_give_the_same_tokens() -> None:
    engine = foveate.Engine.from_pretrained(nano_path(), device_map="cuda")

    def served(path: Any) -> Any:
        with attention_path(path), serving(engine, token_budget_tokens=64) as run:
            for i, d in enumerate(demo_pictures()[:2]):
                run.submit(foveate.Request(images=[d.image], question=d.question, id=str(i)))
            return {i: a.token_ids for i, a in run.run_all().items()}

    assert served("auto") == served("sdpa")


@torch.no_grad()
def test_pages_lie_in_page_locked_host_memory() -> None:
    store = filled(torch.bfloat16, 100)
    before = store.head(1)[0].clone()
    store.groups = offload(
        store, dict.fromkeys(range(HEADS), Pages(16, 2)), lambda q, p: [[5, 0]] * HEADS
    )
    (group,) = store.groups
    assert group.host.keys.is_pinned() and group.host.keys.device.type == "cpu"  # type: ignore[attr-defined]
    assert store.nbytes < 100 * HEADS * DIM * 2 * 2
    group.retrieve(torch.randn(HEADS, 2, DIM, device="cuda"))  # type: ignore[attr-defined]
    torch.cuda.synchronize()
    assert torch.equal(group.k[1, 16:32], before[80:96]) and group.held.tolist() == [[0, 5]] * HEADS  # type: ignore[attr-defined]


def test_hybridkv_answers_as_on_the_cpu() -> None:
    request = [foveate.Request(images=[d.image], question=d.question) for d in demo_pictures()[:2]]
    plan = "hybridkv:keep=1/3,page=4,share=0"
    found = []
    for device in ("cpu", "cuda"):
        engine = foveate.Engine.from_pretrained(nano_path(), device_map=device)
        answers = engine.generate(request, plan)
        found.append([a.text for a in answers])
        for a in answers:
            assert a.report is not None and a.report.kv_offloaded_bytes
            same = any("same memory" in note for note in a.report.notes)
            assert same == (device == "cpu")
    assert found[0] == found[1]
