"""Claims: what a claim test says reaches the table, and nothing counts as shown that was not."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.house.repository import ROOT

pytest.importorskip("transformers")
from bench import claims

TESTS = '''
import pytest

@pytest.mark.claim("F1")
@pytest.mark.parametrize("value", [0.5, 0.25])
def test_small(value, record_property):
    """The difference stays small."""
    record_property("figure", value)
    record_property("bound", 1)
    assert value < 1

@pytest.mark.claim("F2")
@pytest.mark.parametrize("value", [1, 2])
def test_one_case_fails(value):
    assert value == 1

@pytest.mark.claim("F3")
@pytest.mark.skip(reason="no such device")
def test_skipped():
    pass

@pytest.fixture
def broken():
    yield
    raise ValueError

@pytest.mark.claim("F4")
def test_teardown(broken):
    pass

def test_no_claim():
    assert False
'''


@pytest.fixture(scope="module", params=[[], ["-p", "xdist", "-n", "2"]], ids=["alone", "workers"])
def record(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("claims")
    (folder / "test_them.py").write_text(TESTS)
    (folder / "pytest.ini").write_text("[pytest]\nmarkers = claim\n")
    out = folder / "claims.json"
    if request.param:
        pytest.importorskip("xdist")
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "tests.conftest", "-p", "no:cacheprovider", "-q",
         *request.param, "--claims-json", str(out), str(folder)],
        capture_output=True, text=True, cwd=folder, timeout=120, check=False,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert out.is_file(), done.stdout + done.stderr
    return json.loads(out.read_text())


def test_the_record_holds_every_claim_test_and_no_other(record: list[dict[str, Any]]) -> None:
    outcomes = {row["test"].split("::")[1]: row["outcome"] for row in record}
    assert outcomes == {
        "test_small[0.5]": "passed",
        "test_small[0.25]": "passed",
        "test_one_case_fails[1]": "passed",
        "test_one_case_fails[2]": "failed",
        "test_skipped": "skipped",
        "test_teardown": "failed",
    }


def test_lines_of_tests(record: list[dict[str, Any]]) -> None:
    lines = {line.id: line for line in claims.from_tests(record, "a machine", "2026-01-02")}
    one = lines["F1"]
    assert one.holds is True and one.what == "The difference stays small."
    assert one.figure == "0.25 to 0.5, 2 of 2 cases" and one.bound == "1"
    assert (one.machine, one.date) == ("a machine", "2026-01-02")
    assert lines["F2"].holds is False and lines["F2"].figure == "1 of 2 cases"
    assert lines["F3"].holds is None and "no such device" in lines["F3"].figure
    assert lines["F4"].holds is False


def bench(ratio: Any) -> dict[str, Any]:
    rows = [{"method": m, "ratio": 1.0} for m in ("visionzip", "divprune", "uniform")]
    rows += [{"method": "trimtokenator-lc", "ratio": ratio}, {"method": "other", "ratio": 9.0}]
    machine = {"cpu": "a processor", "threads": 1, "date": "2026-01-02"}
    return {"machine": machine, "bound": 1.1, "rows": rows}


@pytest.mark.parametrize(("ratio", "holds"), [(1.1, True), (1.11, False), ("", None), (None, None)])
def test_lines_of_a_benchmark(ratio: Any, holds: bool | None) -> None:
    lines = claims.from_bench("oracle", bench(ratio))
    assert [line.holds for line in lines] == [True, True, holds, True]
    assert {line.id for line in lines} == {"F4"}
    assert lines[0].machine == "a processor, 1 thread" and lines[0].date == "2026-01-02"


def test_a_benchmark_may_state_its_own_claims() -> None:
    own = {"id": "F8", "what": "demo", "figure": 41, "bound": 60, "holds": True}
    lines = claims.from_bench("demo", {"machine": {}, "claims": [own]})
    assert [(x.id, x.figure, x.bound, x.holds) for x in lines] == [("F8", "41", "60", True)]


def test_a_claim_without_evidence_is_in_the_table_and_in_the_exit_code(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    results = tmp_path / "results"
    results.mkdir()
    monkeypatch.setattr(claims, "RESULTS", results)
    tests, page = tmp_path / "claims.json", tmp_path / "claims.md"
    rows = [
        {"test": f"t.py::test_{c}", "claims": [c], "outcome": "passed", "what": "a | b"}
        for c in claims.CLAIMS
    ]
    call = ["--tests-json", str(tests), "--out", str(page), "--full-log", str(tmp_path / "no.log")]
    tests.write_text(json.dumps(rows))
    os.utime(tests, (10**9, 10**9))  # a record tells of the day on which its tests ran
    assert claims.main(call) == 0
    assert page.read_text().count("| yes |") == len(claims.CLAIMS)
    assert page.read_text().count("| 2001-09-09 |") == len(claims.CLAIMS)
    tests.write_text(json.dumps(rows[:-1]))
    assert claims.main(call) == 4 and "not shown" in page.read_text()
    tests.write_text(json.dumps([{**rows[0], "outcome": "failed"}]))
    assert claims.main(call) == 1 and "**no**" in page.read_text()
    ids = [x["id"] for x in json.loads(capsys.readouterr().out.splitlines()[-1])["claims"]]
    assert ids == list(claims.CLAIMS)


def test_records_of_two_days_keep_their_dates(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    results, page = tmp_path / "results", tmp_path / "claims.md"
    results.mkdir()
    monkeypatch.setattr(claims, "RESULTS", results)
    call = ["--out", str(page), "--full-log", str(tmp_path / "no.log")]
    for i, c in enumerate(list(claims.CLAIMS)[:2]):
        record = tmp_path / f"{c}.json"
        row = {"test": f"t.py::test_{c}", "claims": [c], "outcome": "passed", "what": "a"}
        record.write_text(json.dumps([row]))
        os.utime(record, (10**9 + i * 86_400, 10**9 + i * 86_400))
        call += ["--tests-json", str(record)]
    claims.main(call)
    text = page.read_text()
    assert text.count("| 2001-09-09 |") == text.count("| 2001-09-10 |") == 1


@pytest.mark.parametrize(
    ("last", "figure", "holds"),
    [
        ("1288 passed, 3857 deselected, 1 warning in 95.60s (0:01:35)", "1288 passed", True),
        ("2 failed, 10 passed in 1.2s", "2 failed, 10 passed", False),
        ("10 passed, 3 errors in 1.2s", "10 passed, 3 error", False),
        ("12 skipped in 0.1s", "12 skipped", False),
        ("....", "the log has no last line", None),
    ],
)
def test_the_line_of_the_full_product(
    last: str, figure: str, holds: bool | None, tmp_path: Path
) -> None:
    log = tmp_path / "full.log"
    log.write_text(f'# {{"cpu": "a processor", "threads": 1, "date": "2026-01-02"}}\n...\n{last}\n')
    (line,) = claims.from_full(log)
    assert (line.id, line.figure, line.holds) == ("C2", figure, holds)
    assert (line.machine, line.date) == ("a processor, 1 thread", "2026-01-02")
    log.write_text(f"...\n{last}\n")
    assert claims.from_full(log)[0].machine == "not recorded"
