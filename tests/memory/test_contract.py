"""What every cache policy promises, on random prompts without a model."""

from __future__ import annotations

import json
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from foveate.core import registry
from foveate.core.errors import CheckpointError, SettingError
from foveate.core.language import CachePolicy, Pages
from foveate.core.views import Reduction
from tests.memory.views import PlainView, prompt_view

POLICIES = {n: c for n, c in registry.methods("memory").items() if issubclass(c, CachePolicy)}
VARIANTS: dict[str, dict[str, Any]] = {
    **{name: {} for name in POLICIES},
    "look-m averaged": {"merge": "averaged"},
    "look-m weighted": {"merge": "weighted"},
    "look-m off": {"merge": "off"},
    "meda full": {"entropy": "full"},
    "adakv normalize": {"normalize": True, "group": "max"},
    "hybridkv": {"page": 4},
    "hybridkv dynamic": {"page": 4, "share": "0"},
    "hybridkv static": {"page": 4, "share": "1"},
    "hybridkv uneven": {"page": 4, "share": "3/5", "ratio": "2"},
}
LAYERS = 4
ROUNDED = {"adakv": 2, "pyramidkv": LAYERS, "hybridkv": 4}
"""Entries a head by which the papers' own rounding may miss the budget: the vectors hold the first two
to it, the third takes whole pages, of 4 entries in these variants.
"""


@pytest.fixture(scope="session")
def scores(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Scores of 4 layers of 4 query heads, uneven."""
    path = tmp_path_factory.mktemp("heads") / "heads.json"
    path.write_text(
        json.dumps({"scores": [[1, 5, 0, 2], [9, 0, 1, 1], [0, 0, 0, 3], [2, 2, 2, 2]]})
    )
    return path


def built(variant: str, scores: Path, **settings: Any) -> CachePolicy:
    name = variant.split()[0]
    if name == "sparsemm":
        settings = {"heads": str(scores), **settings}
    if "window" in {f for f in POLICIES[name].__dataclass_fields__} and name != "vl-cache":
        settings = {"window": 4, **settings}
    out = registry.build(name, **VARIANTS[variant], **settings)
    assert isinstance(out, CachePolicy)
    return out


def decided(policy: CachePolicy, views: list[PlainView], mean: int) -> list[list[Reduction | None]]:
    """Reductions by layer and KV head as the engine asks for them; None: all entries stay."""
    stats = [policy.observe(i, v) for i, v in enumerate(views)]
    room = [[len(k) for k in v.keys] for v in views]
    if policy.scope == "model":
        budget = min(mean * sum(map(len, room)), sum(map(sum, room)))
        counts = policy.allocate(stats, room, budget)
    else:
        parts = [
            policy.layer_entries(i, len(views), v.n, min(v.n, mean)) for i, v in enumerate(views)
        ]
        counts = [
            policy.allocate([s], [r], part * len(r))[0]
            for s, r, part in zip(stats, room, parts, strict=True)
        ]
    out: list[list[Reduction | None]] = []
    for i, (view, k) in enumerate(zip(views, counts, strict=True)):
        assert len(k) == len(view.keys) and all(
            1 <= x <= n for x, n in zip(k, room[i], strict=True)
        )
        if list(k) == room[i]:
            out.append([None] * len(k))
            continue
        found = []
        for r, n in zip(policy.select(i, view, k, stats[i]), room[i], strict=True):
            if isinstance(r, Pages):  # what is resident before a query asked for other pages
                assert policy.pages and r.wanted <= r.count(n)
                front, cut = r.wanted * r.size, r.count(n) * r.size
                r = Reduction.pick(np.r_[:front, cut:n], n, "cache")
            found.append(r)
        for r, x, n in zip(found, k, room[i], strict=True):
            r.check()
            assert r.k == x and r.n == n and r.space == "cache"
            if r.weights is not None:
                assert np.isfinite(r.weights).all()
        out.append(list(found))
    return out


def kept(found: list[list[Reduction | None]], views: list[PlainView]) -> int:
    return sum(v.n if r is None else r.k for v, row in zip(views, found, strict=True) for r in row)


def prompts(**settings: Any) -> list[PlainView]:
    return [prompt_view(10 + i, layers=LAYERS, **settings) for i in range(LAYERS)]


@pytest.mark.parametrize("variant", VARIANTS)
def test_all_entries_are_kept_with_a_budget_of_all(variant: str, scores: Path) -> None:
    views = prompts()
    found = decided(built(variant, scores, keep=1), views, views[0].n)
    assert all(r is None for row in found for r in row)


@pytest.mark.parametrize("mean", [1, 2, 5, 13, 17, 33])
@pytest.mark.parametrize("variant", VARIANTS)
def test_the_budget_is_met_and_the_last_token_stays(variant: str, mean: int, scores: Path) -> None:
    views = prompts()
    policy = built(variant, scores, entries=mean)
    found = decided(policy, views, mean)
    heads = LAYERS * 2
    missed = abs(kept(found, views) - mean * heads)
    assert missed <= ROUNDED.get(policy.name, 0) * heads
    if policy.name not in ROUNDED:
        assert missed == 0
    for row, view in zip(found, views, strict=True):
        assert all(r is None or r.anchor[-1] == view.n - 1 for r in row)


@pytest.mark.parametrize("heads", [(6, 2), (6, 3), (4, 1), (2, 2)])
@pytest.mark.parametrize("variant", VARIANTS)
def test_grouped_heads(variant: str, heads: tuple[int, int], tmp_path: Path) -> None:
    path = tmp_path / "heads.json"
    path.write_text(json.dumps({"scores": [[1.0] * heads[0]] * LAYERS}))
    views = prompts(heads=heads)
    policy = built(variant, path, entries=9)
    found = decided(policy, views, 9)
    if policy.name not in ROUNDED:
        assert kept(found, views) == 9 * LAYERS * heads[1]


@pytest.mark.parametrize(
    "shape",
    [
        {"grids": (), "lead": 1, "tail": 0},
        {"grids": (), "lead": 2, "tail": 0},
        {"grids": (), "lead": 20, "tail": 0},
        {"grids": ((1, 1, 1),), "lead": 0, "tail": 1},
        {"grids": ((1, 3, 3),), "lead": 0, "tail": 0},
        {"grids": ((1, 3, 3), (1, 2, 5)), "lead": 3, "tail": 12},
        {"grids": ((5, 2, 3),), "lead": 3, "tail": 2, "kind": 2},
    ],
    ids=["one token", "two", "no picture", "one cell", "picture alone", "two pictures", "video"],
)
@pytest.mark.parametrize("variant", VARIANTS)
def test_prompts_of_every_shape(variant: str, shape: dict[str, Any], scores: Path) -> None:
    views = prompts(**shape)
    for mean in {1, 2, max(1, views[0].n // 2)}:
        mean = min(mean, views[0].n)
        policy = built(variant, scores, entries=mean)
        found = decided(policy, views, mean)
        if policy.name not in ROUNDED:
            assert kept(found, views) == mean * LAYERS * 2


@pytest.mark.parametrize("variant", VARIANTS)
def test_duplicates_tie_to_the_lowest_index(variant: str, scores: Path) -> None:
    """Every entry before the window is the same: what is chosen among them are the first ones."""
    policy = built(variant, scores, entries=9)
    if policy.evidence == "control":
        pytest.skip("a control looks at nothing")
    view = prompt_view(3, layers=LAYERS, lead=0, grids=((1, 5, 5),), tail=4)
    q, k, v = view.q.clone(), view.k.clone(), torch.stack(view.values)
    for x in (q, k, v):
        x[:, :25] = x[:, :1]
    same = [
        PlainView(q, k, v, view.modality, view.segment, LAYERS, view.cell, view.grids)
        for _ in range(LAYERS)
    ]
    picks = [r.anchor for row in decided(policy, same, 9) for r in row if r is not None]
    assert picks
    for anchor in picks:
        early = anchor[anchor < 25 - 4]  # those before any window
        if (
            getattr(policy, "pooling", "") == "avgpool"
        ):  # its padding counts zeros, so the border scores less
            early = early[early >= 2] - 2
        assert early.tolist() == list(range(len(early)))


@pytest.mark.parametrize("variant", VARIANTS)
def test_scaled_values_of_half_precision_give_no_nan(variant: str, scores: Path) -> None:
    views = prompts()
    for v in views:
        v.q, v.k = v.q * 60, v.k * 60  # attention is one-hot, columns get exactly 0
        v.keys = [k.half() * 0 if h else k.half() for h, k in enumerate(v.k)]  # zero keys too
    found = decided(built(variant, scores, entries=11), views, 11)
    assert all(r is None or np.isfinite(r.anchor).all() for row in found for r in row)


@pytest.mark.parametrize("variant", VARIANTS)
def test_equal_views_give_equal_choices(variant: str, scores: Path) -> None:
    first, second = (decided(built(variant, scores, entries=10), prompts(), 10) for _ in range(2))
    for a, b in zip(first, second, strict=True):
        for x, y in zip(a, b, strict=True):
            assert (x is None) == (y is None)
            assert x is None or y is None or np.array_equal(x.anchor, y.anchor)


@pytest.mark.parametrize("name", POLICIES)
def test_bad_settings_are_refused(name: str, scores: Path) -> None:
    extra = {"heads": str(scores)} if name == "sparsemm" else {}
    for bad in ({}, {"keep": 0}, {"keep": Fraction(3, 2)}, {"entries": 0}, {"bytes": 0},
                {"keep": "1/2", "entries": 4}, {"keep": "1/2", "nonsense": 1}):  # fmt: skip
        with pytest.raises(SettingError, match=name):
            registry.build(name, **{**extra, **bad})


@pytest.mark.parametrize(
    ("name", "settings", "match"),
    [
        ("vl-cache", {"recent": 2}, "recent"),
        ("vl-cache", {"threshold": -1}, "threshold"),
        ("look-m", {"merge": "sum"}, "merge"),
        ("meda", {"entropy": "half"}, "entropy"),
        ("infinipot-v", {"alpha": "3/2"}, "alpha"),
        ("sparsemm", {}, "heads="),
        ("prefixkv", {"sinks": -1}, "sinks"),
        ("snapkv", {"kernel": 4}, "kernel"),
        ("adakv", {"kernel": 2}, "kernel"),
        ("random-kv", {"seed": -1}, "seed"),
        ("hybridkv", {"theta": "0"}, "theta"),
        ("hybridkv", {"share": "3/2"}, "share"),
        ("hybridkv", {"ratio": "0"}, "ratio"),
        ("hybridkv", {"page": 0}, "page"),
    ],
)
def test_settings_of_its_own_are_checked(name: str, settings: Any, match: str) -> None:
    with pytest.raises(SettingError, match=match):
        registry.build(name, keep="1/2", **settings)


def test_infinipot_v_needs_room_above_its_budget() -> None:
    with pytest.raises(SettingError, match="capacity"):
        registry.build("infinipot-v", entries=20, capacity=20)


@pytest.mark.parametrize(
    "text",
    ["", "{", '{"other": 1}', '{"scores": [[1, 2], [3]]}', '{"scores": [[1, -2]]}',
     '{"scores": [[0, 0]]}', '{"scores": [1, 2]}', '{"scores": [[1, NaN]]}'],
)  # fmt: skip
def test_damaged_head_scores_are_refused(text: str, tmp_path: Path) -> None:
    path = tmp_path / "heads.json"
    path.write_text(text)
    policy = registry.build("sparsemm", keep="1/2", heads=str(path))
    with pytest.raises(CheckpointError):
        policy.observe(0, prompt_view(0, layers=1, heads=(2, 2)))


def test_head_scores_of_another_model_are_refused(scores: Path, tmp_path: Path) -> None:
    policy = registry.build("sparsemm", keep="1/2", heads=str(scores))
    for wrong in (prompt_view(0, layers=3), prompt_view(0, layers=4, heads=(8, 2))):
        with pytest.raises(CheckpointError, match="scores 4 layers of 4 heads"):
            policy.observe(0, wrong)
    with pytest.raises(CheckpointError, match="no file"):
        registry.build("sparsemm", keep="1/2", heads=str(tmp_path / "none.json")).observe(
            0, prompt_view(0)
        )
