"""M-RoPE positions: text does not depend on what is kept, kept tokens keep their own, and neither
depends on where a chunk or a cached prefix ends. The reference numbers the unpruned prompt.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

torch = pytest.importorskip("torch")

# What needs these packages is imported behind the question whether they are here.
from foveate.core.errors import StateError  # noqa: E402
from foveate.serve.vllm import positions as p  # noqa: E402

Grid = tuple[int, int, int]
GRID = st.tuples(st.integers(1, 3), st.integers(1, 9), st.integers(1, 9))
PLACE = 9  # id of a placeholder; words of a video are 1 to 5


@dataclass
class Item:
    """A picture, or a video with `words` between its frames: ids of the words before each frame and
    behind the last. kept: places of its kept tokens in the whole grid.
    """

    grid: Grid
    kept: np.ndarray
    words: list[list[int]] | None = None

    @property
    def written(self) -> np.ndarray:
        assert self.words is not None
        first, *rest = self.words
        return np.array([*first, *(i for words in rest for i in (PLACE, *words))])


def cells(grid: Grid) -> np.ndarray:
    return np.stack([x.reshape(-1) for x in np.indices(grid)], 1)


def unpruned(item: Item, base: int) -> tuple[np.ndarray, list[int], int]:
    """Positions (n, 3) and word ids (0: visual) of an item's kept tokens and words in the full prompt,
    in order, and where text goes on.
    """
    if item.words is None:
        own = cells(item.grid) + base
        return own[item.kept], [0] * item.kept.size, int(own.max()) + 1
    t, h, w = item.grid
    found, ids = [], []
    for f, words in enumerate(item.words):
        found += [(base + i,) * 3 for i in range(len(words))]
        ids += words
        base += len(words)
        if f < t:
            mine = item.kept[item.kept // (h * w) == f] % (h * w)
            found += [(base, base + x // w, base + x % w) for x in mine.tolist()]
            ids += [0] * mine.size
            base += max(h, w)
    return np.array(found).reshape(-1, 3), ids, base


@st.composite
def items(draw: st.DrawFn) -> Item:
    grid = draw(GRID)
    kept = np.array(sorted(draw(st.sets(st.integers(0, int(np.prod(grid)) - 1), min_size=1))))
    words = None
    if draw(st.booleans()):
        one = st.lists(st.integers(1, 5), min_size=1, max_size=3)
        words = draw(st.lists(one, min_size=grid[0] + 1, max_size=grid[0] + 1))
    return Item(grid, kept, words)


@st.composite
def prompts(draw: st.DrawFn) -> tuple[list[int], list[Item]]:
    """Lengths of texts, which may be empty, and the items between them."""
    found = draw(st.lists(items(), min_size=1, max_size=4))
    return [draw(st.integers(0, 4)) for _ in range(len(found) + 1)], found


@given(prompts(), st.data())
def test_every_token_stands_where_the_full_prompt_has_it(
    prompt: tuple[list[int], list[Item]], data: st.DataObject
) -> None:
    texts, found = prompt
    base, wanted, words = 0, [], []
    runs, rows, marks, spans = [], [], [], []
    at = 0
    for i, text in enumerate(texts):
        wanted.append(np.tile(base + np.arange(text), (3, 1)).T)
        marks += [False] * text
        words += [0] * text
        base, at = base + text, at + text
        if i == len(found):
            break
        item = found[i]
        own, ids, after = unpruned(item, base)
        wanted.append(own)
        words += ids
        if item.words is None:
            about = p.facts(cells(item.grid)[item.kept])
            extent = max(item.grid)
        else:
            frames = p.Frames.of(item.written, PLACE, item.grid)
            picks, about = frames.rows(item.kept, item.grid)
            extent = frames.extent
            assert sorted(picks.tolist()) == list(range(len(ids)))
        rows.append(about)
        runs.append(p.Run(at, len(ids), extent))
        marks += [True] * item.kept.size + [False] * (len(ids) - item.kept.size)
        spans.append((at, at + len(ids)))
        base, at = after, at + len(ids)
    expected = np.concatenate(wanted).T
    visual = torch.tensor(marks, dtype=torch.bool)
    outside = np.ones(at, dtype=bool)
    for begin, end in spans:
        outside[begin:end] = False
    before = p.before_encoding(at, runs)
    assert np.array_equal(before[:, outside], expected[:, outside])

    channels = [torch.as_tensor(p.digits(r)).to(torch.bfloat16) for r in rows]
    now, done = torch.from_numpy(before), data.draw(st.integers(0, at - 1), label="cached")
    first, seen = done, []
    while done < at:  # chunks of any size, from a cached prefix of any length on
        stop = data.draw(st.integers(done + 1, at), label="chunk")
        held = [
            (max(a, done), p.undigits(c[max(done - a, 0) : max(stop - a, 0)]))
            for c, (a, b) in zip(channels, spans, strict=True)
            if max(a, done) < min(b, stop)
        ]
        part = [about for _, about in held]
        now = p.after_encoding(now, visual, part, done)
        now = p.after_encoding(now, visual, part, done)  # again: the same
        seen += [(a + i, int(x)) for a, about in held for i, x in enumerate(about[:, 4])]
        done = stop
    assert np.array_equal(now.numpy()[:, first:], expected[:, first:])
    assert all(word == (words[i] + 1 if words[i] else 0) for i, word in seen)


def test_pictures_that_touch_begin_where_the_one_before_ends() -> None:
    """Two pictures with no token between them, the second of which comes in a chunk of its own."""
    first, second = Item((1, 2, 3), np.array([5])), Item((1, 4, 2), np.array([0, 7]))
    runs = [p.Run(1, 1, 3), p.Run(2, 2, 4)]
    visual = torch.tensor([False, True, True, True, False])
    rows = [torch.as_tensor(p.facts(cells(x.grid)[x.kept])) for x in (first, second)]
    now = torch.from_numpy(p.before_encoding(5, runs))
    now = p.after_encoding(now, visual, rows[:1], 0)
    now = p.after_encoding(now, visual, rows[1:], 2)
    assert now.T.tolist() == [[0] * 3, [1, 2, 3], [4, 4, 4], [4, 7, 5], [8] * 3]


@given(st.lists(st.tuples(*[st.integers(0, 2**21 - 1)] * p.FACTS), min_size=1, max_size=20))
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_positions_and_words_survive_half_precision(
    dtype: torch.dtype, rows: list[tuple[int, ...]]
) -> None:
    channels = torch.as_tensor(p.digits(np.array(rows))).to(dtype)
    assert channels.shape == (len(rows), p.CHANNELS)
    assert p.undigits(channels).tolist() == [list(x) for x in rows]


def test_renumbered_positions_stay_consecutive() -> None:
    before = p.before_encoding(6, [p.Run(1, 3, 4)], renumber=True)
    rows = torch.as_tensor(p.facts(cells((1, 1, 4))[1:]))
    marks = torch.tensor([False, True, True, True, False, False])
    after = p.after_encoding(torch.from_numpy(before), marks, [rows], 0)
    assert after.tolist() == [list(range(6))] * 3


def test_words_for_other_frames_are_refused() -> None:
    with pytest.raises(StateError, match="3 frames came with words for 1"):
        p.Frames.of(np.array([1, PLACE, 2]), PLACE, (3, 2, 2))


def test_rows_without_a_placeholder_are_refused() -> None:
    rows = torch.as_tensor(p.facts(cells((1, 1, 2))))
    line = torch.from_numpy(p.before_encoding(3, []))
    with pytest.raises(StateError, match="without a placeholder"):
        p.after_encoding(line, torch.zeros(3, dtype=torch.bool), [rows], 0)
