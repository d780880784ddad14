"""Bad input at the command line: one line, the right exit code, and nothing expensive before."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from foveate.cli.console import plain
from foveate.core.errors import FoveateError, InputError
from tests.cli.cli_cases import call, last_json, noise, process
from tests.models.tiny_processors import save_folder
from tests.support import tiny

PNG, DIR = "{picture}", "{empty}"
CASES = {
    "missing file": (["run", "no-such.png", "-q", "a ?"], "no file or folder at no-such.png"),
    "empty folder": (["run", DIR, "-q", "a ?"], "holds no pictures"),
    "empty source": (["run", "", "-q", "a ?"], "a source is empty"),
    "one of several": (["run", PNG, "gone.png", "-q", "a ?"], "no file or folder at gone.png"),
    "unknown method": (["run", PNG, "-q", "a ?", "--plan", "divprun:keep=1/4"], "did you mean divprune"),
    "unknown field": (["run", PNG, "-q", "a ?", "--plan", "divprune:kep=1/4"], "did you mean keep"),
    "keep 0": (["run", PNG, "-q", "a ?", "--plan", "divprune:keep=0"], "out of range: 0 < keep <= 1"),
    "keep 2": (["run", PNG, "-q", "a ?", "--plan", "divprune:keep=2"], "out of range: 0 < keep <= 1"),
    "no budget": (["run", PNG, "-q", "a ?", "--plan", "divprune"], "exactly one of keep"),
    "two methods": (
        ["run", PNG, "-q", "a ?", "--plan", "divprune:keep=1/4+pool:keep=1/4"], "one method a stage"
    ),
    "no plan file": (["run", PNG, "-q", "a ?", "--plan", "gone.toml"], "no plan file"),
    "web address": (["run", "https://example.org/a.png", "-q", "a ?"], "--allow-url"),
    "other address": (["run", "ftp://example.org/a.png", "-q", "a ?", "--allow-url"], "ftp: addresses"),
    "file address": (["run", "file:///etc/passwd", "-q", "a ?", "--allow-url"], "file: addresses"),
    "video address": (
        ["run", "https://example.org/a.mp4", "-q", "a ?", "--allow-url"], "read from files only"
    ),
    "no question": (["run", PNG], "no question was asked"),
    "empty question": (["run", PNG, "-q", "  "], "the question is empty"),
    "nothing to compare": (["run", PNG, "-q", "a ?", "--compare"], "--compare needs a --plan"),
    "stream and json": (["run", PNG, "-q", "a ?", "--stream", "--json"], "--stream prints"),
    "stream of two": (["run", PNG, PNG, "-q", "a ?", "--stream"], "serves one request, here are 2"),
    "chat and compare": (
        ["run", PNG, "--chat", "--compare", "--plan", "divprune:keep=1/4"], "--chat goes without"
    ),
    "picture suffix": (["run", PNG, "-q", "a ?", "--picture", "kept.txt"], "must end in .png"),
    "picture is a folder": (["run", PNG, "-q", "a ?", "--picture", "{folder}"], "is a folder"),
    "nothing to draw": (["run", "-q", "a ?", "--picture", "kept.png"], "needs a picture or video"),
    "no tokens": (["run", PNG, "-q", "a ?", "--max-new-tokens", "0"], "--max-new-tokens"),
    "unknown option": (["run", PNG, "-q", "a ?", "--plam", "x"], "No such option"),
    "unknown verb": (["rum", PNG], "No such command"),
    "unknown stage": (["list", "--stage", "token"], "did you mean tokens"),
    "two formats": (["list", "--json", "--markdown"], "exclude each other"),
    "two lists": (["list", "--methods", "--families"], "exclude each other"),
    "explain a folder": (
        ["explain", "{two}", "-q", "a ?", "--plan", "divprune:keep=1/4"], "holds 2 pictures"
    ),
    "explain, unknown method": (["explain", PNG, "-q", "a ?", "--plan", "divprun"], "did you mean"),
    "explain, empty question": (
        ["explain", PNG, "-q", "", "--plan", "divprune:keep=1/4"], "the question is empty"
    ),
    "demo of nothing": (["demo", "--plan", "none"], "compares a plan"),
}  # fmt: skip


@pytest.mark.usefixtures("no_model")
@pytest.mark.parametrize("case", CASES)
def test_it_is_refused_in_one_line_before_a_model_is_loaded(
    case: str, tmp_path: Path, picture: Path
) -> None:
    words, text = CASES[case]
    places = {"picture": picture, "folder": tmp_path / "shots.png"}
    for name in ("empty", "two"):
        places[name] = tmp_path / name
    for folder in (tmp_path / "empty", tmp_path / "two", tmp_path / "shots.png"):
        folder.mkdir()
    for i in range(2):
        noise(tmp_path / "two" / f"{i}.png", 8, 8, i)
    filled = [w.format(**places) for w in words]
    done = call(*filled)
    assert done.exit_code == 2, done.output
    lines = [x for x in done.stderr.splitlines() if not x.startswith("note: ")]
    assert len(lines) == 1 and lines[0].startswith("error: ") and text in lines[0]
    if "--json" not in filled:
        assert done.stdout == ""
        if "--stream" in filled:  # which excludes --json
            return
        done = call(*filled, "--json")
    error = last_json(done.stdout)["error"]
    assert text in error["message"] and error["type"].endswith("Error")


@pytest.mark.parametrize(
    ("damage", "code", "text"),
    [
        ("missing", 2, "no model folder"),
        ("pickle", 2, "pickle format"),
        ("truncated", 2, "truncated"),
        ("text only", 5, "takes no pictures"),
    ],
)
def test_bad_model_folders(
    damage: str, code: int, text: str, tmp_path: Path, picture: Path
) -> None:
    folder = tmp_path / "absent"
    if damage != "missing":
        folder = save_folder("llava", tiny.make_model("llava"), tmp_path)
        weights = folder / "model.safetensors"
        if damage == "pickle":
            torch.save({"a": torch.zeros(2)}, folder / "pytorch_model.bin")
            weights.unlink()
        elif damage == "truncated":
            weights.write_bytes(weights.read_bytes()[:5000])
        else:
            config = json.loads((folder / "config.json").read_text())["text_config"]
            (folder / "config.json").write_text(json.dumps(config))
    done = call("run", picture, "-q", "what ?", "--model", folder, "--json")
    assert done.exit_code == code, done.stderr
    error = last_json(done.stdout)["error"]
    assert text in error["message"]
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1


def test_a_bad_dtype_and_a_picture_above_the_limit(llava: Path, picture: Path) -> None:
    done = call("run", picture, "-q", "what ?", "--model", llava, "--dtype", "floot32")
    assert done.exit_code == 2 and "float32" in done.stderr
    done = call("run", picture, "-q", "what ?", "--model", llava, "--max-pixels", 100, "--json")
    assert done.exit_code == 2
    (result,) = last_json(done.stdout)["results"]
    assert "2400 pixels" in result["error"]["message"] and result["full"]["report"] is None


def test_without_torch_the_error_names_the_extra(picture: Path) -> None:
    code = (
        "import importlib.abc, sys\n"
        "class Absent(importlib.abc.MetaPathFinder):\n"
        "    def find_spec(self, name, path, target=None):\n"
        "        if name.partition('.')[0] in ('torch', 'transformers'):\n"
        "            raise ModuleNotFoundError(name, name=name)\n"
        "sys.meta_path.insert(0, Absent())\n"
        "from foveate.cli import main\n"
        "main()\n"
    )
    done = process("run", picture, "-q", "what ?", "--json", code=code)
    assert done.returncode == 5, done.stderr
    error = last_json(done.stdout)["error"]
    assert error["type"] == "MissingExtraError" and 'pip install "foveate[hf]"' in error["message"]


def test_debug_lets_the_traceback_through(monkeypatch: pytest.MonkeyPatch) -> None:
    assert isinstance(call("run", "gone.png", "-q", "a ?", "--debug").exception, InputError)
    monkeypatch.setenv("FOVEATE_DEBUG", "1")
    assert isinstance(call("run", "gone.png", "-q", "a ?").exception, FoveateError)
    monkeypatch.setenv("FOVEATE_DEBUG", "0")
    assert isinstance(call("run", "gone.png", "-q", "a ?").exception, SystemExit)


def test_a_fault_of_our_own_is_one_line_too(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise ZeroDivisionError("by zero")

    monkeypatch.setattr("foveate.cli.doctor.examine", broken)
    done = call("doctor", "--json")
    assert done.exit_code == 1
    assert last_json(done.stdout)["error"]["type"] == "InternalError"
    assert "ZeroDivisionError: by zero" in done.stderr and "--debug" in done.stderr


def test_nothing_that_steers_a_terminal_gets_through() -> None:
    assert plain("a\x1b[31mb\x07\r\nc\td\x9b") == "a [31mb  \nc\td "
