"""A workload inside a whole run: judges, logs, files beside a spec."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from foveate.audit.run import run_audit
from foveate.audit.spec import checked, load_spec
from foveate.core.errors import InputError
from tests.support.planted import PlantedServer, workload_file

JUDGE = """
def halves(item, answer):
    return 0.5 if answer.strip() in item.references else 0.25
"""


def audited(out: Path, workload: Path, one: str, two: str, **fields: Any) -> dict[str, Any]:
    arms = ({"name": "baseline", "url": one}, {"name": "small", "url": two})
    given = {"workload": str(workload), "arms": arms, "loads": ("closed:4",), "blocks": 2}
    spec = checked({**given, "requests": 10, "warmup": 1, **fields}, "the test")
    return run_audit(spec, out)


def test_a_judge_s_scores_are_the_quality(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "half_judge.py").write_text(JUDGE)
    monkeypatch.chdir(tmp_path)
    workload = workload_file(tmp_path / "rows.jsonl", n=10)
    with PlantedServer() as one, PlantedServer(wrong=1.0) as two:
        receipt = audited(
            tmp_path / "out", workload, one.url, two.url, metric="judge", judge="half_judge:halves"
        )
    quality = {arm: receipt["figures"]["arms"][arm]["quality"]["all"] for arm in receipt["arms"]}
    assert quality["baseline"]["score"] == 0.5
    assert quality["small"]["score"] == 0.25


def test_rows_for_a_judge_need_one_before_anything_is_asked(tmp_path: Path) -> None:
    workload = workload_file(tmp_path / "rows.jsonl", n=4)
    with PlantedServer() as one:
        with pytest.raises(InputError, match="4 items have the metric judge.*no judge"):
            audited(tmp_path / "out", workload, one.url, one.url, metric="judge")
        assert one.seen()["requests"] == 0


def test_logs_are_audited_by_loyalty(tmp_path: Path) -> None:
    rows = workload_file(tmp_path / "rows.jsonl", n=20).read_text().splitlines()
    with (tmp_path / "log.jsonl").open("w") as out:
        for line in rows:
            row = json.loads(line)
            parts = [
                {"type": "text", "text": row["question"]},
                {"type": "image_url", "image_url": {"url": row["image"]}},
            ]
            log = {"messages": [{"role": "user", "content": parts}], "response": "anything"}
            out.write(json.dumps(log) + "\n")
    with PlantedServer() as one, PlantedServer(wrong=1.0) as two:
        receipt = audited(tmp_path / "out", tmp_path / "log.jsonl", one.url, two.url)
    assert receipt["workload"]["n"] == 20
    assert any("loyalty" in note for note in receipt["workload"]["notes"])
    drop = receipt["figures"]["pairs"]["small"]["quality"]["all"]
    assert drop["drop"]["estimate"] == 1.0


def test_a_split_of_a_saved_folder_stands_beside_the_spec(tmp_path: Path) -> None:
    (tmp_path / "saved").mkdir()
    spec = tmp_path / "audit.toml"
    spec.write_text(
        'workload = "saved#test"\n[baseline]\nurl = "http://127.0.0.1:9/v1"\n'
        '[[candidate]]\nname = "small"\nurl = "http://127.0.0.1:9/v1"\n'
    )
    assert load_spec(spec).workload == f"{tmp_path / 'saved'}#test"
    spec.write_text(spec.read_text().replace("saved#test", "lab:bar#dev"))
    assert load_spec(spec).workload == "lab:bar#dev"
