"""What a prefill method sees of a padded batch, against plain attention over each row alone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import pytest
import torch

from foveate.core import Plan
from foveate.core.errors import NonFiniteError, PlanError, UnsupportedError
from foveate.core.language import PrefillMethod, Route
from foveate.engine.attach import attach
from foveate.engine.compress import compress
from foveate.engine.language_door import begin
from foveate.engine.language_run import LanguageRun
from foveate.models.adapter import adapter_for
from tests.engine.reference import relative
from tests.support import tiny

SEEN: list[dict[str, Any]] = []


@dataclass(frozen=True)
class Looks(PrefillMethod):
    """Keeps everything and notes what it sees before layers 0, 2 and 3."""

    name: ClassVar[str] = "test-looks"
    summary: ClassVar[str] = "test: looks only"
    reads: ClassVar[frozenset[Any]] = frozenset({"previous", "next"})

    def layers(self, count: int) -> tuple[int, ...]:
        return (0, 2, 3)

    def decide(self, layer: int, view: Any, state: Any) -> tuple[Route, Any]:
        found = {"layer": layer, "hidden": view.hidden.clone(), "state": state}
        for source in ("previous", "next") if layer else ("next",):
            q, k = view.queries(source), view.keys(source)
            s = torch.rand(q.shape[0], q.shape[1], generator=torch.Generator().manual_seed(layer))
            last = [len(view.modality) - 1, len(view.modality) // 2]
            found[source] = {
                "q": q,
                "k": k,
                "s": s,
                "rows": view.rows(last, source),
                "last": last,
                "times": view.left_multiply(s, source),
                "cool": view.left_multiply(s, source, 0.1),
            }
        SEEN.append(found)
        return Route(), (state or 0) + 1


def seen(name: str, call: dict[str, Any], model: Any) -> list[dict[str, Any]]:
    adapter, plan = adapter_for(model), Plan((Looks(),), positions="retain")
    short = compress(adapter, plan, call)
    run = LanguageRun(adapter, plan)
    SEEN.clear()
    with run.attached(), torch.no_grad():
        kwargs = {**short.kwargs, **begin(run, short)}
        if "mm_encoder_outputs" in kwargs:
            kwargs["mm_encoder_outputs"] = short.expand(None, 1)
        model(**kwargs)
    return list(SEEN)


def plain(q: torch.Tensor, k: torch.Tensor, temperature: float) -> torch.Tensor:
    """Causal attention (H, S, S) of one row."""
    group, size = q.shape[0] // k.shape[0], q.shape[1]
    logits = q.float() @ k.float().repeat_interleave(group, 0).transpose(1, 2) * q.shape[-1] ** -0.5
    later = torch.ones(size, size, dtype=torch.bool).triu(1)
    return torch.softmax((logits / temperature).masked_fill(later, -torch.inf), -1)


@pytest.mark.parametrize("name", ["llava", "qwen2_5_vl", "llava_onevision"])
def test_views_of_a_padded_batch_hold_each_rows_own_attention(name: str) -> None:
    model = tiny.make_model(name)
    singles = tiny.split_images(name, tiny.image_inputs(name))
    medias = [singles[i % len(singles)] for i in range(2)]
    rows = [tiny.prompt(name, model, m, lead=5 - i, tail=4 + 3 * i) for i, m in enumerate(medias)]
    call = {**tiny.pad_batch(rows, "left"), **tiny.join_images(name, medias)}
    together = seen(name, call, model)
    assert [f["layer"] for f in together] == [0, 0, 2, 2, 3, 3]
    assert [f["state"] for f in together] == [None, None, 1, 1, 2, 2]
    for f in together:
        for source in ("previous", "next"):
            if source not in f:
                continue
            facts = f[source]
            for key, temperature in (("times", 1.0), ("cool", 0.1)):
                want = (facts["s"][:, None] @ plain(facts["q"], facts["k"], temperature))[:, 0]
                assert relative(facts[key], want) <= 1e-5, (source, key)
            want = plain(facts["q"], facts["k"], 1.0)[:, facts["last"]]
            assert relative(facts["rows"], want) <= 1e-5
    # The layer looked at ahead is the one that then runs: what 2 saw ahead, 3 sees behind it.
    for row in range(2):
        ahead, behind = together[2 + row]["next"], together[4 + row]["previous"]
        assert torch.equal(ahead["q"], behind["q"]) and torch.equal(ahead["k"], behind["k"])
    for row in range(2):
        single = {**rows[row], **medias[row]}
        single["attention_mask"] = torch.ones_like(rows[row]["input_ids"])
        for one, three in zip(seen(name, single, model), together[row::2], strict=True):
            assert relative(one["hidden"], three["hidden"]) <= 2e-5


def test_there_is_no_attention_before_layer_0() -> None:
    @dataclass(frozen=True)
    class Early(Looks):
        name: ClassVar[str] = "test-early"

        def decide(self, layer: int, view: Any, state: Any) -> tuple[Route, Any]:
            view.rows([0], "previous")
            return Route(), state

    model = tiny.make_model("llava")
    media = tiny.split_images("llava", tiny.image_inputs("llava"))[0]
    row = tiny.prompt("llava", model, media)
    adapter, plan = adapter_for(model), Plan((Early(),), positions="retain")
    short = compress(adapter, plan, {**row, **media})
    run = LanguageRun(adapter, plan)
    with run.attached(), pytest.raises(UnsupportedError, match="layer before"), torch.no_grad():
        kwargs = {**short.kwargs, **begin(run, short)}
        if "mm_encoder_outputs" in kwargs:
            kwargs["mm_encoder_outputs"] = short.expand(None, 1)
        model(**kwargs)


@pytest.mark.parametrize("plan", ["fastv:layer=2,keep=1/2", "snapkv:keep=1/4,window=4"])
def test_attention_that_is_not_finite_chooses_nothing(plan: str) -> None:
    """Its rows were read as zeros, so that the first tokens stayed in silence."""
    model = tiny.make_model("llava")
    layer = model.model.language_model.layers[1].self_attn
    torch.nn.init.constant_(layer.q_proj.weight, float("nan"))
    media = tiny.split_images("llava", tiny.image_inputs("llava"))[0]
    row = tiny.prompt("llava", model, media)
    with attach(model, plan), pytest.raises(NonFiniteError), torch.no_grad():
        model(**row, **media)


@pytest.mark.parametrize("at", [(3, 2), (2, 2), (2, 6), (-1, 2)])
def test_layers_out_of_order_or_outside_are_a_fault_of_the_method(at: tuple[int, ...]) -> None:
    @dataclass(frozen=True)
    class Wrong(Looks):
        name: ClassVar[str] = "test-wrong"

        def layers(self, count: int) -> tuple[int, ...]:
            return at

    with pytest.raises(PlanError, match="not ascending within the model"):
        LanguageRun(adapter_for(tiny.make_model("llava")), Plan((Wrong(),)))
