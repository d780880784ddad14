"""Cache policies against vectors from the authors' code: the same entries stay."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from foveate.memory.adakv import AdaKV
from foveate.memory.pyramidkv import PyramidKV
from foveate.memory.snapkv import SnapKV
from tests.golden.golden_cases import cases
from tests.memory.views import PlainView


def _kept(
    policy: Any, view: PlainView, layer: int = 0, layers: int = 4, mean: int = 0
) -> list[Any]:
    heads, n = len(view.keys), view.n
    part = policy.layer_entries(layer, layers, n, min(n, mean))
    stats = policy.observe(layer, view)
    counts = policy.allocate([stats], [[n] * heads], part * heads)[0]
    if list(counts) == [n] * heads:
        return [np.arange(n)] * heads
    return [r.anchor for r in policy.select(layer, view, counts, stats)]


@pytest.mark.parametrize("case", cases("snapkv"), ids=str)
def test_snapkv(case: Any) -> None:
    s, x, y = case.settings, case.inputs, case.outputs
    policy = SnapKV(entries=s["cap"], window=s["window"], kernel=s["kernel"], pooling=s["pooling"])
    view = PlainView(x["query"][0], x["key"][0], x["value"][0])
    got = _kept(policy, view, mean=s["cap"])
    for h, want in enumerate(y["index"]):
        assert got[h].tolist() == sorted(want.tolist())


@pytest.mark.parametrize("case", cases("pyramidkv"), ids=str)
def test_pyramidkv(case: Any) -> None:
    s, x, y = case.settings, case.inputs, case.outputs
    names = ("window", "kernel", "pooling", "beta")
    policy = PyramidKV(entries=s["cap"], **{k: s[k] for k in names})
    view = PlainView(x["query"][0], x["key"][0], x["value"][0])
    got = _kept(policy, view, s["layer"], s["layers"], s["cap"])
    for h, want in enumerate(y["index"]):
        assert got[h].tolist() == sorted(want.tolist())


@pytest.mark.parametrize("case", cases("adakv"), ids=str)
def test_adakv(case: Any) -> None:
    s, x, y = case.settings, case.inputs, case.outputs
    names = ("window", "kernel", "pooling", "alpha", "normalize")
    policy = AdaKV(entries=s["base"], group=s.get("gqa", "mean"), **{k: s[k] for k in names})
    each = x["query"].shape[1] // x["key"].shape[1]
    keys, values = x["key"][0], x["value"][0]
    if "gqa" not in s and each > 1:
        keys, values = keys.repeat(each, 0), values.repeat(each, 0)
    got = _kept(policy, PlainView(x["query"][0], keys, values), mean=s["base"] + _extra(s))
    start = 0
    for h, length in enumerate(y["lens"].tolist()):
        want = sorted(y["index"][start : start + length].tolist())
        assert got[h].tolist() == want
        start += length


def _extra(settings: Any) -> int:
    """`base` may or may not hold the window; see the vectors' own notes."""
    return 0
