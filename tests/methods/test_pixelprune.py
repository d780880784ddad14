"""PixelPrune's choice against the rule said in plain loops, and what it promises."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from foveate.core import PixelPlan, Pixels, PlanRng
from foveate.core.errors import InputError, NonFiniteError, SettingError
from foveate.encode.pixels.pixelprune import PixelPrune

SPAN = (4.0, 4.5, 5.0)
RNG = PlanRng(0)
EDGE, FRAMES = 2, 2  # a visual token is 2 frames of 2 x 2 pixels


def view(values: np.ndarray, span: tuple[float, float, float] | None = SPAN) -> Pixels:
    """Pixels whose blocks are values (t, h, w, FRAMES, EDGE, EDGE, 3)."""
    t, h, w = values.shape[:3]
    array = values.transpose(0, 3, 1, 4, 2, 5, 6).reshape(t * FRAMES, h * EDGE, w * EDGE, 3)

    def tokens(plan: PixelPlan) -> int:
        return t * h * w if plan.patches is None else len(plan.patches)

    size = array.shape[1:3]
    return Pixels(0, array.astype(np.float32), size, tokens, grid=(t, h, w), span=span)


def drawn(shape: tuple[int, int, int], kinds: int, seed: int) -> np.ndarray:
    """Blocks of few kinds, each a little off, in multiples of a sixteenth so that sums are exact."""
    rng = np.random.default_rng(seed)
    body = (FRAMES, EDGE, EDGE, 3)
    colours = rng.integers(-32, 33, (kinds, *body))
    off = rng.integers(0, 2, (*shape, *body)) * rng.integers(0, 2, (*shape, 1, 1, 1, 1))
    return (colours[rng.integers(0, kinds, shape)] + off) / 16


def by_loops(values: np.ndarray, metric: str, threshold: float, span: np.ndarray) -> list[int]:
    """The rule block by block: LOCO-I in the first step, the same place one step before where the
    context stands still, LOCO-I elsewhere. What is foreseen is replaced by its prediction.
    """
    t, h, w = values.shape[:3]
    stands: dict[tuple[int, int, int], np.ndarray] = {}
    kept = []

    def like(a: np.ndarray, b: np.ndarray) -> bool:
        d = np.abs(a - b) / span
        value = {"max": d.max(), "mean": d.mean(), "rms": np.sqrt((d * d).mean())}[metric]
        return bool((a == b).all()) if threshold == 0 else bool(value <= threshold)

    for n, (f, r, c) in enumerate(itertools.product(range(t), range(h), range(w))):
        x = values[f, r, c]
        left = stands.get((f, r, c - 1))
        above, corner = stands.get((f, r - 1, c)), stands.get((f, r - 1, c - 1))
        guess = left if above is None else above if left is None else None
        if left is not None and above is not None and corner is not None:
            guess = above if like(corner, left) and not like(corner, above) else left
        if f > 0:
            pairs = ((left, (f - 1, r, c - 1)), (above, (f - 1, r - 1, c)))
            if all(y is None or like(y, stands[at]) for y, at in pairs):
                guess = stands[f - 1, r, c]
        if guess is not None and like(x, guess):
            stands[f, r, c] = guess
        else:
            stands[f, r, c] = x
            kept.append(n)
    return kept


@settings(max_examples=80, deadline=None)
@given(
    st.tuples(st.integers(1, 3), st.integers(1, 5), st.integers(1, 6)),
    st.integers(1, 4),
    st.integers(0, 10_000),
    st.sampled_from(["max", "mean", "rms"]),
    st.sampled_from([0.0, 0.011, 0.0131, 0.3, 1.0]),
)
def test_the_choice_is_that_of_the_rule_in_plain_loops(
    shape: tuple[int, int, int], kinds: int, seed: int, metric: str, threshold: float
) -> None:
    values = drawn(shape, kinds, seed)
    (plan,) = PixelPrune(threshold=threshold, metric=metric).reduce([view(values)], RNG)
    want = by_loops(values, metric, threshold, np.asarray(SPAN))
    assert list(range(np.prod(shape)) if plan.patches is None else plan.patches) == want
    assert plan.patches is None or len(plan.patches) < np.prod(shape)


@given(st.integers(1, 4), st.integers(1, 6), st.integers(1, 4), st.integers(0, 999))
@settings(max_examples=40, deadline=None)
def test_threshold_0_loses_no_pixel(h: int, w: int, kinds: int, seed: int) -> None:
    """Decoding by the rule, from the kept blocks alone, gives the picture back."""
    values = drawn((1, h, w), kinds, seed)
    (plan,) = PixelPrune().reduce([view(values)], RNG)
    kept = set(range(h * w) if plan.patches is None else plan.patches)
    out: dict[tuple[int, int], np.ndarray] = {}
    for r, c in itertools.product(range(h), range(w)):
        if r * w + c in kept:
            out[r, c] = values[0, r, c]
        elif r == 0 or c == 0:
            out[r, c] = out[r, c - 1] if r == 0 else out[r - 1, c]
        else:
            a, b, corner = out[r, c - 1], out[r - 1, c], out[r - 1, c - 1]
            upright = np.array_equal(corner, a) and not np.array_equal(corner, b)
            out[r, c] = b if upright else a
        assert np.array_equal(out[r, c], values[0, r, c])


def test_a_ramp_stays_within_the_threshold_of_what_stands_for_it() -> None:
    """Steps of .01 along a row: neighbours are alike, the ends are not, so anchors must appear."""
    steps = np.arange(12)[None, None, :, None, None, None, None] * 0.01
    values = steps * np.asarray(SPAN) * np.ones((1, 1, 12, FRAMES, EDGE, EDGE, 1))
    (plan,) = PixelPrune(threshold=0.035).reduce([view(values)], RNG)
    assert plan.patches == (0, 4, 8)


def test_edges_and_constant_pictures() -> None:
    flat = np.full((1, 5, 7, FRAMES, EDGE, EDGE, 3), 0.25)
    (plan,) = PixelPrune().reduce([view(flat)], RNG)
    assert plan.patches == (0,)
    split = flat.copy()
    split[:, :, 3:] = 1.0  # an upright edge: found in the first row, carried down
    (plan,) = PixelPrune().reduce([view(split)], RNG)
    assert plan.patches == (0, 3)
    split = flat.copy()
    split[:, 2:] = 1.0  # a level edge: found in the first column, carried along
    (plan,) = PixelPrune().reduce([view(split)], RNG)
    assert plan.patches == (0, 14)


def test_a_still_scene_costs_one_step_and_a_cut_is_a_new_picture() -> None:
    noise = drawn((1, 4, 5), 20, 1)
    other = drawn((1, 4, 5), 1, 2) + 3
    (plan,) = PixelPrune().reduce([view(np.concatenate([noise] * 3))], RNG)
    assert plan.patches is not None and max(plan.patches) < 20
    flat = np.broadcast_to(other[:, :1, :1], other.shape)
    (plan,) = PixelPrune().reduce([view(np.concatenate([noise, flat]))], RNG)
    assert plan.patches is not None and [i for i in plan.patches if i >= 20] == [20]


def test_a_difference_in_the_last_bit_counts() -> None:
    for base in np.linspace(1, 2, 40, endpoint=False, dtype=np.float32):
        values = np.full((1, 1, 2, FRAMES, EDGE, EDGE, 3), base, dtype=np.float32)
        values[0, 0, 1, 1, 1, 1, 2] = np.nextafter(base, np.float32(2))
        for metric in ("max", "mean", "rms"):
            assert PixelPrune(metric=metric).reduce([view(values)], RNG)[0].is_identity


def test_bad_input_is_refused() -> None:
    values = drawn((1, 2, 2), 2, 0)
    with pytest.raises(InputError, match="processor="):
        PixelPrune(threshold=0.1).reduce([view(values, None)], RNG)
    assert PixelPrune().reduce([view(values, None)], RNG)
    values[0, 0, 0, 0, 0, 0, 0] = np.nan
    with pytest.raises(NonFiniteError, match="picture 0"):
        PixelPrune().reduce([view(values)], RNG)
    with pytest.raises(SettingError, match="threshold"):
        PixelPrune(threshold=1.5)
    with pytest.raises(SettingError, match="metric"):
        PixelPrune(metric="cosine")
    bare = Pixels(0, np.zeros((1, 4, 4, 3), np.uint8), (4, 4), lambda _: 4)
    with pytest.raises(InputError, match="grid"):
        PixelPrune().reduce([bare], RNG)
