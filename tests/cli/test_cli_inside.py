"""Methods inside the language model on the command line: listed, explained, compared, run."""

from __future__ import annotations

import json
from pathlib import Path

from PIL import Image

from foveate.cli import savings
from foveate.lab import pair_path
from tests.cli.cli_cases import call, last_json, process

STAIRS = "pyramiddrop:at=2 3 5"  # 16 tokens of the tiny model: 16 16 8 4 4 2
MEAN = (16 + 16 + 8 + 4 + 4 + 2) / 6


def test_list_shows_the_stage() -> None:
    data = last_json(call("list", "--stage", "prefill", "--json").stdout)
    rows = {row["name"]: row for row in data["methods"]}
    assert {"fastv", "pyramiddrop", "sparsevlm", "dart", "aim-pagerank", "vscan-lm"} <= set(rows)
    assert {row["stage"] for row in rows.values()} == {"prefill"}
    shown = call("list", "--stage", "prefill").stdout
    assert "at=1/4 1/2" in shown and "pyramiddrop" in shown


def test_explain_draws_and_tells_what_the_layers_had(
    llava: Path, picture: Path, tmp_path: Path
) -> None:
    target = tmp_path / "sheet.png"
    words = ("explain", picture, "-q", "what ?", "--model", llava, "--out", target,
             "--max-new-tokens", 2, "--plan", STAIRS)  # fmt: skip
    done = call(*words)
    assert done.exit_code == 0, done.stderr
    line = next(x for x in done.stdout.splitlines() if x.startswith(STAIRS))
    assert "16 of 16 visual tokens (100%), 8 a layer on average, 2 in the last" in line
    with Image.open(target) as image:
        assert image.width > 2 * 280
    done = call(*words, "--plan", "fastv:layer=9", "--json")
    data = last_json(done.stdout)
    assert [r["error"] is None for r in data["results"]] == [True, True, False]
    assert "layers are 0 to 5" in data["results"][2]["error"]["message"]
    assert done.exit_code == 2
    assert data["results"][1]["report"]["layers"] == [16, 16, 8, 4, 4, 2]
    assert data["results"][1]["report"]["identity"] is False


def test_compare_runs_them_beside_the_controls(llava: Path, picture: Path, tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    done = call("compare", picture, "-q", "what ?", "--model", llava, "--max-new-tokens", 2,
                "--methods", "fastv,dyvte,aim-pagerank", "--plan", STAIRS, "--out", page,
                "--json")  # fmt: skip
    assert done.exit_code == 0, done.stderr
    found = {m["name"]: m for m in last_json(done.stdout)["methods"]}
    assert found["fastv"]["tokens_kept"] == (16 + 16 + 4 * 4) / 6
    assert found[STAIRS]["tokens_kept"] == MEAN and found[STAIRS]["tokens_in"] == 16
    assert found["aim-pagerank"]["error"] is None
    assert "weights" in found["dyvte"]["error"]["message"]
    text = page.read_text(encoding="utf-8")
    assert "go deepest" in text and "pyramiddrop" in text and "dyvte" in text


def test_run_compares_the_layers(llava: Path, picture: Path) -> None:
    done = call("run", picture, "-q", "what ?", "--model", llava, "--max-new-tokens", 2, "--plan",
                STAIRS, "--compare")  # fmt: skip
    assert done.exit_code == 0, done.stderr
    assert "visual tokens a layer" in done.stdout
    done = call("run", picture, "-q", "what ?", "--model", llava, "--plan", "sparsevlm:at=9 10 11")
    assert done.exit_code == 2 and "layers are 0 to 5" in done.stderr


def test_explain_shows_what_each_stage_saved(llava: Path, picture: Path, tmp_path: Path) -> None:
    """A row a stage in the table, the same figures in the JSON."""
    plan = "divprune:keep=1/2+fastv:layer=2,keep=1/2"
    words = ("explain", picture, "-q", "what ?", "--model", llava, "--out", tmp_path / "sheet.png",
             "--max-new-tokens", 2, "--plan", plan)  # fmt: skip
    done = call(*words)
    assert done.exit_code == 0, done.stderr
    lines = done.stdout.splitlines()
    assert any(x.startswith("saved by divprune") for x in lines), done.stdout
    rows = [x for x in lines if "tokens " in x and "%" in x or "prefill " in x and "%" in x]
    assert len([x for x in rows if "│" in x]) == 2
    data = last_json(call(*words, "--json").stdout)
    report = data["results"][1]["report"]
    assert [s["stage"] for s in report["saved"]] == ["tokens", "prefill"]
    assert all(s["prefill_flops"] > 0 and s["kv_bytes"] > 0 for s in report["saved"])
    assert sum(report["layer_kv_bytes"]) == report["kv_bytes"]
    assert data["results"][0]["report"]["saved"] == []


def test_figures_are_short() -> None:
    assert savings.cell(0, 0.0) == "-" and savings.cell(-2048, None) == "-2.05 k"
    assert savings.cell(1_270_000_000, 0.318) == "1.27 G (32%)" and savings.short(999) == "999"


def test_a_guide_scores_the_tokens_of_the_model(picture: Path) -> None:
    """lab-pair, the bundled sibling, guides lab-nano; by name and as a folder."""
    words = ("run", picture, "-q", "what shape is red ?", "--plan", "sgl:keep=1/2", "--json")
    for guide in ("lab-pair", pair_path()):
        done = call(*words, "--guide", guide)
        assert done.exit_code == 0, done.stderr
        (result,) = last_json(done.stdout)["results"]
        report = result["plan"]["report"]
        assert report["ms"]["guide"] > 0 and report["layers"][-1] < report["layers"][0]
        assert any("a guide answered first" in n for n in report["notes"])
    done = call("run", picture, "-q", "what shape is red ?", "--guide", "lab-pair", "--json",
                "--plan", "sgl:keep=1/2,exit=0")  # fmt: skip
    (result,) = last_json(done.stdout)["results"]
    assert any("the guide's answer stands" in n for n in result["plan"]["report"]["notes"])


def test_a_guide_that_splits_pictures_otherwise_is_refused(llava: Path, picture: Path) -> None:
    done = call("run", picture, "-q", "what ?", "--plan", "sgl:keep=1/2", "--guide", llava)
    assert done.exit_code == 5 and "split pictures" in done.stderr


def test_a_guide_and_a_plan_that_follows_one_come_together(picture: Path, no_model: None) -> None:
    asked = ("run", picture, "-q", "what ?")
    done = call(*asked, "--plan", "sgl:keep=1/2")
    assert done.exit_code == 5 and "--guide" in done.stderr
    done = call(*asked, "--plan", "fastv:keep=1/2", "--guide", "lab-pair")
    assert done.exit_code == 2 and "sgl" in done.stderr


def test_a_guide_that_is_nowhere_is_refused_before_a_model_starts(
    picture: Path, tmp_path: Path
) -> None:
    asked = ("run", picture, "-q", "what ?", "--plan", "sgl:keep=1/2", "--guide")
    for guide in (tmp_path, " "):
        done = call(*asked, guide)
        assert done.exit_code in (2, 5) and "Traceback" not in done.stderr and done.stderr


def _scores(path: Path) -> Path:
    path.write_text(json.dumps({"scores": [[1.0] * 4] * 6}), encoding="utf-8")
    return path


def test_a_plan_may_end_with_the_name_of_a_json_file(
    llava: Path, picture: Path, tmp_path: Path
) -> None:
    """It was taken for a plan's file, so that the scores of heads could not be named."""
    heads = _scores(tmp_path / "heads.json")
    done = call("run", picture, "-q", "what ?", "--model", llava, "--max-new-tokens", 2,
                "--plan", f"sparsemm:keep=1/2,heads={heads}")  # fmt: skip
    assert done.exit_code == 0, done.stderr
    done = call("run", picture, "-q", "what ?", "--plan", "absent.json")
    assert done.exit_code == 2 and "no plan file" in done.stderr


def test_an_empty_plan_is_refused(picture: Path, no_model: None) -> None:
    """It ran with all tokens, as a variable that was never set does not mean."""
    done = call("run", picture, "-q", "what ?", "--plan", " ")
    assert done.exit_code == 2 and "none" in done.stderr


def test_what_a_cache_policy_kept_is_said(llava: Path, picture: Path, tmp_path: Path) -> None:
    words = (picture, "-q", "what ?", "--model", llava, "--max-new-tokens", 2)
    plan = ("--plan", "snapkv:keep=1/2,window=4")
    done = call("run", *words, *plan)
    assert "KV cache" in done.stderr and " of " in done.stderr, done.stderr
    done = call("explain", *words, *plan, "--out", tmp_path / "sheet.png")
    assert "KV cache" in done.stdout
    done = call("run", *words)
    assert "KV cache" not in done.stderr


def test_ratios_count_tokens_that_leave_inside(llava: Path, picture: Path) -> None:
    done = call("run", picture, "-q", "what ?", "--model", llava, "--max-new-tokens", 2, "--plan",
                STAIRS, "--compare", "--json")  # fmt: skip
    (result,) = last_json(done.stdout)["results"]
    assert result["ratio"]["tokens_by_layer"] == round(MEAN / 16, 4)


def test_compare_tells_the_bytes_of_the_cache(llava: Path, picture: Path, tmp_path: Path) -> None:
    words = ("compare", picture, "-q", "what ?", "--model", llava, "--max-new-tokens", 2,
             "--methods", "fastv", "--plan", "snapkv:keep=1/2,window=4", "--out",
             tmp_path / "page.html")  # fmt: skip
    found = {m["name"]: m for m in last_json(call(*words, "--json").stdout)["methods"]}
    whole, less = (found[n]["kv_bytes"] for n in ("all tokens", "snapkv:keep=1/2,window=4"))
    assert 0 < less < whole and "KV kB" in (tmp_path / "page.html").read_text(encoding="utf-8")
    assert " KV " in call(*words).stdout


def test_one_plan_without_its_weights_does_not_cost_the_others_their_panels(
    llava: Path, picture: Path, tmp_path: Path
) -> None:
    absent = "dyvte:weights=absent.safetensors"
    words = (picture, "-q", "what ?", "--model", llava, "--max-new-tokens", 2)
    target = tmp_path / "sheet.png"
    done = call("explain", *words, "--plan", "fastv", "--plan", absent, "--out", target)
    assert done.exit_code == 2 and target.is_file() and "absent.safetensors" in done.stderr
    page = tmp_path / "page.html"
    done = call("compare", *words, "--methods", "fastv", "--plan", absent, "--out", page, "--json")
    assert done.exit_code == 0 and page.is_file(), done.stderr
    found = {m["name"]: m for m in last_json(done.stdout)["methods"]}
    assert "absent.safetensors" in found[absent]["error"]["message"]


def test_explain_and_compare_follow_a_guide(picture: Path, tmp_path: Path) -> None:
    words = (picture, "-q", "what shape is red ?", "--max-new-tokens", 4, "--guide", "lab-pair")
    done = call("explain", *words, "--plan", "sgl", "--out", tmp_path / "sheet.png", "--json")
    assert done.exit_code == 0, done.stderr
    assert last_json(done.stdout)["results"][1]["report"]["ms"]["guide"] > 0
    done = call("compare", *words, "--methods", "sgl", "--out", tmp_path / "page.html", "--json")
    found = {m["name"]: m for m in last_json(done.stdout)["methods"]}
    assert found["sgl"]["error"] is None and found["sgl"]["ms"]["guide"] > 0
    assert "guide ms" in (tmp_path / "page.html").read_text(encoding="utf-8")
    done = call("compare", *words, "--methods", "sgl", "--out", tmp_path / "page.html")
    assert "guide" in done.stdout
    done = call("run", *words, "--plan", "sgl", "--compare")
    assert any("guide" in x and " ms" in x for x in done.stdout.splitlines())


def test_without_a_guide_explain_says_how_to_name_one(picture: Path, tmp_path: Path) -> None:
    words = (picture, "-q", "what ?", "--max-new-tokens", 2)
    done = call("explain", *words, "--plan", "sgl", "--out", tmp_path / "sheet.png")
    assert done.exit_code == 5 and "--guide" in done.stderr
    done = call("explain", *words, "--plan", "fastv", "--guide", "lab-pair")
    assert done.exit_code == 2 and "--guide is for plans" in done.stderr
    done = call("compare", *words, "--methods", "fastv", "--guide", "lab-pair")
    assert done.exit_code == 2 and "--guide is for plans" in done.stderr


def test_names_and_counts_stay_whole_in_the_narrow_table(llava: Path, picture: Path) -> None:
    """80 columns, as in a pipe: `pyramiddrop` and `196 / 196` were cut in two."""
    done = call("compare", picture, "-q", "what ?", "--model", llava, "--max-new-tokens", 2,
                "--methods", "pyramiddrop,aim-pagerank", "--out", picture.with_suffix(".html"))  # fmt: skip
    assert all(f" {n} " in done.stdout for n in ("pyramiddrop", "aim-pagerank", "downscale"))
    table = done.stdout.splitlines()[:-1]  # the last line names the page
    assert " 16/16 " in done.stdout and max(map(len, table)) <= 80


def test_list_tells_the_budget_of_a_cache() -> None:
    shown = " ".join(call("list", "--stage", "memory").stdout.split())
    assert "keep, entries, bytes" in shown and "(any)" not in shown


def test_the_probe_of_heads_answers_bad_input_in_one_line(tmp_path: Path) -> None:
    for words in (
        ("--out", tmp_path / "x.txt"),
        ("--out", tmp_path / "absent" / "x.json", "--n", 1),
        ("--out", tmp_path / "x.json", "--n", 0),
        ("--out", tmp_path / "x.json", "--model", tmp_path / "absent"),
    ):
        code = "import sys; from foveate.lab import head_probe; sys.exit(head_probe.main())"
        done = process(*words, code=code)
        assert done.returncode == 2 and "Traceback" not in done.stderr, done.stderr
        assert done.stderr.splitlines()[-1].startswith("error: "), done.stderr
        assert not list(tmp_path.iterdir())
