"""`foveate lab`: tables, JSON and files of an evaluation, sheets, and what is refused before."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from PIL import Image

from foveate.lab import FAMILIES, samples
from foveate.lab.sheet import picture, sheet
from tests.cli.cli_cases import call, last_json, process

QUARTER = "visionzip:keep=1/4"
EVAL = ("lab", "eval", "--n", 3, "--max-new-tokens", 2, "--family", "shape", "--family", "which")


def test_eval_prints_one_json_object(llava: Path) -> None:
    done = call(*EVAL, "--model", llava, "--plan", QUARTER, "--json")
    assert done.exit_code == 0, done.output
    data = last_json(done.stdout)
    assert (data["n"], data["split"], data["confidence"]) == (3, "test", 0.95)
    roles = {run["name"]: run["role"] for run in data["runs"]}
    assert roles == {
        "all tokens": "full", QUARTER: "plan", "random:keep=1/4": "control",
        "pool:keep=1/4": "control", "downscale:keep=1/4": "control",
    }  # fmt: skip
    assert {row["family"] for row in data["rows"]} == {"shape", "which"}
    full, plan = data["rows"][:2]
    assert full["against_full"] is None and full["evidence_kept"] == 1.0
    assert plan["visual_tokens_kept"] == 4 and plan["visual_tokens_in"] == 16
    assert 0 <= plan["low"] <= plan["accuracy"] <= plan["high"] <= 1
    assert set(plan["against_full"]) >= {"p", "p_holm", "significant", "difference"}
    assert {row["control"] for row in data["against_controls"]} <= set(roles)
    assert str(llava) not in done.stdout


def test_eval_says_intervals_and_significance(llava: Path) -> None:
    done = call(*EVAL, "--model", llava, "--plan", QUARTER)
    assert done.exit_code == 0, done.output
    assert "95 % Wilson intervals" in done.stdout
    assert f"{QUARTER} against all tokens, significant: none" in done.stdout
    for control in ("random:keep=1/4", "pool:keep=1/4"):
        assert control in done.stdout
    lines = done.stdout.splitlines()
    table = lines[: next(i for i, x in enumerate(lines) if "questions a line" in x)]
    assert len(table) > 15 and max(map(len, table)) <= 80


def test_eval_without_a_plan_is_a_table_of_accuracy(llava: Path) -> None:
    done = call(*EVAL, "--model", llava)
    assert done.exit_code == 0, done.output
    assert "prior" in done.stdout and "random" not in done.stdout


def test_eval_writes_its_folder(llava: Path, tmp_path: Path) -> None:
    out = tmp_path / "new" / "results"
    done = call(*EVAL, "--model", llava, "--plan", QUARTER, "--out", out, "--json")
    assert done.exit_code == 0, done.output
    data = json.loads((out / "results.json").read_text())
    assert data["rows"] == last_json(done.stdout)["rows"]
    assert len(data["answers"]) == 6 and QUARTER in data["answers"][0]["answers"]
    table = (out / "table.md").read_text()
    assert f"| shape | {QUARTER} | 4 of 16 |" in table and "95 % Wilson" in table
    with Image.open(out / "accuracy.png") as picture:
        assert picture.width > 800
        # Black for all tokens, blue for the plan: both are drawn.
        colours = {colour for _, colour in picture.convert("RGB").getcolors(1 << 20) or []}
        assert {(17, 17, 17), (11, 111, 184)} <= colours


def test_results_that_cannot_be_written_are_an_input_error(llava: Path, tmp_path: Path) -> None:
    (tmp_path / "table.md").mkdir()
    done = call(*EVAL, "--model", llava, "--out", tmp_path, "--json")
    assert done.exit_code == 2
    assert "cannot be written to" in last_json(done.stdout)["error"]["message"]


def test_a_plan_that_the_model_cannot_serve_leaves_with_5(llava: Path) -> None:
    done = call(*EVAL, "--model", llava, "--plan", "cdpruner-clip:keep=1/4", "--json")
    assert done.exit_code == 5
    assert last_json(done.stdout)["error"]["type"] == "UnsupportedError"
    both = call(*EVAL, "--model", llava, "--plan", "cdpruner-clip:keep=1/4", "--plan", QUARTER)
    assert both.exit_code == 0
    assert "cdpruner-clip:keep=1/4: not on this model" in both.stderr


# --- sheets --------------------------------------------------------------------------------------
def test_a_sheet_shows_evidence_boxes_without_a_model(tmp_path: Path) -> None:
    out = tmp_path / "sheet.png"
    done = call("lab", "sheet", "--family", "sum", "--family", "form", "--level", 1, "--n", 2,
                "--out", out, "--json")  # fmt: skip
    assert done.exit_code == 0, done.output
    size = last_json(done.stdout)
    with Image.open(out) as page:
        assert page.size == (size["width"], size["height"])
        marks = sum(
            n for n, c in page.convert("RGB").getcolors(1 << 20) or [] if c == (255, 0, 200)
        )
    assert marks > 500


def test_a_sheet_needs_no_torch(tmp_path: Path) -> None:
    code = (
        "import sys; sys.modules['torch'] = sys.modules['transformers'] = None\n"
        "from foveate.cli import main; main()"
    )
    done = process("lab", "sheet", "--family", "shape", "--out", tmp_path / "s.png", code=code)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "s.png").is_file()


def test_a_sample_on_a_sheet_is_its_picture_enlarged_with_boxes_around() -> None:
    (sample,) = samples("shape", "test", 1, seed=2)
    shown = picture(sample)
    assert shown.size == (224, 224)
    plain = sample.image.resize(shown.size, Image.Resampling.NEAREST)
    left, top, right, bottom = (2 * edge for edge in sample.boxes[0])
    inside = (left, top, right, bottom)
    assert shown.crop(inside).tobytes() == plain.crop(inside).tobytes()
    assert shown.getpixel((left - 1, top)) == (255, 0, 200) == shown.getpixel((right, top))
    several = picture(samples("sum", "test", 1)[0])
    assert several.width == 224 * len(samples("sum", "test", 1)[0].images) + 6


def test_sheets_of_every_family_hold_their_rows(tmp_path: Path) -> None:
    one = sheet(["shape"], n=1)
    every = sheet(n=1)
    assert every.height > one.height * len(FAMILIES) * 0.5
    assert every.width <= 1848 + 24


# --- refused before a model is loaded ------------------------------------------------------------
CASES = {
    "no family": (["eval", "--family", ""], "no family is named"),
    "unknown family": (["eval", "--family", "cod"], "did you mean code"),
    "no samples": (["eval", "--n", "0"], "n must be 1 or more, got 0"),
    "unknown level": (["eval", "--family", "shape", "--level", "2"], "no level of [2] exists for shape"),
    "negative level": (["eval", "--level", "-1"], "--level"),
    "unknown split": (["eval", "--split", "tets"], "did you mean test"),
    "unknown method": (["eval", "--plan", "visionzp:keep=1/4"], "did you mean visionzip"),
    "plan out of range": (["eval", "--plan", "visionzip:keep=2"], "0 < keep <= 1"),
    "plan without budget": (["eval", "--plan", "visionzip"], "exactly one of keep"),
    "no plan file": (["eval", "--plan", "gone.toml"], "no plan file at gone.toml"),
    "plan that drops nothing": (["eval", "--plan", "none"], "drops nothing"),
    "out is a file": (["eval", "--out", "{file}"], "is a file; give a folder"),
    "out below a file": (["eval", "--out", "{file}/deep"], "cannot be made"),
    "out cannot be written": (["eval", "--out", "/proc/self"], "cannot be written"),
    "sheet without out": (["sheet"], "--out"),
    "sheet of no family": (["sheet", "--family", "", "--out", "s.png"], "no family is named"),
    "sheet of nothing": (["sheet", "--n", "0", "--out", "{folder}/s.png"], "n must be 1 or more"),
    "sheet suffix": (["sheet", "--out", "s.txt"], "must end in .png"),
    "sheet below a file": (["sheet", "--out", "{file}/s.png"], "cannot be made"),
    "unknown verb": (["evil"], "No such command"),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_it_is_refused_in_one_line(
    case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("foveate.cli.lab.open_engine", lambda *_: pytest.fail("a model was loaded"))
    words, text = CASES[case]
    (tmp_path / "file").write_text("x")
    done = call(
        "lab", *[w.format(file=tmp_path / "file", folder=tmp_path) for w in words], "--json"
    )
    assert done.exit_code == 2, done.output
    assert done.stderr.startswith("error: ") and len(done.stderr.splitlines()) == 1
    assert text in done.stderr
    assert text in last_json(done.stdout)["error"]["message"]


@pytest.mark.parametrize(
    ("fault", "code", "text"),
    [
        ("absent", 2, "no model folder at"),
        ("config", 2, "has no config.json"),
        ("damaged config", 2, "is not readable JSON"),
        ("text model", 5, "takes no pictures"),
        ("weights", 2, "has no *.safetensors"),
        ("cut", 2, "is truncated"),
    ],
)
def test_a_folder_that_is_no_vision_language_model(
    llava: Path, tmp_path: Path, fault: str, code: int, text: str
) -> None:
    folder = tmp_path / "model"
    if fault != "absent":
        folder.mkdir()
        for file in llava.iterdir():
            (folder / file.name).write_bytes(file.read_bytes())
    config, weights = folder / "config.json", folder / "model.safetensors"
    if fault == "config":
        config.unlink()
    elif fault == "damaged config":
        config.write_text("{")
    elif fault == "text model":
        config.write_text(
            json.dumps({"model_type": "llama", "architectures": ["LlamaForCausalLM"]})
        )
    elif fault == "weights":
        weights.unlink()
    elif fault == "cut":
        weights.write_bytes(weights.read_bytes()[:-10])
    done = call("lab", "eval", "--model", folder, "--family", "shape", "--n", 1, "--json")
    assert done.exit_code == code, done.output
    assert text in done.stderr and len(done.stderr.splitlines()) == 1
    assert text in last_json(done.stdout)["error"]["message"]


def test_compare_shows_all_pictures_of_a_rendered_question(
    llava: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rendered questions of `foveate compare` carry all their pictures, and need no outside data."""
    monkeypatch.setitem(sys.modules, "easy_vqa", None)
    words = ("compare", "--rendered", len(FAMILIES), "--methods", "divprune", "--model", llava)
    done = call(
        *words, "--out", tmp_path / "page.html", "--draw", 0, "--json", "--max-new-tokens", 1
    )
    assert done.exit_code == 0, done.output
    found = last_json(done.stdout)["results"]
    (which,) = (r for r in found if r["source"].startswith("rendered:which"))
    segments = which["answers"]["all tokens"]["report"]["segments"]
    assert len(segments) == len(samples("which", "test", 1)[0].images) > 1
    assert not [r for r in found if "easyvqa" in r["source"]]
