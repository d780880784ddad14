"""DyVTE and ATP-LLaVA: against plain loops over the formulas, and weights that do not fit."""

from __future__ import annotations

import math
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from foveate.core import Plan
from foveate.core.errors import CheckpointError, NonFiniteError, SettingError
from foveate.core.language import LanguageFacts
from foveate.prefill.atp_llava import ATPLLaVA, pooled, sampled
from foveate.prefill.dyvte import DyVTE
from tests.prefill.trained import save_atp, save_routers
from tests.prefill.views import ToyView, softmax, toy_view


def gelu(x: float) -> float:
    return x * 0.5 * (1.0 + math.erf(x / math.sqrt(2.0)))


# --- DyVTE ------------------------------------------------------------------------------------------
def leaves_by_hand(path: str, layer: int, view: ToyView) -> bool:
    weights = {k: v.double().numpy() for k, v in load_file(path).items()}
    last_visual = int(view.visual[-1])
    rows = [view.hidden[i].astype(float) for i in range(last_visual + 1, len(view.modality))]
    mean = sum(rows[:-1]) / len(rows[:-1])
    u = [*mean, *rows[-1]]
    first = weights[f"routers.{layer - 1}.0.weight"]
    inner = [gelu(sum(w * x for w, x in zip(row, u, strict=True))) for row in first]
    second = weights[f"routers.{layer - 1}.2.weight"]
    keep, leave = (sum(w * x for w, x in zip(row, inner, strict=True)) for row in second)
    return bool(leave > keep)


def test_a_router_decides_as_its_formula_says(tmp_path: Path) -> None:
    found = set()
    for seed in range(12):
        path = save_routers(tmp_path / f"{seed}.safetensors", 16, (0, 1, 2), seed=seed)
        method = DyVTE(weights=path)
        assert method.layers(6) == (1, 2, 3)
        for layer in (1, 2, 3):
            view = toy_view(9, seed=seed + layer)
            route, _ = method.decide(layer, view, None)
            want = leaves_by_hand(path, layer, view)
            assert (route.keep is not None) == want
            if route.keep is not None:
                assert route.keep.k == 0 and route.keep.n == 9
            on_torch, _ = method.decide(
                layer, toy_view(9, seed=seed + layer, library="torch"), None
            )
            assert (on_torch.keep is None) == (route.keep is None)
            found.add(want)
    assert found == {True, False}, "both answers must occur, or the test shows nothing"


@pytest.mark.parametrize(("lead", "tail"), [(3, 1), (4, 0)])
def test_with_little_text_behind_the_pictures(tmp_path: Path, lead: int, tail: int) -> None:
    path = save_routers(tmp_path / "r.safetensors", 16, (0,), leaves=(0,))
    route, _ = DyVTE(weights=path).decide(1, toy_view(5, lead=lead, tail=tail), None)
    assert route.keep is not None and route.keep.k == 0
    bare, _ = DyVTE(weights=path).decide(1, toy_view(5, lead=0, tail=0), None)
    assert bare.keep is None, "without text nobody can say that it has read the pictures"


def test_a_tie_stays(tmp_path: Path) -> None:
    path = save_routers(tmp_path / "r.safetensors", 16, (0,), leaves=())
    assert DyVTE(weights=path).decide(1, toy_view(5), None)[0].keep is None


def test_the_module_computes_what_decide_does(tmp_path: Path) -> None:
    path = save_routers(tmp_path / "r.safetensors", 16, (1, 2), seed=3)
    stack = DyVTE(weights=path).modules(LanguageFacts(6, 16))
    assert stack is not None and sorted(stack["routers"]) == ["1", "2"]
    view = toy_view(7, tail=6, seed=4)
    text = torch.from_numpy(view.hidden[-6:])
    u = torch.cat([text[:-1].mean(0), text[-1]])
    keep, leave = stack["routers"]["1"](u).tolist()
    route, _ = DyVTE(weights=path).decide(2, view, None)
    assert (route.keep is not None) == (leave > keep)
    assert {p.dtype for p in stack.parameters()} == {torch.float32}


# --- ATP-LLaVA --------------------------------------------------------------------------------------
def matrix(view: ToyView) -> np.ndarray:
    """Attention, mean over heads, in float64."""
    q, k = (np.asarray(x["previous"], np.float64) for x in (view.q, view.k))
    heads, tokens, dim = q.shape
    out = np.zeros((tokens, tokens))
    for h in range(heads):
        raw = q[h] @ k[h // (heads // k.shape[0])].T / math.sqrt(dim)
        raw[np.triu_indices(tokens, 1)] = -np.inf
        out += softmax(raw) / heads
    return out


def atp_by_hand(path: str, step: int, view: ToyView, rate: float, scale: float) -> list[int]:
    weights = {k: v.double().numpy() for k, v in load_file(path).items()}
    attention, visual = matrix(view), view.visual.tolist()
    text = [i for i in range(len(view.modality)) if view.modality[i] == 0 and i > visual[0]]
    own = [sum(attention[j, i] for j in visual) / len(visual) for i in visual]
    cross = [sum(attention[j, i] for j in text) / len(text) for i in visual]
    bins = weights[f"atp.{step}.linear.weight"].shape[1] // 2
    kept = []
    for s in sorted(set(view.segment[visual].tolist())):
        mine = [i for i, v in enumerate(visual) if view.segment[v] == s]
        parts = []
        for scores in (own, cross):
            x = torch.tensor([[scores[i] for i in mine]], dtype=torch.float64)
            parts.append(torch.nn.functional.adaptive_avg_pool1d(x, bins)[0].numpy())
        z = weights[f"atp.{step}.linear.weight"] @ np.concatenate(parts)
        z = z + weights[f"atp.{step}.linear.bias"]
        limits = [
            1
            / (
                1
                + math.exp(
                    -(weights[f"atp.{step}.{h}.weight"][0] @ z + weights[f"atp.{step}.{h}.bias"][0])
                )
            )
            for h in ("redundant", "spatial")
        ]
        _, height, width = view.grids[s]
        for i in mine:
            row, column = divmod(int(view.cell[visual[i]]) % (height * width), width)
            on_grid = view.cell[visual[i]] >= 0 and row % 2 == 0 and column % 2 == 0
            spatial = 1 - scale * rate if on_grid else 0.0
            if (own[i] + cross[i]) / 2 > limits[0] or spatial > limits[1]:
                kept.append(i)
    return kept


def pictures(seed: int, library: str = "numpy") -> ToyView:
    """Two pictures, of 4 x 5 and 2 x 3 tokens."""
    view = toy_view(26, seed=seed, library=library)
    view.segment = np.full(len(view.modality), -1)
    view.segment[view.visual] = [0] * 20 + [1] * 6
    view.cell = np.full(len(view.modality), -1)
    view.cell[view.visual] = [*range(20), *range(6)]
    view.grids = ((1, 4, 5), (1, 2, 3))
    return view


def test_tokens_above_either_threshold_stay(tmp_path: Path) -> None:
    sizes = set()
    for seed in range(8):
        path = save_atp(tmp_path / f"{seed}.safetensors", seed=seed)
        for scale in (3.0, 0.0):
            method = ATPLLaVA(weights=path, at="4 6 8", scale=scale)
            view = pictures(seed)
            route, _ = method.decide(6, view, None)
            want = atp_by_hand(path, 1, view, 0.25, scale)
            assert route.keep is not None
            assert route.keep.anchor.tolist() == want
            other, _ = method.decide(6, pictures(seed, "torch"), None)
            assert other.keep is not None and other.keep.anchor.tolist() == want
            sizes.add(len(want))
    assert len(sizes) > 3, "counts must follow the instance"


def test_at_least_one_token_stays(tmp_path: Path) -> None:
    path = save_atp(tmp_path / "a.safetensors")
    tensors = load_file(path)
    for name in tensors:
        if name.endswith("bias") and "linear" not in name:
            tensors[name][:] = 50.0
    save_file(tensors, path)
    view = pictures(1)
    route, _ = ATPLLaVA(weights=path, at="4 6 8").decide(4, view, None)
    attention = matrix(view)
    visual = view.visual
    text = np.arange(visual[-1] + 1, len(view.modality))
    score = attention[visual][:, visual].mean(0) + attention[text][:, visual].mean(0)
    assert route.keep is not None and route.keep.anchor.tolist() == [int(score.argmax())]


def test_pooling_and_sampling() -> None:
    x = np.random.default_rng(0).random(17)
    for bins in (1, 4, 17, 23):
        want = torch.nn.functional.adaptive_avg_pool1d(torch.from_numpy(x)[None], bins)[0]
        assert np.allclose(pooled(x, bins), want.numpy())
    there = sampled(np.array([0, 1, 2, 3, 4, 5, -1, 6]), width=3, height=2, stride=2)
    assert there.tolist() == [True, False, True, False, False, False, False, True]


def test_the_atp_module_fits_its_file(tmp_path: Path) -> None:
    path = save_atp(tmp_path / "a.safetensors", bins=4, inner=6)
    method = ATPLLaVA(weights=path)
    stack = method.modules(LanguageFacts(32, 16))
    assert stack is not None and len(stack["atp"]) == 3
    own, cross = np.random.default_rng(1).random((2, 9))
    x = torch.from_numpy(np.concatenate([pooled(own, 4), pooled(cross, 4)])).float()
    z = stack["atp"][2]["linear"](x)
    want = [torch.sigmoid(stack["atp"][2][h](z)).item() for h in ("redundant", "spatial")]
    assert np.allclose(method.thresholds(2, own, cross), want, atol=1e-6)


# --- weights that do not fit ------------------------------------------------------------------------
@pytest.mark.parametrize("name", ["dyvte", "atp-llava"])
def test_weights_are_needed_and_must_be_readable(name: str, tmp_path: Path) -> None:
    with pytest.raises(SettingError, match=f"{name} needs weights="):
        Plan.parse(name)

    def layers(path: Path) -> Any:
        method = Plan.parse({"methods": [{"method": name, "weights": str(path)}]}).stage("prefill")
        assert method is not None
        return method.layers(32)

    with pytest.raises(CheckpointError, match="there is no weights file"):
        layers(tmp_path / "gone.safetensors")
    (tmp_path / "w.pt").write_bytes(b"x")
    with pytest.raises(CheckpointError, match="is no safetensors file"):
        layers(tmp_path / "w.pt")
    good = Path((save_routers if name == "dyvte" else _atp)(tmp_path / "g.safetensors", 16, (0,)))
    assert layers(good)
    (tmp_path / "cut.safetensors").write_bytes(good.read_bytes()[:-40])
    with pytest.raises(CheckpointError, match="truncated or damaged"):
        layers(tmp_path / "cut.safetensors")
    save_file({"something.else": torch.zeros(2)}, tmp_path / "other.safetensors")
    with pytest.raises(CheckpointError, match="has no tensor"):
        layers(tmp_path / "other.safetensors")


@pytest.mark.parametrize("name", ["dyvte", "atp-llava"])
def test_weights_that_are_not_finite_are_refused(name: str, tmp_path: Path) -> None:
    """Comparisons with NaN would keep all tokens in silence."""
    path = (save_routers if name == "dyvte" else _atp)(tmp_path / "w.safetensors", 16, (0,))
    tensors = load_file(path)
    broken = sorted(tensors)[-1]
    tensors[broken].view(-1)[0] = float("nan")
    save_file(tensors, path)
    method: Any = DyVTE(weights=path) if name == "dyvte" else ATPLLaVA(weights=path, at="1 2 3")
    with pytest.raises(CheckpointError, match=f"{broken}.* not finite"):
        method.decide(1, toy_view(9), None)


def test_states_that_are_not_finite_are_refused(tmp_path: Path) -> None:
    view = toy_view(9)
    view.hidden[-1, 0] = np.nan
    with pytest.raises(NonFiniteError, match="text states"):
        DyVTE(weights=save_routers(tmp_path / "r.safetensors", 16, (0,))).decide(1, view, None)


def _atp(path: Path, *_: Any) -> str:
    return save_atp(path)


def test_routers_of_another_model(tmp_path: Path) -> None:
    method = DyVTE(weights=save_routers(tmp_path / "r.safetensors", 16, (0, 4)))
    method.check(LanguageFacts(6, 16))
    with pytest.raises(
        CheckpointError, match=r"has the shape \(32, 32\), but this model needs \(32, 48\)"
    ):
        method.check(LanguageFacts(6, 24))
    with pytest.raises(CheckpointError, match="a router after layer 4"):
        method.check(LanguageFacts(5, 16))
    view = toy_view(5, width=20)
    with pytest.raises(CheckpointError, match="has the shape"):
        method.decide(1, view, None)
    tensors = load_file(str(method.weights))
    del tensors["routers.4.2.weight"]
    save_file(tensors, str(method.weights))
    with pytest.raises(CheckpointError, match=r"has no tensor routers\.4\.2\.weight"):
        method.check(LanguageFacts(6, 16))


def test_atp_modules_of_another_number_or_shape(tmp_path: Path) -> None:
    path = save_atp(tmp_path / "a.safetensors", 2)
    with pytest.raises(CheckpointError, match=r"has no tensor atp\.2\.linear\.weight"):
        ATPLLaVA(weights=path).layers(32)
    with pytest.raises(CheckpointError, match="more than the 1 modules"):
        ATPLLaVA(weights=path, at="4").layers(32)
    tensors = load_file(path)
    tensors["atp.1.spatial.weight"] = torch.zeros(1, 3)
    save_file(tensors, path)
    with pytest.raises(CheckpointError, match=r"atp\.1\.spatial\.weight .* has the shape \(1, 3\)"):
        ATPLLaVA(weights=path, at="4 6").layers(32)
    tensors["atp.0.linear.weight"] = torch.zeros(7, 9)
    save_file(tensors, path)
    with pytest.raises(CheckpointError, match="not .z, 2 bins."):
        ATPLLaVA(weights=path, at="4 6").layers(32)
    good = save_atp(tmp_path / "b.safetensors")
    with pytest.raises(SettingError, match="layers are 0 to 15"):
        ATPLLaVA(weights=good, at="4 6 16").layers(16)
    with pytest.raises(SettingError, match="rate = 0 is out of range"):
        ATPLLaVA(weights=good, rate=Fraction(0))
