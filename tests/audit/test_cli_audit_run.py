"""`foveate audit` as a process: interrupted by the keyboard, a server's own counters, the page."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from foveate.audit.journal import FILE, read
from foveate.cli.audit_show import told
from tests.cli.cli_cases import call
from tests.support.planted import PlantedServer, workload_file


@pytest.fixture
def jsonl(tmp_path: Path) -> Path:
    return workload_file(tmp_path / "workload.jsonl", n=12)


def started(words: list[str]) -> subprocess.Popen[str]:
    """The command as a process that hears an interrupt, also where the tests themselves run in the
    background of a shell, which has its children ignore them.
    """
    code = (
        "import runpy, signal; signal.signal(signal.SIGINT, signal.default_int_handler); "
        "runpy.run_module('foveate.cli', run_name='__main__', alter_sys=True)"
    )
    return subprocess.Popen([sys.executable, "-c", code, *words], stderr=subprocess.PIPE, text=True)


def test_an_interrupt_keeps_what_is_finished_and_says_how_to_go_on(
    tmp_path: Path, jsonl: Path
) -> None:
    out = tmp_path / "out"
    with PlantedServer(latency_s=0.05) as one:
        words = ["audit", "run", "--workload", str(jsonl), "--out", str(out), "--baseline", one.url,
                 "--candidate", f"two={one.url}", "--load", "closed:2", "--requests", "12",
                 "--blocks", "4"]  # fmt: skip
        process = started(words)
        while not (out / FILE).exists() or b'"row"' not in (out / FILE).read_bytes():
            assert process.poll() is None
            time.sleep(0.02)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=60)
        assert process.returncode == 130 and "same command" in err, err
        before = read(out / FILE).rows
        assert before and not (out / "receipt.json").exists()
        done = call(*words)
    assert done.exit_code in (0, 4), done.output
    after = read(out / FILE)
    assert after.rows[: len(before)] == before and after.sessions == 2
    assert sum(not r.warmup for r in after.rows) == 2 * 4 * 12


def test_a_servers_own_counters_are_read_and_missing_ones_are_null(
    tmp_path: Path, jsonl: Path
) -> None:
    with PlantedServer() as one, PlantedServer() as two:
        done = call(
            "audit", "run", "--workload", jsonl, "--out", tmp_path / "out", "--baseline", one.url,
            "--candidate", f"two={two.url}", "--pid", f"two={two.pid}", "--load", "closed:2",
            "--requests", 40, "--blocks", 3,
        )  # fmt: skip
    assert done.exit_code in (0, 4), done.output
    receipt = json.loads((tmp_path / "out" / "receipt.json").read_text(encoding="utf-8"))
    seen = {a: v["loads"]["closed:2"] for a, v in receipt["figures"]["arms"].items()}
    assert seen["two"]["cpu_s_per_request"] > 0 and seen["two"]["rss_peak_bytes"] > 2**20
    for name in ("cpu_s_per_request", "rss_peak_bytes", "joules_per_request", "kv_peak_bytes"):
        assert seen["baseline"][name] is None
    assert receipt["arms"]["two"]["measured_process"] and str(two.pid) not in str(receipt["spec"])


def test_a_page_is_written_beside_the_receipt(tmp_path: Path, jsonl: Path) -> None:
    with PlantedServer() as one, PlantedServer(wrong=0.5) as two:
        call("audit", "run", "--workload", jsonl, "--out", tmp_path / "out", "--baseline", one.url,
             "--candidate", f"two={two.url}", "--load", "closed:2", "--blocks", 3)  # fmt: skip
    done = call("audit", "report", tmp_path / "out")
    assert done.exit_code == 0, done.output
    page = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    assert "two" in page and done.stdout.strip().endswith("report.html")
    nothing = call("audit", "report", tmp_path)
    assert nothing.exit_code == 2 and "receipt" in nothing.stderr


def test_without_the_extra_it_is_named_before_anything(
    tmp_path: Path, jsonl: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import importlib.util

    real = importlib.util.find_spec
    monkeypatch.setattr(
        "importlib.util.find_spec", lambda name, *a: None if name == "pyarrow" else real(name, *a)
    )
    words = ("--workload", jsonl, "--plan", "random:keep=1/4", "--out", tmp_path / "out")
    done = call("audit", "run", *words)
    assert done.exit_code == 5 and "foveate[audit]" in done.stderr
    assert not (tmp_path / "out").exists()


def finding(outcome: str, family: str, required: bool, reason: str) -> dict[str, object]:
    return {"outcome": outcome, "family": family, "required": required, "reason": reason}


@pytest.mark.parametrize(
    "decision, shown",
    [
        ("refused", ["broken all", "broken code"]),
        ("undecided", ["open 1", "open 2", "errors: 1 more of this kind, see the receipt"]),
        ("accepted", ["holds"]),
    ],
)
def test_the_reasons_shown_are_those_that_decide(decision: str, shown: list[str]) -> None:
    tests = [
        finding("broken", "quality", True, "broken all"),
        finding("broken", "quality", False, "broken code"),
        finding("open", "quality", False, "open and not asked for"),
        finding("holds", "speed", True, "holds"),
        *(finding("open", "errors", True, f"open {i}") for i in (1, 2, 3)),
    ]
    assert told({"decision": decision, "tests": tests}) == shown


def test_a_finished_audit_keeps_the_receipt_of_the_machine_that_measured(
    tmp_path: Path, jsonl: Path
) -> None:
    out = tmp_path / "out"
    with PlantedServer() as one:
        words = ["audit", "run", "--workload", jsonl, "--out", out, "--baseline", one.url,
                 "--candidate", f"two={one.url}", "--load", "closed:2", "--requests", 4,
                 "--blocks", 2]  # fmt: skip
        first = call(*words)
    text = (out / "receipt.json").read_text(encoding="utf-8")
    again = call(*words)  # nobody is at the address any more
    assert again.exit_code == first.exit_code, again.output
    assert (out / "receipt.json").read_text(encoding="utf-8") == text


def test_an_arm_that_was_given_up_does_not_stop_an_audit_from_going_on(
    tmp_path: Path, jsonl: Path
) -> None:
    out = tmp_path / "out"
    with PlantedServer(latency_s=0.05) as good:
        with PlantedServer(other_model_after=2) as bad:
            words = ["audit", "run", "--workload", str(jsonl), "--out", str(out), "--baseline", good.url,
                     "--candidate", f"bad={bad.url}", "--load", "closed:2", "--requests", "6",
                     "--blocks", "9", "--warmup", "0"]  # fmt: skip
            process = started(words)
            while (
                not (out / FILE).exists() or b"not asked any more" not in (out / FILE).read_bytes()
            ):
                assert process.poll() is None
                time.sleep(0.02)
            process.send_signal(signal.SIGINT)
            process.communicate(timeout=60)
        assert not (out / "receipt.json").exists()
        done = call(*words)  # the broken server is gone altogether
    assert done.exit_code == 3, done.output
    assert (out / "receipt.json").exists()


def test_a_receipt_does_not_get_keys_unless_it_is_said(tmp_path: Path, jsonl: Path) -> None:
    out = tmp_path / "out"
    with PlantedServer() as one:
        call("audit", "run", "--workload", jsonl, "--out", out, "--baseline", one.url, "--candidate",
             f"two={one.url}", "--load", "closed:2", "--requests", 4, "--blocks", 2)  # fmt: skip
        path = out / "receipt.json"
        receipt = json.loads(path.read_text(encoding="utf-8"))
        receipt["spec"]["arms"][1]["api_key_env"] = "HOME"
        path.write_text(json.dumps(receipt), encoding="utf-8")
        refused = call("audit", "rerun", out, "--out", tmp_path / "again")
        sent = call("audit", "rerun", out, "--out", tmp_path / "again", "--send-keys")
    assert refused.exit_code == 2 and "HOME to http://" in refused.output, refused.output
    assert sent.exit_code in (0, 3, 4), sent.output


def test_bounds_that_demand_nothing_are_refused(tmp_path: Path, jsonl: Path) -> None:
    empty = tmp_path / "bounds.toml"
    empty.write_text("# later\n", encoding="utf-8")
    done = call("audit", "run", "--workload", jsonl, "--out", tmp_path / "out", "--baseline",
                "http://127.0.0.1:9/v1", "--candidate", "two=http://127.0.0.1:9/v1",
                "--bounds", empty)  # fmt: skip
    assert done.exit_code == 2 and "is empty" in done.output
