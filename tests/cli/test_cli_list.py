"""`foveate list` and `foveate doctor`: complete, quick, and without torch."""

from __future__ import annotations

import json
import re
import tomllib
from pathlib import Path
from typing import Any

import pytest

import foveate
from foveate.cli import doctor, families
from foveate.core import methods
from tests.cli.cli_cases import ROOT, call, last_json, process

ABSENT = (
    "import importlib.abc, sys, time\n"
    "class Absent(importlib.abc.MetaPathFinder):\n"
    "    def find_spec(self, name, path, target=None):\n"
    "        if name.partition('.')[0] in ('torch', 'transformers'):\n"
    "            raise ModuleNotFoundError(name, name=name)\n"
    "sys.meta_path.insert(0, Absent())\n"
    "start = time.process_time()\n"
    "from foveate.cli.app import app\n"
    "code = app(sys.argv[1:], standalone_mode=False)\n"
    "print(time.process_time() - start, code, file=sys.stderr)\n"
)


@pytest.mark.parametrize(
    "words", [["list"], ["list", "--json"], ["list", "--families"], ["doctor"]]
)
def test_it_runs_without_torch_in_under_a_second(words: list[str]) -> None:
    done = process(*words, code=ABSENT)
    assert done.returncode == 0, done.stderr
    seconds, code = done.stderr.splitlines()[-1].split()
    assert int(code) == 0 and done.stdout
    if words[0] == "list":
        assert float(seconds) < 1.0


def test_json_holds_every_method_with_its_settings() -> None:
    rows = {r["name"]: r for r in last_json(call("list", "--json").stdout)["methods"]}
    assert set(rows) == set(methods())
    row = rows["visionzip"]
    assert row["stage"] == "tokens" and row["paper"]["arxiv"] and row["counts"] == "image"
    keep = next(s for s in row["settings"] if s["name"] == "keep")
    assert keep["range"] == "0 < keep <= 1" and keep["default"] is None and keep["help"]
    assert any(n.startswith(("cls", "saliency", "received")) for n in row["needs"])


@pytest.mark.parametrize("stage", ["pixels", "tower", "tokens"])
def test_a_stage_selects(stage: str) -> None:
    rows = last_json(call("list", "--stage", stage, "--json").stdout)["methods"]
    assert [r["name"] for r in rows] == list(methods(stage)) and rows


def test_table_and_markdown_name_every_method() -> None:
    table, page = call("list").stdout, call("list", "--markdown").stdout
    assert page.startswith("# ")
    for name, method in methods().items():
        assert name in table
        (line,) = [x for x in page.splitlines() if x.startswith(f"| `{name}` |")]
        assert method.evidence in line and line.count(" | ") == 7


def test_families_are_shown_from_the_matrix() -> None:
    data = families.load()
    found = last_json(call("list", "--families", "--json").stdout)
    assert found == data and {e["encode"] for e in data["families"].values()} <= set(
        families.STATUS
    )
    page, table = call("list", "--families", "--markdown").stdout, call("list", "--families").stdout
    for name in data["families"]:
        assert page.count(f"\n| {name} |") == 2 and name in table


def matrix(**entries: Any) -> dict[str, Any]:
    return {"transformers": "5.23.0", "families": entries}


def test_a_refused_family_shows_its_reason(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    data = matrix(
        good={"class": "Good", "model_type": "good", "encode": "exact", "reason": "",
              "facts": ["features", "cls"], "merge_before_projector": True, "mrope": True, "video": True,
              "inside": {"layers": "2 full, 4 recurrent", "prefill": "exact", "policy": "exact",
                         "codec": "refused", "continuous": "runs", "reasons": ["codec: a cap | here"]}},
        bad={"class": "Bad", "model_type": "bad", "encode": "refused", "reason": "no features | at all"},
    )  # fmt: skip
    (tmp_path / "support.json").write_text(json.dumps(data))
    monkeypatch.setattr("foveate.cli.families.resources.files", lambda _: tmp_path)
    table, page = call("list", "--families").stdout, call("list", "--families", "--markdown").stdout
    assert "[1] no features | at all" in table and "M-RoPE" in table and "merge" in table
    assert "| bad | `Bad` | refused | - | - | - | - | no features \\| at all |" in page
    assert "1 exact, 0 batch-equals-single, 1 refused" in page
    deep = "| good | 2 full, 4 recurrent | exact | exact | refused | runs | codec: a cap \\| here |"
    assert deep in page and "[2] a cap | here" in table
    assert "| bad | - | not checked | not checked | not checked | not checked |  |" in page


@pytest.mark.parametrize(
    ("content", "text"), [(None, "not in this"), ("{", "damaged"), ("[]", "damaged")]
)
def test_a_missing_or_damaged_matrix_is_said(
    content: str | None, text: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    if content is not None:
        (tmp_path / "support.json").write_text(content)
    monkeypatch.setattr("foveate.cli.families.resources.files", lambda _: tmp_path)
    done = call("list", "--families", "--json")
    assert done.exit_code == 5 and text in last_json(done.stdout)["error"]["message"]


# --- doctor -------------------------------------------------------------------------------------
def test_doctor_says_what_is_here() -> None:
    data = last_json(call("doctor", "--json").stdout)
    assert data["foveate"] == foveate.__version__ and data["methods"] == len(methods())
    assert data["versions"]["numpy"] and data["torch"]["threads"] >= 1
    assert data["torch"]["devices"][0]["name"] == "cpu"
    assert data["cpus"]["usable"] >= 1 and data["memory_bytes"]["total"] > 2**28
    shown = call("doctor").stdout
    assert "lab-nano" in shown and "extra video" in shown


def test_extras_are_those_of_the_project() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    names = {
        extra: tuple(re.split(r"[<>=;\[ ]", d)[0] for d in wanted)
        for extra, wanted in project["optional-dependencies"].items()
        if extra != "dev"
    }
    assert names == doctor.EXTRAS
    assert sorted(d.partition(">")[0] for d in project["dependencies"]) == sorted(doctor.BASE)
    hf = next(d for d in project["optional-dependencies"]["hf"] if d.startswith("transformers"))
    low, high = (
        ".".join(map(str, v)) for v in (doctor.TRANSFORMERS_FROM, doctor.TRANSFORMERS_BELOW)
    )
    assert hf == f"transformers>={low},<{high.removesuffix('.0')}"


CPU_TORCH = {"version": "2.13.0+cpu", "cuda_build": None, "threads": 1, "devices": []}


@pytest.mark.parametrize(
    ("versions", "torch", "text"),
    [
        ({}, None, "torch is not installed"),
        ({}, {"error": "ImportError: broken"}, "does not import: ImportError: broken"),
        ({"torchvision": "0.28.0"}, CPU_TORCH, "beside a CPU build of torch"),
        ({"transformers": "4.57.1"}, CPU_TORCH, "outside the supported range"),
        ({"transformers": "6.0.0"}, CPU_TORCH, "outside the supported range"),
        ({"transformers": "5.31.0"}, CPU_TORCH, "newer than the tested 5.23"),
        ({"transformers": "5.23.4"}, CPU_TORCH, None),
        ({"torchvision": "0.28.0"}, {**CPU_TORCH, "cuda_build": "13.0"}, None),
    ],
)
def test_known_limits(
    versions: dict[str, str], torch: dict[str, Any] | None, text: str | None
) -> None:
    found = doctor.limits({"torchvision": None, "transformers": None, **versions}, torch)
    assert (found == []) if text is None else (len(found) == 1 and text in found[0])


def test_doctor_names_missing_extras_broken_methods_and_a_damaged_model(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    version = doctor.version
    monkeypatch.setattr(doctor, "version", lambda name: None if name == "av" else version(name))
    monkeypatch.setattr("foveate.core.registry.broken", lambda: {"corner": "ImportError: gone"})
    monkeypatch.setattr("foveate.lab.nano.__file__", str(tmp_path / "nano.py"))
    shown = call("doctor").stdout
    assert 'extra video: lacks av; pip install "foveate[video]"' in shown
    assert "third-party method corner could not be loaded: ImportError: gone" in shown
    data = last_json(call("doctor", "--json").stdout)
    assert not data["lab_nano"]["complete"] and "incomplete" in data["lab_nano"]["error"]


# --- the package and the page -------------------------------------------------------------------
def test_the_package_is_lazy_and_its_names_are_there() -> None:
    code = (
        "import sys, foveate\n"
        "assert 'torch' not in sys.modules and 'numpy' not in sys.modules\n"
        "assert set(foveate.__all__) <= set(dir(foveate))\n"
        "assert foveate.Plan.parse('divprune:keep=1/4').methods and 'torch' not in sys.modules\n"
        "import logging; print(type(logging.getLogger('foveate').handlers[0]).__name__)\n"
    )
    done = process(code=code)
    assert done.returncode == 0 and done.stdout == "NullHandler\n", done.stderr
    assert all(getattr(foveate, name) is not None for name in foveate.__all__)
    with pytest.raises(AttributeError, match="nothing_like_it"):
        _ = foveate.nothing_like_it


def test_the_version_is_that_of_the_project() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert foveate.__version__ == project["version"]
    assert call("--version").stdout == f"foveate {project['version']}\n"


def test_the_page_of_the_command_line_is_not_stale() -> None:
    done = process("--check", code=f"import runpy; runpy.run_path({str(ROOT / 'docs' / 'generate.py')!r}, "
                   "run_name='__main__')")  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    page = (ROOT / "docs" / "cli.md").read_text()
    for verb in ("run", "list", "explain", "doctor", "demo"):
        assert f"Usage: foveate {verb}" in page
