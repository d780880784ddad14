"""The order of an audit, and what is known of a turn that was interrupted."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise

from hypothesis import given, settings
from hypothesis import strategies as st

from foveate.audit.journal import Kept
from foveate.audit.records import Gauges
from foveate.audit.turns import parts, turns
from tests.support.audit_rows import block, items, row, spec


@settings(max_examples=40, deadline=None)
@given(
    n=st.integers(1, 30),
    arms=st.integers(2, 5),
    blocks=st.integers(1, 5),
    requests=st.integers(1, 12),
    seed=st.integers(0, 99),
)
def test_every_arm_has_every_turn_with_the_same_items(
    n: int, arms: int, blocks: int, requests: int, seed: int
) -> None:
    names = ["baseline", *(f"arm{i}" for i in range(1, arms))]
    some = spec(
        arms=[{"name": x, "url": "http://127.0.0.1:9/v1"} for x in names],
        blocks=blocks, requests=requests, seed=seed,
    )  # fmt: skip
    loads = ["closed:1", "open:2"]
    order = list(turns(some, items(n), loads))
    assert order == list(turns(some, items(n), loads))
    assert Counter(t.key for t in order) == Counter(
        (a, x, b) for a in names for x in loads for b in range(blocks)
    )
    groups = [order[i : i + arms] for i in range(0, len(order), arms)]
    for group in groups:
        assert len({t.items for t in group}) == 1 and len(group[0].items) == requests
        assert [t.place for t in group] == list(range(arms))
    asked = Counter(i.id for g in groups for i in g[0].items)
    total = blocks * len(loads) * requests
    assert max(asked.values()) - min(asked.get(f"q{i}", 0) for i in range(n)) <= 1
    assert asked.total() == total


def test_no_arm_always_stands_first_or_behind_the_same() -> None:
    names = ["baseline", "a", "b", "c"]
    some = spec(arms=[{"name": x, "url": "http://127.0.0.1:9/v1"} for x in names], blocks=8)
    order = [t.arm for t in turns(some, items(5), ["closed:1"])]
    groups = [order[i : i + 4] for i in range(0, len(order), 4)]
    for place in range(4):
        assert Counter(g[place] for g in groups) == dict.fromkeys(names, 2)
    behind = Counter(pair for g in groups for pair in pairwise(g))
    assert behind["a", "b"] and behind["b", "a"]


def test_other_seeds_ask_in_another_order() -> None:
    one, two = (
        [i.id for t in turns(spec(seed=s), items(3), ["closed:1"]) for i in t.items] for s in (0, 1)
    )
    assert one != two


def test_an_interrupted_turn_has_a_part_a_session() -> None:
    rows = [
        row(sequence=-1, warmup=True),
        row(sequence=0),
        row(sequence=1),
        row(sequence=2, intended_s=99.0, seen={"sent_s": 100.0, "done_s": 101.0}),
        row("small", sequence=0),
        row("small", block=1, sequence=-1, warmup=True),
    ]
    kept = Kept({}, rows, [1, 1, 1, 2, 1, 2], {("small", "closed:2", 0): [block("small")]})
    found = parts(kept)
    assert list(found) == [("baseline", "closed:2", 0)]
    first, second = found["baseline", "closed:2", 0]
    assert (first.start_s, first.end_s, first.requests) == (10.0, 11.5, 2)
    assert (second.start_s, second.end_s, second.requests) == (99.0, 101.0, 1)
    assert first.gained == Gauges() and first.client_cpu_s is None
