"""The journal: what was written comes back, a torn end is dropped, anything else is refused."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from foveate.audit.journal import FILE, Journal, read, row_as_json, row_from_json
from foveate.core.errors import InputError, StateError
from tests.support.audit_rows import block, row

HEADER = {"spec_hash": "a" * 64, "workload_hash": "b" * 64}


def test_what_was_written_comes_back(tmp_path: Path) -> None:
    rows = [row(sequence=i) for i in range(3)] + [row(sequence=-1, warmup=True)]
    with Journal(tmp_path, HEADER) as journal:
        for r in rows:
            journal.row(r)
        journal.turn([block(), block(start_s=20.0, end_s=21.0)])
        journal.note("a remark")
    found = read(tmp_path / FILE)
    assert found.rows == rows and found.sessions == 1 and found.session == [1] * 4
    assert found.blocks == {("baseline", "closed:2", 0): [block(), block(start_s=20.0, end_s=21.0)]}
    assert found.notes == ["a remark"] and found.torn_bytes == 0


def test_a_second_session_goes_on(tmp_path: Path) -> None:
    with Journal(tmp_path, HEADER) as journal:
        journal.row(row(sequence=0))
    with Journal(tmp_path, HEADER) as journal:
        assert [r.sequence for r in journal.kept.rows] == [0]
        journal.row(row(sequence=1))
    found = read(tmp_path / FILE)
    assert [r.sequence for r in found.rows] == [0, 1] and found.session == [1, 2]


@given(
    text=st.text(max_size=40) | st.just("\ud800 half a pair"),
    times=st.lists(st.floats(0, 1e6), max_size=4),
    tokens=st.none() | st.integers(0, 10**9),
    error=st.sampled_from([None, "http", "timeout"]),
)
def test_every_row_survives_its_line(
    text: str, times: list[float], tokens: int | None, error: str | None
) -> None:
    seen = {"text": text, "chunk_s": tuple(times), "visual_tokens": tokens, "error": error}
    one = row(seen=seen, references=(text, ""), judged=tokens and tokens / 7)
    assert row_from_json(json.loads(json.dumps(row_as_json(one)))) == one


@pytest.mark.parametrize("cut", [1, 7, 60, 200])
def test_a_torn_last_line_is_dropped_and_written_over(tmp_path: Path, cut: int) -> None:
    with Journal(tmp_path, HEADER) as journal:
        journal.row(row(sequence=0))
        journal.row(row(sequence=1))
    path = tmp_path / FILE
    os.truncate(path, path.stat().st_size - cut)
    with Journal(tmp_path, HEADER) as journal:
        assert [r.sequence for r in journal.kept.rows] == [0]
        assert journal.kept.torn_bytes > 0
        journal.row(row(sequence=1))
    assert [r.sequence for r in read(path).rows] == [0, 1]


def test_a_torn_header_is_a_journal_that_never_began(tmp_path: Path) -> None:
    (tmp_path / FILE).write_bytes(b'{"format": "foveate-jour')
    with Journal(tmp_path, HEADER) as journal:
        journal.row(row())
    assert len(read(tmp_path / FILE).rows) == 1


def test_a_damaged_line_in_the_middle_is_refused_by_its_number(tmp_path: Path) -> None:
    with Journal(tmp_path, HEADER) as journal:
        for i in range(3):
            journal.row(row(sequence=i))
    path = tmp_path / FILE
    lines = path.read_bytes().splitlines(keepends=True)
    lines[3] = lines[3][:40] + b"\n"
    path.write_bytes(b"".join(lines))
    with pytest.raises(InputError, match="line 4 is damaged"):
        Journal(tmp_path, HEADER)


@pytest.mark.parametrize("content", [b"hello\n", b"[1]\n", b'{"kind": "row"}\n'])
def test_another_file_of_that_name_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / FILE).write_bytes(content)
    with pytest.raises(InputError, match="no journal"):
        Journal(tmp_path, HEADER)
    assert (tmp_path / FILE).read_bytes() == content


def test_another_audit_in_the_folder_is_refused(tmp_path: Path) -> None:
    Journal(tmp_path, HEADER).close()
    with pytest.raises(InputError, match="another audit .spec_hash differs.*--out"):
        Journal(tmp_path, {**HEADER, "spec_hash": "c" * 64})


def test_a_later_format_is_refused(tmp_path: Path) -> None:
    (tmp_path / FILE).write_text('{"format": "foveate-journal/9"}\n')
    with pytest.raises(InputError, match="foveate-journal/9"):
        Journal(tmp_path, HEADER)


def test_two_audits_cannot_write_to_one_folder(tmp_path: Path) -> None:
    with Journal(tmp_path, HEADER):
        with pytest.raises(InputError, match="another audit is writing"):
            Journal(tmp_path, HEADER)
    Journal(tmp_path, HEADER).close()


def test_a_full_disk_is_an_error_and_not_a_lost_row(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    journal = Journal(tmp_path, HEADER)
    with monkeypatch.context() as patch:
        patch.setattr("foveate.audit.journal.os.write", lambda *_: 5)
        with pytest.raises(StateError, match="full"):
            journal.row(row())
    assert journal.kept.rows == []
    journal.close()


def test_a_reported_row_survives_kill_9(tmp_path: Path) -> None:
    """A process writes rows and says so; it is killed while it goes on."""
    code = (
        "import sys; from pathlib import Path; from foveate.audit.journal import Journal\n"
        "from tests.support.audit_rows import row\n"
        f"journal = Journal(Path({str(tmp_path)!r}), {HEADER!r})\n"
        "for i in range(10**6):\n"
        "    journal.row(row(sequence=i)); print(i, flush=True)\n"
    )
    child = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None
    first = int(child.stdout.readline())
    time.sleep(0.05)
    child.kill()
    told = [first, *(int(x) for x in child.stdout.read().splitlines()[:-1])]
    child.wait()
    kept = {r.sequence for r in read(tmp_path / FILE).rows}
    assert len(told) > 1 and kept >= set(told)
    Journal(tmp_path, HEADER).close()  # the lock died with the process
