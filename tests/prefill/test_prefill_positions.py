"""`LayerView.position_rows`: what attention would be if all queries and keys were ones, against the
families' own rotary functions, in a padded batch, before and after tokens left.
"""

from __future__ import annotations

import math
import sys
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from foveate.core import Plan
from foveate.core.errors import UnsupportedError
from foveate.core.language import PrefillMethod, Route
from foveate.core.views import Reduction
from foveate.engine.compress import compress
from foveate.engine.language_door import begin
from foveate.engine.language_run import LanguageRun
from foveate.models import compat, compat_language
from foveate.models.adapter import adapter_for
from tests.engine.reference import relative
from tests.support import tiny

FAMILIES = {
    "llava": "halves are pairs",
    "cohere2_vision": "neighbours are pairs, and some layers have no rotary positions",
    "qwen2_5_vl": "M-RoPE",
    "glm4v": "M-RoPE, neighbours",
    "qwen3_5": "M-RoPE, a part of the dimensions, recurrent layers between",
    "gemma3": "norms before, two bases, sliding windows",
    "gemma4_kvshare": "a layer that keeps keys for later ones",
    "gemma3n": "several planes of hidden states",
    "llama4": "complex numbers, and a norm behind",
}
SEEN: list[tuple[int, int, np.ndarray, Tensor, Tensor]] = []


@dataclass(frozen=True)
class Looks(PrefillMethod):
    """Notes the rows before each layer behind an attention layer; at the second every other visual
    token leaves.
    """

    name: ClassVar[str] = "test-positions"
    summary: ClassVar[str] = "test: looks at positions"
    reads: ClassVar[frozenset[Any]] = frozenset({"previous"})
    at: ClassVar[tuple[int, ...]] = ()
    drops: ClassVar[bool] = True

    def layers(self, count: int) -> tuple[int, ...]:
        return type(self).at

    def decide(self, layer: int, view: Any, state: Any) -> tuple[Route, Any]:
        every = np.arange(len(view.modality))
        found, attended = view.position_rows(every), view.rows(every)
        SEEN.append((layer - 1, view._row, np.asarray(view.origin), found, attended))
        if not self.drops or layer != type(self).at[min(1, len(self.at) - 1)]:
            return Route(), None
        n = view.visual.size
        return Route(keep=Reduction.pick(np.arange(0, n, 2), n, "hidden")), None


def batch(name: str, model: Any) -> dict[str, Any]:
    singles = tiny.split_images(name, tiny.image_inputs(name))
    medias = [singles[0], singles[-1]]
    rows = [tiny.prompt(name, model, m, lead=5 - i, tail=4 + 3 * i) for i, m in enumerate(medias)]
    return {**tiny.pad_batch(rows, "left"), **tiny.join_images(name, medias)}


def places(adapter: Any) -> tuple[int, ...]:
    """Layers behind an attention layer whose keys are their own."""
    text = adapter.text_config
    count = text.num_hidden_layers
    kinds = compat_language.layer_kinds(text, count)
    own = [i == s for i, s in enumerate(compat_language.kv_sources(text, count))]
    return tuple(
        i
        for i in range(1, count)
        if kinds[i - 1] in compat_language.CACHED_KINDS and own[i - 1] and own[i]
    )


def looked(adapter: Any, call: dict[str, Any]) -> Tensor:
    """Runs a prefill that is looked at; its logits."""
    plan = Plan((Looks(),), positions="retain")
    short = compress(adapter, plan, call)
    run = LanguageRun(adapter, plan)
    SEEN.clear()
    with run.attached():
        kwargs = {**short.kwargs, **begin(run, short)}
        if "mm_encoder_outputs" in kwargs:
            kwargs["mm_encoder_outputs"] = short.expand(None, 1)
        logits: Tensor = adapter.model(**kwargs).logits
    return logits


def embeddings(model: Any, call: dict[str, Any]) -> dict[int, Any]:
    """What each attention layer of a plain forward is given as positions."""
    found: dict[int, Any] = {}
    handles = []
    for i, layer in enumerate(compat.decoder_of(model).layers):
        attention = compat_language.attention_of(layer)
        if attention is not None:

            def note(_: Any, __: Any, kwargs: dict[str, Any], i: int = i) -> None:
                found[i] = kwargs["position_embeddings"]

            handles.append(attention.register_forward_pre_hook(note, with_kwargs=True))
    try:
        model(**call, use_cache=False)
    finally:
        for handle in handles:
            handle.remove()
    return found


def rotated(attention: Any, positions: Any, batch: int) -> Tensor:
    """Ones (B, S, a) after the family's own rotary function; untouched where the layer has none."""
    complex_numbers = torch.is_tensor(positions)
    tokens = positions.shape[1] if complex_numbers else positions[0].shape[1]
    ones = torch.ones(batch, 1, tokens, attention.head_dim)
    has_none = (
        not getattr(attention, "use_rope", True)
        or type(attention).__name__ == "Cohere2Attention"
        and attention.sliding_window is None
    )
    if has_none:
        return ones[:, 0]
    module: Any = sys.modules[type(attention).__module__]
    if complex_numbers:
        return module.apply_rotary_emb(ones.transpose(1, 2), ones.transpose(1, 2), positions)[0][
            :, :, 0
        ]
    out = (
        module.apply_rotary_pos_emb(ones, *positions)
        if module.__name__.endswith(("gemma4", "gemma3n"))
        else module.apply_rotary_pos_emb(ones, ones, *positions)[0]
    )
    return out[:, 0]


@pytest.mark.parametrize("name", FAMILIES)
@torch.no_grad()
def test_rows_of_ones_are_what_the_familys_own_rotation_gives(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny.make_model(name)
    for key, weight in model.named_parameters():
        if "self_attn" in key and "norm" in key:  # as if trained: their weights must not show
            weight.add_(torch.linspace(-0.5, 2.0, weight.numel()))
    adapter, call = adapter_for(model), batch(name, model)
    monkeypatch.setattr(Looks, "at", places(adapter))
    given = embeddings(model, call)
    looked(adapter, call)
    assert {layer for layer, *_ in SEEN} == {i - 1 for i in Looks.at}
    differs = 0.0
    for layer, row, origin, found, attended in SEEN:
        attention: Any = compat_language.attention_of(compat.decoder_of(model).layers[layer])
        columns = call["attention_mask"][row].nonzero()[:, 0][origin]
        ones = rotated(attention, given[layer], 2)[row][columns].double()
        logits = ones @ ones.T * attention.scaling
        # What a query may see, windows included, is what it does see.
        want = torch.softmax(logits.masked_fill(attended.sum(0) == 0, -torch.inf), -1)
        assert found.shape == (origin.size, origin.size) and found.dtype == torch.float32
        assert relative(found.double(), want) <= 1e-5, (layer, row)
        uniform = (want > 0).double() / (want > 0).sum(-1, keepdim=True)
        differs = max(differs, float((want - uniform).abs().max()))
        if torch.is_tensor(given[layer]) or bool((ones == 1).all()):
            continue
        cos, sin = (x[min(row, x.shape[0] - 1)][columns].double() for x in given[layer])
        plain = cos @ cos.T + sin @ sin.T + (attention.head_dim - cos.shape[1])
        assert relative(plain, ones @ ones.T) <= 1e-5, "whatever the pairs are, their sum is this"
    assert differs > 1e-2, "positions must matter somewhere"
    sizes = {(layer, row): origin.size for layer, row, origin, *_ in SEEN}
    assert len(Looks.at) < 3 or sizes[Looks.at[-1] - 1, 0] < sizes[Looks.at[0] - 1, 0]


@pytest.mark.parametrize("name", ["gemma4_kvshare", "qwen3_5", "qwen2_5_vl"])
@torch.no_grad()
def test_looking_changes_nothing(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny.make_model(name)
    adapter, call = adapter_for(model), batch(name, model)
    monkeypatch.setattr(Looks, "at", places(adapter))
    monkeypatch.setattr(Looks, "drops", False)
    before = {n: vars(m).keys() for n, m in model.named_modules()}
    want = model(**call, use_cache=False).logits[:, -1]
    assert relative(looked(adapter, call)[:, -1], want) <= 1e-6
    assert before == {n: vars(m).keys() for n, m in model.named_modules()}


class Buffered(nn.Module):
    """A projection that nobody could tell from a norm or a cache: no parameters, no width."""

    def __init__(self, linear: Any) -> None:
        super().__init__()
        self.register_buffer("matrix", linear.weight.detach().clone())

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.matrix.T


@torch.no_grad()
def test_a_layer_that_does_not_show_it_is_refused() -> None:
    model = tiny.make_model("llava")
    adapter, call = adapter_for(model), batch("llava", model)
    for layer in compat.decoder_of(model).layers:
        layer.self_attn.q_proj = Buffered(layer.self_attn.q_proj)

    def run(text: str) -> Tensor:
        plan = Plan.parse(text)
        short = compress(adapter, plan, call)
        with LanguageRun(adapter, plan).attached() as run:
            out: Tensor = model(**short.kwargs, **begin(run, short)).logits
        return out

    with pytest.raises(UnsupportedError, match="heads differ .* set debias=false"):
        run("sparsevlm:at=2,ratios=1/2")
    assert math.isfinite(float(run("sparsevlm:at=2,ratios=1/2,debias=false").sum()))
