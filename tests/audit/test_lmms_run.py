"""lmms-eval's own command line with our model class, on a task of lab pictures: really run where
lmms-eval is installed, in a process of its own, without a network.
"""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("transformers")

from foveate.engine.engine import Engine
from foveate.lab import nano_path, samples
from foveate.lab.reader import request_of

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("lmms_eval") is None or importlib.util.find_spec("loguru") is None,
    reason="lmms-eval is not installed: pip install lmms-eval (it is no extra of this package)",
)
FAMILIES, EACH = ("shape", "code"), 6
UTILS = """
from PIL import Image

def visual(doc):
    return [Image.open(doc["picture"]).convert("RGB")]

def text(doc, lmms_eval_specific_kwargs=None):
    return doc["question"]

def results(doc, answers):
    return {"right": float(answers[0] == doc["answer"])}
"""
TASK = """
task: foveate_lab
dataset_path: json
dataset_kwargs: {data_files: {test: ROWS}}
test_split: test
output_type: generate_until
doc_to_visual: !function utils.visual
doc_to_text: !function utils.text
doc_to_target: answer
generation_kwargs: {max_new_tokens: 8, temperature: 0, do_sample: false}
process_results: !function utils.results
metric_list: [{metric: right, aggregation: mean, higher_is_better: true}]
"""


@pytest.fixture(scope="module")
def task(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("task")
    rows = []
    for family in FAMILIES:
        for i, sample in enumerate(samples(family, "test", EACH, 0, 0)):
            picture = folder / f"{family}-{i}.png"
            sample.images[0].save(picture)
            row = {"picture": str(picture), "question": sample.question, "answer": sample.answer}
            rows.append(json.dumps(row))
    (folder / "rows.jsonl").write_text("\n".join(rows) + "\n", "utf-8")
    (folder / "utils.py").write_text(UTILS, "utf-8")
    (folder / "lab.yaml").write_text(TASK.replace("ROWS", str(folder / "rows.jsonl")), "utf-8")
    return folder


def run(task: Path, out: Path, plan: str, *more: str) -> subprocess.CompletedProcess[str]:
    args = [sys.executable, "-m", "lmms_eval", "--model", "foveate"]
    args += ["--model_args", f"pretrained={nano_path()},plan={plan}", "--batch_size", "4"]
    args += ["--tasks", "foveate_lab", "--include_path", str(task), "--log_samples", *more]
    env = {**os.environ, "HF_HOME": str(out / "hf"), "OMP_NUM_THREADS": "1"}
    env |= {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}
    return subprocess.run(
        [*args, "--output_path", str(out)], env=env, cwd=out, capture_output=True, text=True
    )


def written(out: Path, ending: str) -> list[dict[str, Any]]:
    (file,) = out.rglob(f"*{ending}")
    text = file.read_text("utf-8")
    return [json.loads(text)] if ending.endswith(".json") else [*map(json.loads, text.splitlines())]


def test_the_class_is_found_by_its_entry_point() -> None:
    names = {entry.name: entry.value for entry in entry_points(group="lmms_eval.models")}
    assert names.get("foveate") == "foveate.audit.lmms:manifest", "reinstall foveate"


@pytest.mark.parametrize("plan", ["visionzip:keep=1/4", '"random:keep=1/2+fastv:layer=2,keep=1/4"'])
def test_a_task_gives_the_engines_answers_and_their_score(
    task: Path, tmp_path: Path, plan: str
) -> None:
    done = run(task, tmp_path, plan)
    rows = written(tmp_path, "_samples_foveate_lab.jsonl")
    tested = [s for family in FAMILIES for s in samples(family, "test", EACH, 0, 0)]
    engine = Engine.from_pretrained(nano_path())
    answers = engine.generate(
        [request_of(sample) for sample in tested], plan.strip('"'), max_new_tokens=8
    )
    assert [row["filtered_resps"] for row in rows] == [answer.text for answer in answers]
    for row, answer in zip(rows, answers, strict=True):
        assert answer.report is not None
        (counts,) = row["token_counts"]
        assert counts == {
            "input_tokens": answer.report.prompt_tokens,
            "output_tokens": len(answer.token_ids),
        }
    right = sum(a.text == s.answer for a, s in zip(answers, tested, strict=True))
    (results,) = written(tmp_path, "_results.json")
    assert results["results"]["foveate_lab"]["right,none"] == pytest.approx(right / len(tested))
    assert done.returncode == 0 and "avg_visual_tokens_kept" in done.stdout


def test_a_plan_that_is_wrong_says_so_and_writes_no_result(task: Path, tmp_path: Path) -> None:
    done = run(task, tmp_path, "visionsip:keep=1/4")
    assert "did you mean" in done.stdout + done.stderr
    assert not list(tmp_path.rglob("*_results.json"))
