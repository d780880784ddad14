"""M-RoPE positions: text does not depend on what is kept, kept tokens keep their own, and neither
depends on where a chunk or a cached prefix ends. The reference numbers the unpruned prompt.
"""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

torch = pytest.importorskip("torch")

from foveate.serve.vllm import positions as p  # noqa: E402

GRID = st.tuples(st.integers(1, 3), st.integers(1, 9), st.integers(1, 9))


def cells(grid: tuple[int, int, int]) -> np.ndarray:
    return np.stack([x.reshape(-1) for x in np.indices(grid)], 1)


def unpruned(texts: list[int], grids: list[tuple[int, int, int]]) -> list[np.ndarray]:
    """(3, n) of each part of the full prompt in turn: text, picture, text, …"""
    base, out = 0, []
    for i, text in enumerate(texts):
        out.append(np.tile(base + np.arange(text), (3, 1)))
        base += text
        if i < len(grids):
            own = cells(grids[i]).T + base
            out.append(own)
            base = int(own.max()) + 1
    return out


@st.composite
def prompts(draw: st.DrawFn) -> tuple[list[int], list[tuple[int, int, int]], list[np.ndarray]]:
    grids = draw(st.lists(GRID, min_size=1, max_size=3))
    texts = [draw(st.integers(1, 5)) for _ in range(len(grids) + 1)]
    kept = []
    for grid in grids:
        n = int(np.prod(grid))
        some = draw(st.sets(st.integers(0, n - 1), min_size=1))
        kept.append(np.array(sorted(some)))
    return texts, grids, kept


@given(prompts(), st.data())
def test_every_token_stands_where_the_full_prompt_has_it(
    prompt: tuple[list[int], list[tuple[int, int, int]], list[np.ndarray]], data: st.DataObject
) -> None:
    texts, grids, kept = prompt
    full = unpruned(texts, grids)
    wanted, visual, own, runs, at = [], [], [], [], 0
    for i, part in enumerate(full):
        if i % 2 == 0:
            wanted.append(part)
            visual += [False] * part.shape[1]
            at += part.shape[1]
            continue
        chosen = kept[i // 2]
        wanted.append(part[:, chosen])
        visual += [True] * chosen.size
        own.append(cells(grids[i // 2])[chosen])
        runs.append(p.Run(at, chosen.size, grids[i // 2]))
        at += chosen.size
    expected = np.concatenate(wanted, 1)
    marks = torch.tensor(visual)
    before = p.before_encoding(at, runs)
    assert np.array_equal(before[:, ~marks.numpy()], expected[:, ~marks.numpy()])

    channels = torch.as_tensor(p.digits(np.concatenate(own))).to(torch.bfloat16)
    carried = p.undigits(channels)
    now, done = torch.from_numpy(before), data.draw(st.integers(0, at - 1), label="cached")
    first = done
    while done < at:  # chunks of any size, from a cached prefix of any length on
        stop = data.draw(st.integers(done + 1, at), label="chunk")
        seen = int(marks[:done].sum()), int(marks[:stop].sum())
        now = p.after_encoding(now, marks, carried[seen[0] : seen[1]], done)
        now = p.after_encoding(now, marks, carried[seen[0] : seen[1]], done)  # again: the same
        done = stop
    assert np.array_equal(now.numpy()[:, first:], expected[:, first:])


@given(st.lists(st.tuples(*[st.integers(0, 30000)] * 3), min_size=1, max_size=20))
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_positions_survive_half_precision(
    dtype: torch.dtype, own: list[tuple[int, int, int]]
) -> None:
    channels = torch.as_tensor(p.digits(np.array(own))).to(dtype)
    assert p.undigits(channels).tolist() == [list(x) for x in own]


def test_renumbered_positions_stay_consecutive() -> None:
    before = p.before_encoding(6, [p.Run(1, 3, (1, 4, 4))], renumber=True)
    own = p.undigits(torch.as_tensor(p.digits(np.full((3, 3), -1))).to(torch.bfloat16))
    marks = torch.tensor([False, True, True, True, False, False])
    after = p.after_encoding(torch.from_numpy(before), marks, own, 0)
    assert after.tolist() == [list(range(6))] * 3
