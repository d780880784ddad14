"""What the planted endpoints say of themselves is what they do: other tests lean on it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

pytest.importorskip("aiohttp")

from tests.support.planted import (
    PlantedServer,
    picture_bytes,
    planted_answer,
    question,
    right_answer,
    workload_file,
)
from tests.support.planted_target import planted_items


def test_the_workload_file_holds_distinct_rows_with_right_answers(tmp_path: Path) -> None:
    path = workload_file(tmp_path / "w.jsonl", 300)
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    for field in ("id", "image", "question"):
        assert len({row[field] for row in rows}) == 300
    assert {row["category"] for row in rows} == {"even", "odd"}
    assert rows[41]["question"] == "what is 41 plus 7 ?" and rows[41]["answer"] == "48"
    assert all(row["answer"] == right_answer(row["question"]) for row in rows)
    assert right_answer("what is this ?") == "unknown"
    items = planted_items(300)
    assert [i.id for i in items] == [row["id"] for row in rows]
    assert [i.references for i in items] == [(row["answer"],) for row in rows]


def test_pictures_are_png_and_differ() -> None:
    found = [picture_bytes(n) for n in (0, 1, 256, 65536)]
    assert len(set(found)) == 4 and all(data.startswith(b"\x89PNG") for data in found)


@pytest.mark.parametrize("wrong", [0.0, 0.1, 0.5, 1.0])
def test_the_share_of_wrong_answers_is_kept_by_item(wrong: float) -> None:
    texts = [question(n)[0] for n in range(2000)]
    answers = [planted_answer(t, wrong) for t in texts]
    assert answers == [planted_answer(t, wrong) for t in texts]
    missed = sum(a != right_answer(t) for a, t in zip(answers, texts, strict=True)) / 2000
    assert abs(missed - wrong) < 0.03
    # Who errs at a small share errs at a larger one too.
    more = [planted_answer(t, min(1.0, wrong + 0.2)) for t in texts]
    assert all(m == a for m, a, t in zip(more, answers, texts, strict=True) if a != right_answer(t))


def test_a_server_ends_with_its_block() -> None:
    import psutil

    with PlantedServer() as server:
        pid = server.pid
        assert psutil.pid_exists(pid) and server.seen()["requests"] == 0
    assert not psutil.pid_exists(pid)
    server.stop()
