"""A sweep over random shapes, budgets and towers: numpy and torch choose alike, in any
precision.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tests.methods.synthetic import as_tensors, question, segment
from tests.methods.test_contract import (
    METHODS,
    TOWERS,
    counts_of,
    is_video,
    method_of,
    same,
    select,
)

torch = pytest.importorskip("torch")

STYLES = ["random", "constant", "repeated"]


def shape_of(name: str, rng: np.random.Generator) -> tuple[int, int, int]:
    if is_video(name) or rng.random() < 0.3:
        return int(rng.integers(2, 7)), int(rng.integers(1, 5)), int(rng.integers(2, 7))
    return 1, int(rng.integers(1, 12)), int(rng.integers(2, 12))


def agrees(name: str, seed: int) -> None:
    rng = np.random.default_rng(seed)
    style, tower = STYLES[seed % 3], TOWERS[(seed // 3) % 3]
    item = segment(METHODS[name], shape_of(name, rng), style=style, tower=tower, seed=seed)
    method = method_of(name, per_image=int(rng.integers(1, item.n + 1)))
    counts = counts_of(method, [item])
    left = select(method, [item], counts)[0]
    tensors = as_tensors(item, torch.from_numpy)
    right = select(method, [tensors], counts, question(torch.from_numpy))[0]
    assert same(left, right), (name, seed, item.grid, counts.total, style, tower)
    assert method.counts == "adaptive" or left.k == counts.total


@pytest.mark.parametrize("name", METHODS)
def test_numpy_and_torch_agree_on_random_requests(name: str) -> None:
    for seed in range(9):
        agrees(name, seed)


@pytest.mark.full
@pytest.mark.parametrize("name", METHODS)
def test_numpy_and_torch_agree_on_many_random_requests(name: str) -> None:
    for seed in range(9, 300):
        agrees(name, seed)


def lowered(dtype: Any) -> Any:
    """Floats in a lower precision and with a gradient, as a model under training would give
    them.
    """

    def make(a: np.ndarray) -> Any:
        x = torch.from_numpy(a)
        return x.to(dtype).requires_grad_() if x.is_floating_point() else x

    return make


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_lower_precision_chooses_as_its_float32_copy(name: str, dtype: Any) -> None:
    item = segment(METHODS[name], (4, 3, 4) if is_video(name) else (1, 6, 6), tower="merger")
    method = method_of(name, keep="1/3")
    counts = counts_of(method, [item])
    low = as_tensors(item, lowered(dtype))
    copy = as_tensors(low, lambda a: a.detach().float() if a.is_floating_point() else a)
    ask = question(lowered(dtype))
    left = select(method, [low], counts, ask)[0]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        again = select(method, [low], counts, ask)[0]
    assert same(left, select(method, [copy], counts, ask)[0])
    assert same(left, again), "autocast changed the choice"
