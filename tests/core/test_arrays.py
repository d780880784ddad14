"""The array layer: against plain loops, and numpy against torch on duplicate tokens."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from foveate.core import _cover, arrays
from foveate.core.errors import InputError, NonFiniteError
from foveate.core.views import Reduction

torch = pytest.importorskip("torch")


def grid_cosine(x: np.ndarray) -> np.ndarray:
    """Cosines in units of 2**-20, the plain way."""
    wide = x.astype(np.float64)
    length = np.sqrt((wide**2).sum(1))
    out = np.zeros((len(x), len(x)), dtype=np.int64)
    for i in range(len(x)):
        for j in range(len(x)):
            if length[i] and length[j]:
                cosine = float(wide[i] @ wide[j]) / length[i] / length[j]
                out[i, j] = round(cosine * 2**20)
    return out


def plain_maxmin(x: np.ndarray, k: int) -> list[int]:
    s, n = grid_cosine(x), len(x)
    if n == 1:
        return [0][:k]
    others = [max(s[i, j] for j in range(n) if j != i) for i in range(n)]
    chosen = [min(range(n), key=lambda i: (others[i], i))]
    while len(chosen) < k:
        free = [i for i in range(n) if i not in chosen]
        chosen.append(min(free, key=lambda i: (max(s[i, j] for j in chosen), i)))
    return chosen[:k]


def plain_mean(x: np.ndarray, k: int) -> list[int]:
    s, n = grid_cosine(x), len(x)
    chosen = [min(range(n), key=lambda i: (s[i].sum() - s[i, i], i))]
    while len(chosen) < k:
        free = [i for i in range(n) if i not in chosen]
        chosen.append(min(free, key=lambda i: (sum(s[i, j] for j in chosen), i)))
    return chosen[:k]


def tokens(seed: int, n: int, d: int, style: str) -> np.ndarray:
    """Random features; "few" holds small integers with many repeated rows, "same" one row n
    times.
    """
    rng = np.random.default_rng(seed)
    if style == "float":
        return rng.standard_normal((n, d)).astype(np.float32)
    if style == "same":
        return np.repeat(rng.standard_normal((1, d)).astype(np.float32), n, axis=0)
    if style == "few":
        return rng.integers(-2, 3, (n, d)).astype(np.float32)
    base = rng.standard_normal((max(1, n // 3), d)).astype(np.float32)
    return base[rng.integers(0, len(base), n)]


CASES = dict(
    seed=st.integers(0, 2**31),
    n=st.integers(1, 40),
    d=st.integers(1, 48),
    style=st.sampled_from(["float", "same", "few", "repeated"]),
    share=st.floats(0.05, 1.0),
)


@settings(max_examples=120, deadline=None)
@given(**CASES)
def test_greedy_choices_equal_plain_loops_and_torch(
    seed: int, n: int, d: int, style: str, share: float
) -> None:
    x = tokens(seed, n, d, style)
    k = max(1, int(n * share))
    for greedy, plain in ((arrays.greedy_maxmin, plain_maxmin), (arrays.greedy_mean, plain_mean)):
        expected = plain(x, k)
        assert greedy(x, k).tolist() == expected
        assert greedy(torch.from_numpy(x), k).tolist() == expected
        rows = arrays.Similarity(x, gram_tokens=0)
        assert greedy(rows, k).tolist() == expected, "without the matrix the choice differs"


@settings(max_examples=60, deadline=None)
@given(**CASES)
def test_top_k_is_stable_scale_free_and_equal_in_torch(
    seed: int, n: int, d: int, style: str, share: float
) -> None:
    scores = tokens(seed, n, 1, style)[:, 0]
    k = max(1, int(n * share))
    expected = sorted(range(n), key=lambda i: (-float(scores[i]), i))[:k]
    bits = arrays.FINE_BITS
    assert arrays.top_k(scores, k, bits).tolist() == expected
    assert arrays.top_k(torch.from_numpy(scores), k, bits).tolist() == expected
    for factor in (2.0**-140, 2.0**100):
        assert arrays.top_k(scores.astype(np.float64) * factor, k, bits).tolist() == expected


def test_top_k_treats_values_within_the_grid_as_ties() -> None:
    scores = np.array([0.5, 0.5 + 2.0**-24, 0.75, 0.5])
    assert arrays.top_k(scores, 3).tolist() == [2, 0, 1]
    assert arrays.top_k(scores, 3, arrays.FINE_BITS).tolist() == [2, 1, 0]
    assert arrays.top_k(scores, 9).size == 4
    assert arrays.top_k(scores, 0).size == 0
    assert arrays.top_k(np.zeros(3), 2).tolist() == [0, 1]


def test_quantum_saturates_instead_of_wrapping() -> None:
    q = arrays.quantum(np.array([1e30, -1e30, 1.5 * 2.0**-20, 2.5 * 2.0**-20]))
    assert q.tolist() == [2**62, -(2**62), 2, 2]


@pytest.mark.parametrize("make", [np.asarray, torch.from_numpy], ids=["numpy", "torch"])
def test_a_value_that_is_not_finite_names_its_token(make: Any) -> None:
    x = np.ones((4, 3), dtype=np.float32)
    x[2, 1] = np.nan
    with pytest.raises(NonFiniteError, match="token 2"):
        arrays.greedy_maxmin(make(x), 2)
    with pytest.raises(NonFiniteError):
        arrays.top_k(make(x[:, 1]), 2)


def test_large_and_tiny_vectors_keep_their_direction() -> None:
    x = np.array([[3e38, 0], [0, 1e-38], [3e38, 3e38]], dtype=np.float32)
    u = arrays.unit(x)
    assert np.allclose((u**2).sum(1), 1.0)
    assert arrays.unit(np.zeros((2, 3), np.float32)).tolist() == [[0.0] * 3] * 2


def test_autocast_does_not_touch_a_choice() -> None:
    x = torch.from_numpy(tokens(1, 96, 64, "float"))
    expected = arrays.greedy_maxmin(x, 24).tolist()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert arrays.greedy_maxmin(x, 24).tolist() == expected
        assert arrays.cosine(x, x).dtype == torch.float64


def test_half_precision_and_gradients_are_accepted() -> None:
    x = torch.from_numpy(tokens(2, 30, 8, "float")).to(torch.bfloat16).requires_grad_()
    again = x.detach().float().numpy()
    assert arrays.greedy_maxmin(x, 7).tolist() == arrays.greedy_maxmin(again, 7).tolist()
    reduction = Reduction.of([0, 3], [0, 0, 1], [0, 1, 3], [0.5, 0.5, 1.0], 30)
    out = arrays.apply(reduction, x)
    assert out.dtype == torch.bfloat16
    out.sum().backward()
    assert x.grad is not None and x.grad[1].float().abs().sum() > 0


@pytest.mark.parametrize("make", [np.asarray, torch.from_numpy], ids=["numpy", "torch"])
def test_apply_is_the_weighted_sum(make: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(3)
    x, special = rng.standard_normal((9, 5)).astype(np.float32), np.ones((2, 5), np.float32)
    rows, cols = rng.integers(0, 4, 40), rng.integers(0, 11, 40)
    rows[:4] = [0, 1, 2, 3]
    weights = rng.standard_normal(40).astype(np.float32)
    reduction = Reduction.of([7, 0, 5, 2], rows, cols, weights, 9, "encoder")
    dense = np.zeros((4, 11))
    np.add.at(dense, (np.array([3, 0, 2, 1])[rows], cols), weights)
    expected = dense @ np.concatenate([x, special])
    out = arrays.apply(reduction, make(x), make(special))
    assert np.allclose(arrays.to_numpy(out), expected, atol=1e-5)
    monkeypatch.setattr(arrays, "_CHUNK_BYTES", 64)
    assert np.allclose(
        arrays.to_numpy(arrays.apply(reduction, make(x), make(special))), expected, atol=1e-5
    )
    with pytest.raises(InputError, match="special"):
        arrays.apply(reduction, make(x))
    picked = Reduction.pick([4, 1], 9)
    assert np.array_equal(arrays.to_numpy(arrays.apply(picked, make(x))), x[[1, 4]])


@pytest.mark.parametrize("make", [np.asarray, torch.from_numpy], ids=["numpy", "torch"])
def test_segment_sums_and_means(make: Any) -> None:
    values = make(np.arange(12, dtype=np.float32).reshape(6, 2))
    ids = np.array([2, 0, 2, -1, 0, 2])
    total = arrays.to_numpy(arrays.segment_sum(values, ids, 4))
    assert total.tolist() == [[10, 12], [0, 0], [14, 17], [0, 0]]
    mean = arrays.to_numpy(arrays.segment_mean(values, make(ids), 4))
    assert np.allclose(mean, [[5, 6], [0, 0], [14 / 3, 17 / 3], [0, 0]])
    with pytest.raises(InputError):
        arrays.segment_sum(values, ids, 2)


def test_bipartite_pairs_even_with_odd() -> None:
    x = np.array([[1, 0], [0, 1], [0.9, 0.1], [1, 0.05], [0, 2]], np.float32)
    sources, targets, rest = arrays.bipartite(x, 2)
    assert sources.tolist() == [4, 0] and targets.tolist() == [1, 3] and rest.tolist() == [2]
    sources, targets, rest = arrays.bipartite(x[:1], 5)
    assert sources.size == 0 and rest.tolist() == [0]


def test_nearest_takes_the_lowest_of_equals() -> None:
    b = np.array([[0, 1], [1, 0], [2, 0]], np.float32)
    best, index = arrays.nearest(np.array([[5, 0], [0, 0]], np.float32), b)
    assert index.tolist() == [1, 0] and best.tolist() == [2**20, 0]


def test_small_helpers() -> None:
    x = torch.zeros((3, 2))
    assert arrays.iarange(3, x).tolist() == [0, 1, 2] and arrays.iarange(3, x).dtype == torch.int64
    assert arrays.mask_of([2, 0], 3).tolist() == [True, False, True]
    assert arrays.nonzero(torch.tensor([False, True])).tolist() == [1]
    assert arrays.ascending(torch.tensor([3, 1, 2])).tolist() == [1, 2, 3]
    assert arrays.quantile(np.array([1.0, 2.0, 4.0]), 0.75) == 3.0
    assert arrays.f32(x.double().requires_grad_()).requires_grad is False


def test_everything_works_where_torch_cannot_be_imported() -> None:
    code = (
        "import sys\n"
        "class Absent:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name.split('.')[0] == 'torch':\n"
        "            raise ModuleNotFoundError(f'No module named {name}', name=name)\n"
        "sys.meta_path.insert(0, Absent())\n"
        "import numpy as np\n"
        "from foveate.core import arrays, registry\n"
        "import foveate.encode\n"
        "x = np.random.default_rng(0).standard_normal((20, 4)).astype('float32')\n"
        "assert arrays.greedy_maxmin(x, 3).size == 3 and arrays.cosine(x, x).shape == (20, 20)\n"
        "with arrays.exact(x): pass\n"
        "assert 'divprune' in registry.methods('tokens')\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("style", ["float", "repeated", "few"])
def test_every_greedy_choice_is_the_same_with_and_without_the_matrix(style: str) -> None:
    x = tokens(11, 90, 12, style)
    quality = np.random.default_rng(5).random(90)
    dense, rows = arrays.Similarity(x), arrays.Similarity(x, gram_tokens=0)
    assert dense.dense is not None and rows.dense is None
    for s in (dense, rows):
        assert s.sums().tolist() == dense.sums().tolist()
        assert s.neighbour().tolist() == dense.neighbour().tolist()
        whole = np.zeros((90, 90), dtype=np.int32)
        for a, strip in s.upper():
            whole[a : a + strip.shape[0], a:] = strip
        assert np.array_equal(np.triu(whole), np.triu(dense.dense))
    for choose in (
        lambda s: arrays.greedy_mmr(s, quality, 0.4, 30),
        lambda s: arrays.greedy_dpp(s, quality, 30),
        lambda s: arrays.greedy_cover(s.rows, s.row, gains(s.rows(np.arange(90))), 30, quality),
    ):
        left, right = choose(dense), choose(rows)
        assert left.tolist() == right.tolist()
        assert np.unique(left).size == 30


def gains(u: np.ndarray) -> np.ndarray:
    return np.maximum(u, 0).sum(axis=0, dtype=np.int64)


def plain_cover(u: np.ndarray, quality: np.ndarray, k: int) -> list[int]:
    """Every gain anew at every step, in units of 2**-32 of the largest first one."""
    n = u.shape[1]
    cover, chosen = np.zeros(len(u), dtype=np.int64), []
    peak = float((gains(u) * quality).max())
    while len(chosen) < k:
        free = [j for j in range(n) if j not in chosen]
        value = {}
        for j in free:
            gain = int(np.maximum(u[:, j].astype(np.int64) - cover, 0).sum())
            value[j] = round(gain * quality[j] * 2.0**32 / peak) if peak > 0 else 0
        chosen.append(max(free, key=lambda j: (value[j], -j)))
        cover = np.maximum(cover, u[:, chosen[-1]])
    return chosen


@settings(max_examples=120, deadline=None)
@given(**CASES, extra=st.integers(0, 3), share_held=st.sampled_from([1, 3, 25]))
def test_greedy_cover_equals_the_full_computation(
    seed: int, n: int, d: int, style: str, share: float, extra: int, share_held: int
) -> None:
    rng = np.random.default_rng(seed)
    u = rng.integers(-50, 100, (n, n)).astype(np.int32)
    if style != "float":  # columns and rows that are equal
        same = rng.integers(0, max(1, n // 3), n)
        u = u[same][:, same]
    more = rng.integers(0, 2**40, (extra, n))
    quality = np.round(rng.random(n), 2) if d % 2 else np.ones(n)
    k = max(1, int(n * share))
    full = np.concatenate([u.astype(np.int64), more])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_cover, "ROW_SHARE", share_held)
        patch.setattr(_cover, "_FETCH_STEP", 4)
        found = arrays.greedy_cover(
            lambda index: u[index], lambda j: u[:, j], gains(full), k, quality, more
        )
    assert found.tolist() == plain_cover(full, quality, k)


def test_greedy_cover_goes_on_when_all_is_covered() -> None:
    s = arrays.Similarity(np.ones((5, 3), np.float32))
    gain = gains(s.dense)
    assert arrays.greedy_cover(s.rows, s.row, gain, 4).tolist() == [0, 1, 2, 3]
    assert arrays.greedy_cover(s.rows, s.row, np.zeros(5), 2).tolist() == [0, 1]
