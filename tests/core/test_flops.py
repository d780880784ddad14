"""The arithmetic of FLOPs: against plain loops, and what it refuses."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from foveate.core import flops
from foveate.core.errors import InputError
from foveate.core.shapes import (
    EncodeWork,
    LayerShape,
    MLPShape,
    ModelShape,
    TextShape,
    VisionShape,
)

MLP = MLPShape(24)
SMALL = st.integers(0, 40)
WINDOWS = st.none() | st.integers(1, 20)


def layer(window: int | None = None, **changes: Any) -> LayerShape:
    return LayerShape(**{"heads": 4, "kv_heads": 2, "head_dim": 8, "mlp": MLP, **changes,
                         "window": window})  # fmt: skip


def text(*windows: int | None) -> TextShape:
    return TextShape(32, 100, tuple(layer(w) for w in windows or (None, None)))


def tower(**changes: Any) -> VisionShape:
    base: dict[str, Any] = {
        "hidden": 16,
        "patch_inputs": 48,
        "layer": LayerShape(2, 2, 8, MLPShape(20, gated=False)),
        "layers": 3,
        "projector": ((64, 32), (32, 32)),
        "merge": 4,
    }
    return VisionShape(**{**base, **changes})


@given(SMALL, SMALL, WINDOWS)
def test_causal_pairs_are_those_a_mask_leaves(rows: int, past: int, window: int | None) -> None:
    seen = sum(
        1
        for q, k in itertools.product(range(past, past + rows), range(past + rows))
        if k <= q and (window is None or q - k < window)
    )
    assert layer(window).attention(rows, past, causal=True) == 4 * seen * 4 * 8


@given(st.integers(1, 40), WINDOWS)
def test_full_attention_counts_every_pair(rows: int, window: int | None) -> None:
    full = layer(window).attention(rows)
    assert full == 4 * rows * rows * 4 * 8
    assert layer(window).attention(rows, causal=True) <= full


def test_causal_attention_is_about_half() -> None:
    ratio = layer().attention(1000, causal=True) / layer().attention(1000)
    assert ratio == pytest.approx(0.5, abs=1e-3)


@given(
    st.lists(WINDOWS, min_size=1, max_size=3),
    st.integers(0, 12),
    st.data(),
)
def test_decode_is_its_steps_one_by_one(
    windows: list[int | None], steps: int, data: st.DataObject
) -> None:
    shape = text(*windows)
    lengths = st.integers(0, 30) | st.tuples(SMALL, SMALL)
    kv = data.draw(st.tuples(*[lengths] * len(windows)))
    total = flops.Flops()
    for i in range(steps):
        past = tuple(n + i if isinstance(n, int) else tuple(h + i for h in n) for n in kv)
        total += flops.prefill(shape, (1,) * len(windows), past=past)
    assert flops.decode(shape, kv, steps) == total


@given(st.lists(WINDOWS, min_size=1, max_size=3), st.lists(SMALL, max_size=6), st.data())
def test_steps_over_stores_that_shrink_cost_what_each_sees(
    windows: list[int | None], sizes: list[int], data: st.DataObject
) -> None:
    shape = text(*windows)
    seen = [data.draw(st.permutations([n + 1 for n in sizes])) for _ in windows]
    total = flops.Flops()
    for i in range(len(sizes)):
        total += flops.prefill(shape, (1,) * len(windows), past=tuple(n[i] - 1 for n in seen))
    assert flops.decode_seen(shape, seen) == total
    for bad in ([[0]] * len(windows), [[1]] * (len(windows) + 1), [*[[1]] * len(windows[1:]), []]):
        if bad == [[]]:
            continue  # one layer without steps is nothing odd
        with pytest.raises(InputError):
            flops.decode_seen(shape, bad)


@given(SMALL, SMALL)
def test_a_prefix_and_the_rest_cost_the_whole_in_causal_attention(a: int, b: int) -> None:
    one = layer()
    parts = one.attention(a, 0, True) + one.attention(b, a, True)
    assert parts == one.attention(a + b, 0, True)


def test_prefill_by_hand() -> None:
    found = flops.prefill(text(), (10, 4))
    assert found.projections == 14 * 2 * (2 * 32 * 32 + 2 * 32 * 16)
    assert found.mlp == 14 * 2 * 3 * 32 * 24
    assert found.attention == 4 * 4 * 8 * (10 * 10 + 4 * 4)
    assert found.head == 2 * 32 * 100
    half = flops.prefill(text(), (10, 4), causal=True)
    assert half.attention == 4 * 4 * 8 * (55 + 10) and half.mlp == found.mlp
    assert found.total == found.projections + found.mlp + found.attention + found.head


def test_encode_by_hand() -> None:
    found = flops.encode(tower(), tower().packed([(1, 4, 6), (2, 2, 2)]))
    assert found.embedding == 2 * 32 * 48 * 16
    assert found.projections == 3 * 32 * 2 * 4 * 16 * 16
    assert found.attention == 3 * 4 * 2 * 8 * (24 * 24 + 4 * 4 + 4 * 4)
    assert found.mlp == 3 * 32 * 2 * 2 * 16 * 20
    assert found.projector == 2 * 8 * (64 * 32 + 32 * 32)


def test_experts_count_those_that_are_active() -> None:
    mlp = MLPShape(24, active=2, router=8, shared=12, shared_gate=True)
    assert mlp.flops(32) == 2 * (3 * 32 * (2 * 24 + 12) + 32 * 8 + 32)


def test_passes_carry_their_special_tokens() -> None:
    shape = tower(pass_patches=16, special=1, merge=1)
    assert shape.passes(2) == EncodeWork(32, ((17, 17),) * 3, 32)
    assert shape.passes(1, patches=4) == EncodeWork(4, ((5,),) * 3, 4)
    full = tower(pass_patches=16, special=1, merge=1, projects_special=True)
    assert full.passes(2).projected == 34


@given(st.integers(1, 3), st.integers(1, 9), st.integers(1, 9), st.integers(1, 5))
def test_windows_hold_every_patch_once(t: int, h: int, w: int, side: int) -> None:
    work = tower(window=side, full=(1,), merge=1).packed([(t, h, w)])
    assert [sum(block) for block in work.blocks] == [t * h * w] * 3
    assert work.blocks[1] == (h * w,) * t
    plain: dict[tuple[int, int, int], int] = {}
    for f, y, x in itertools.product(range(t), range(h), range(w)):
        key = (f, y // side, x // side)
        plain[key] = plain.get(key, 0) + 1
    assert work.blocks[0] == tuple(plain.values())


def test_two_calls_add_up() -> None:
    shape = tower()
    one, two = shape.packed([(1, 4, 6)]), shape.packed([(1, 2, 2)])
    assert one + two == shape.packed([(1, 4, 6), (1, 2, 2)])
    total = flops.encode(shape, one) + flops.encode(shape, two)
    assert total == flops.encode(shape, one + two)


def test_kv_bytes_by_layer_head_and_window() -> None:
    shape = text(None, 6, None)
    assert flops.kv_entries(shape, (10, 10, (3, 4)), steps=2) == (24, 10, 5 + 6)
    assert flops.kv_bytes(shape, (10, 10, (3, 4)), 2) == (20 * 32, 10 * 32, 7 * 32)


@pytest.mark.parametrize(
    "wrong",
    [
        lambda: MLPShape(0),
        lambda: MLPShape(8, active=3, router=2),
        lambda: layer(heads=3),
        lambda: layer(0),
        lambda: TextShape(32, 100, ()),
        lambda: tower(layers=0),
        lambda: tower(layer=layer(4)),
        lambda: tower(projector=((0, 4),)),
        lambda: ModelShape(None, text(), 0),
        lambda: EncodeWork(-1, (), 0),
        lambda: EncodeWork(4, ((4, -1),), 1),
        lambda: tower().passes(1),
        lambda: tower(pass_patches=4).packed([(1, 2, 2)]),
        lambda: tower().packed([(1, 0, 2)]),
        lambda: tower().packed([(1, 2, 2)]) + tower(layers=2).packed([(1, 2, 2)]),
        lambda: flops.encode(tower(), EncodeWork(4, ((4,),), 1)),
        lambda: flops.prefill(text(), (3,)),
        lambda: flops.prefill(text(), (3, -1)),
        lambda: flops.prefill(text(), (3, 3), head_rows=4),
        lambda: flops.prefill(text(), (3, 3), past=(1,)),
        lambda: flops.prefill(text(), (3, 3), past=((1, 2, 3), 1)),
        lambda: flops.decode(text(), (3, -3), 1),
        lambda: flops.decode(text(), (3, 3), -1),
        lambda: flops.kv_bytes(text(), (3, 3), 0),
        lambda: flops.score_rows(layer(), -1, 3),
    ],
)
def test_wrong_sizes_and_counts_are_refused(wrong: Any) -> None:
    with pytest.raises(InputError):
        wrong()
