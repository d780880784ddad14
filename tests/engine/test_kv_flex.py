"""Flex attention over ragged entries against its SDPA twin and the plain loop."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from transformers.integrations.sdpa_attention import sdpa_attention_forward

import foveate
from foveate.core import Reduction
from foveate.core.errors import SettingError
from foveate.core.language import Pages
from foveate.engine import kv_flex
from foveate.engine.continuous import serving
from foveate.engine.kv import LayerStore
from foveate.engine.kv_attention import attend, attend_reference
from foveate.engine.kv_flex import attention_path
from foveate.engine.kv_pages import offload
from foveate.lab import demo_pictures, nano_path

HEADS, DIM = 3, 8


class Module:
    num_key_value_groups = 2
    training = False


def store(kind: str) -> LayerStore:
    """20 entries a head: as they came, uneven, or other ones in each head."""
    g = torch.Generator().manual_seed(0)
    out = LayerStore()
    k, v = (torch.randn(HEADS, 20, DIM, generator=g) for _ in "kv")
    out.append(k, v, torch.arange(20))
    if kind == "uneven":
        out.reduce([Reduction.pick(np.arange(20)[h :: h + 1], 20, "cache") for h in range(HEADS)])
    elif kind == "others":
        out.reduce([Reduction.pick(np.arange(h, h + 17), 20, "cache") for h in range(HEADS)])
    elif kind == "paged":
        out.groups = offload(
            out, dict.fromkeys(range(HEADS), Pages(4, 4)), lambda q, p: [[0, 2, 1, 3]] * 3
        )
    return out


@pytest.mark.parametrize("kind", ["whole", "uneven", "others", "paged"])
@pytest.mark.parametrize("queries", [1, 3, 130])
@pytest.mark.parametrize("window", [None, ("sliding", 7), ("chunked", 6)])
@torch.no_grad()
def test_flex_equals_sdpa_and_the_plain_loop(kind: str, queries: int, window: Any) -> None:
    held = store(kind)
    g = torch.Generator().manual_seed(1)
    new = torch.randn(HEADS, queries, DIM, generator=g)
    q = torch.randn(1, 2 * HEADS, queries, DIM, generator=g)
    origin = torch.arange(20, 20 + queries)
    held.append(new, new, origin)
    visible: Any = None
    if window is not None:
        how, size = window
        visible = (
            (lambda a, b: a - b < size)
            if how == "sliding"
            else (lambda a, b: a // size == b // size)
        )
    found = {}
    for path in ("flex", "sdpa"):
        with attention_path(path):  # type: ignore[arg-type]
            found[path] = attend(
                sdpa_attention_forward, Module(), q, held, origin, visible, {"scaling": 0.3}
            )
    assert found["flex"].shape == found["sdpa"].shape == (1, queries, 2 * HEADS, DIM)
    assert torch.allclose(found["flex"], found["sdpa"], atol=2e-6)
    if queries <= 3:
        want = attend_reference(q, held, origin, visible, 0.3)
        assert torch.allclose(found["flex"], want, atol=1e-5)


def test_the_choice() -> None:
    """A CPU keeps SDPA by itself; a model's own attention function is never replaced."""
    q = torch.randn(1, 4, 3, 64)
    assert not kv_flex.chosen(sdpa_attention_forward, q, q)
    with attention_path("flex"):
        assert kv_flex.chosen(sdpa_attention_forward, q, q)
        assert not kv_flex.chosen(lambda *_: None, q, q)
        with attention_path("sdpa"):
            assert not kv_flex.chosen(sdpa_attention_forward, q, q)
        assert kv_flex.chosen(sdpa_attention_forward, q, q)
    assert not kv_flex.chosen(sdpa_attention_forward, q, q)
    with pytest.raises(SettingError, match="auto, sdpa, flex"), attention_path("flash"):  # type: ignore[arg-type]
        pass


def test_a_device_is_tried_once(monkeypatch: pytest.MonkeyPatch, caplog: Any) -> None:
    where = (torch.device("cpu"), torch.float32, 16, 16)
    kv_flex.agrees.cache_clear()
    assert kv_flex.agrees(*where)

    def broken(*_: Any) -> Any:
        raise RuntimeError("no compiler here")

    for fake, words in (
        (broken, "no compiler here"),
        (lambda q, *_: 0 * q.transpose(1, 2), "is off by"),
    ):
        kv_flex.agrees.cache_clear()
        caplog.clear()
        with monkeypatch.context() as patch, caplog.at_level("WARNING", "foveate"):
            patch.setattr(kv_flex, "attend_flex", fake)
            assert not kv_flex.agrees(*where) and not kv_flex.agrees(*where)
        assert caplog.text.count("SDPA is used") == 1 and words in caplog.text
    kv_flex.agrees.cache_clear()


def test_chunks_of_prompts_give_the_same_tokens() -> None:
    """Continuous batching cuts prompts into chunks: several queries over a cache, with a mask."""
    engine = foveate.Engine.from_pretrained(nano_path())

    def served(path: Any) -> Any:
        with (
            attention_path(path),
            serving(engine, "divprune:keep=1/2", token_budget_tokens=40) as run,
        ):
            for i, d in enumerate(demo_pictures()[:2]):
                run.submit(foveate.Request(images=[d.image], question=d.question, id=str(i)))
            return {i: a.token_ids for i, a in run.run_all().items()}

    calls = []
    attend_flex = kv_flex.attend_flex
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kv_flex, "attend_flex", lambda *a: calls.append(a) or attend_flex(*a))
        assert served("flex") == served("sdpa")
    assert calls
