"""The auditor end to end: two endpoints, one verdict, one receipt that verifies."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.support.planted import PlantedServer, workload_file
from tests.support.terminal import foveate


@pytest.fixture
def jsonl(tmp_path: Path) -> Path:
    return workload_file(tmp_path / "workload.jsonl", n=60)


def audit(folder: Path, jsonl: Path, baseline: str, candidate: str, bounds: str) -> tuple[int, str]:
    (folder / "bounds.toml").write_text(bounds, encoding="utf-8")
    done = foveate(
        "audit", "run",
        "--workload", str(jsonl),
        "--baseline", baseline,
        "--candidate", f"small={candidate}",
        "--load", "closed:4",
        "--blocks", "6",
        "--requests", "20",
        "--bounds", str(folder / "bounds.toml"),
        "--out", str(folder / "out"),
    )  # fmt: skip
    return done.code, done.out + done.err


def test_a_faster_endpoint_that_answers_alike_is_accepted(tmp_path: Path, jsonl: Path) -> None:
    with PlantedServer(latency_s=0.04) as slow, PlantedServer(latency_s=0.01) as fast:
        bounds = (
            "max_quality_drop = 0.10\n[[min_speedup]]\nmetric = 'e2e'\nat = 'closed:4'\nmin = 1.2\n"
        )
        code, text = audit(tmp_path, jsonl, slow.url, fast.url, bounds)
    assert code == 0, text
    receipt = json.loads((tmp_path / "out" / "receipt.json").read_text())
    assert receipt["verdicts"]["small"]["decision"] == "accepted"
    verified = foveate("audit", "verify", str(tmp_path / "out"))
    assert verified.code == 0, verified.err


def test_a_faster_endpoint_that_answers_wrong_is_refused(tmp_path: Path, jsonl: Path) -> None:
    with PlantedServer(latency_s=0.02) as slow, PlantedServer(latency_s=0.01, wrong=0.5) as fast:
        code, text = audit(tmp_path, jsonl, slow.url, fast.url, "max_quality_drop = 0.02\n")
    assert code == 3, text
    assert "quality" in text


def test_an_edited_receipt_names_the_figure(tmp_path: Path, jsonl: Path) -> None:
    with PlantedServer(latency_s=0.02) as slow, PlantedServer(latency_s=0.01) as fast:
        audit(tmp_path, jsonl, slow.url, fast.url, "max_quality_drop = 0.10\n")
    path = tmp_path / "out" / "receipt.json"
    receipt = json.loads(path.read_text())
    receipt["figures"]["arms"]["small"]["quality"]["all"]["score"] = 0.999
    path.write_text(json.dumps(receipt))
    done = foveate("audit", "verify", str(tmp_path / "out"))
    assert done.code != 0
    assert "arms.small.quality.all.score" in done.out + done.err
