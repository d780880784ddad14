"""`foveate run`: the JSON contract, batches with a bad picture, chat and streams."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from tests.cli.cli_cases import call, last_json, noise, process

PLAN = "divprune:keep=1/4"
Q = "what is in the picture ?"


def test_compare_gives_both_answers_and_their_ratio(llava: Path, picture: Path) -> None:
    done = call(
        *("run", picture, "-q", Q, "--model", llava, "--plan", PLAN, "--compare", "--json"),
        *("--max-new-tokens", 3),
    )
    assert done.exit_code == 0, done.stderr
    data = last_json(done.stdout)
    assert set(data) == {"model", "plan", "plan_hash", "results", "picture", "error"}
    (result,) = data["results"]
    full, kept = result["full"], result["plan"]
    assert result["source"] == str(picture) and result["question"] == Q
    assert full["report"]["visual_tokens_kept"] == 16 and full["report"]["identity"]
    assert kept["report"]["visual_tokens_kept"] == 4
    assert kept["report"]["plan_hash"] == data["plan_hash"] != full["report"]["plan_hash"]
    assert result["ratio"]["visual_tokens"] == 0.25
    shares = kept["report"]["prompt_tokens"] / full["report"]["prompt_tokens"]
    assert result["ratio"]["prompt_tokens"] == pytest.approx(shares, abs=1e-4)
    assert 1 <= len(full["token_ids"]) <= 3
    assert result["error"] is data["error"] is data["picture"] is None


def test_compare_prints_a_table(llava: Path, picture: Path) -> None:
    done = call("run", picture, "-q", Q, "--model", llava, "--plan", PLAN, "--compare",
                "--max-new-tokens", 2)  # fmt: skip
    assert done.exit_code == 0, done.stderr
    for word in ("all tokens", PLAN, "visual tokens kept", "prefill", "decode", "ratio", "0.25"):
        assert word in done.stdout


def test_only_what_was_asked_for_runs(llava: Path, picture: Path) -> None:
    for plan, ran, left in (("none", "full", "plan"), (PLAN, "plan", "full")):
        done = call("run", picture, "-q", Q, "--model", llava, "--plan", plan, "--json",
                    "--max-new-tokens", 1)  # fmt: skip
        (result,) = last_json(done.stdout)["results"]
        assert result[ran]["report"] is not None
        assert result[left] is None and result["ratio"] is None


def test_a_folder_is_answered_in_order_and_one_bad_picture_is_reported(
    llava: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "pages"
    folder.mkdir()
    noise(folder / "page10.png", 30, 30, 1)
    noise(folder / "page2.png", 30, 30, 2)
    (folder / "page3.png").write_bytes(b"\x89PNG\r\n\x1a\n" + b"0" * 50)
    (folder / "notes.txt").write_text("no picture")
    words = ("run", folder, "-q", Q, "--model", llava, "--plan", PLAN, "--max-new-tokens", 2)
    done = call(*words, "--json")
    assert done.exit_code == 2
    results = last_json(done.stdout)["results"]
    assert [Path(r["source"]).name for r in results] == ["page2.png", "page3.png", "page10.png"]
    assert [r["error"] is None for r in results] == [True, False, True]
    assert (
        results[1]["error"]["type"] == "MediaError"
        and "page3.png" in results[1]["error"]["message"]
    )
    assert results[0]["plan"]["report"] and results[2]["plan"]["report"]
    alone = call("run", folder / "page10.png", *words[2:], "--json")
    (same,) = last_json(alone.stdout)["results"]
    assert same["plan"]["token_ids"] == results[2]["plan"]["token_ids"]
    shown = call(*words)
    assert shown.exit_code == 2
    assert "error: page3.png" in shown.stderr and "Traceback" not in shown.stderr
    assert {line.partition(":")[0] for line in shown.stdout.splitlines()} >= {
        "page2.png",
        "page10.png",
    }


def test_pictures_together_are_one_request(llava: Path, tmp_path: Path) -> None:
    pictures = [noise(tmp_path / f"{i}.png", 30, 30, i) for i in range(2)]
    done = call("run", *pictures, "--together", "-q", Q, "--model", llava, "--json",
                "--max-new-tokens", 1)  # fmt: skip
    (result,) = last_json(done.stdout)["results"]
    assert result["source"] == [str(p) for p in pictures]
    assert result["full"]["report"]["visual_tokens_in"] == 32


def test_without_a_picture_the_words_alone_are_answered_and_a_note_says_so(llava: Path) -> None:
    done = call("run", "-q", Q, "--model", llava, "--json", "--max-new-tokens", 1)
    assert done.exit_code == 0, done.stderr
    assert "no picture was given" in done.stderr
    assert last_json(done.stdout)["results"][0]["full"]["report"]["visual_tokens_in"] == 0


def test_a_stream_prints_the_same_answer(llava: Path, picture: Path) -> None:
    words = ("run", picture, "-q", Q, "--model", llava, "--plan", PLAN, "--max-new-tokens", 6)
    whole, streamed = call(*words), call(*words, "--stream")
    assert whole.exit_code == streamed.exit_code == 0, streamed.stderr
    assert streamed.stdout.strip() == whole.stdout.strip()
    assert "4 of 16 visual tokens" in streamed.stderr


def test_chat_reads_a_pipe_remembers_turns_and_forgets_failed_ones(
    llava: Path, picture: Path
) -> None:
    stdin = "what ?\n\nis <image> here ?\ncolour ?\n/forget\nwhat ?\n/quit\nnever asked\n"
    done = call("run", picture, "--chat", "--model", llava, "--plan", PLAN, "--json",
                "--max-new-tokens", 2, stdin=stdin)  # fmt: skip
    assert done.exit_code == 2  # the turn with a placeholder
    turns = last_json(done.stdout)["results"]
    assert [t["question"] for t in turns] == ["what ?", "is <image> here ?", "colour ?", "what ?"]
    assert [t["error"] is None for t in turns] == [True, False, True, True]
    prompts = [t["plan"]["report"]["prompt_tokens"] for t in turns if t["error"] is None]
    assert prompts[1] > prompts[0] == prompts[2]
    assert turns[0]["plan"]["token_ids"] == turns[3]["plan"]["token_ids"]


def test_chat_may_begin_with_a_question_and_ends_with_its_input(llava: Path, picture: Path) -> None:
    done = call(
        "run", picture, "--chat", "-q", Q, "--model", llava, "--max-new-tokens", 1, stdin=""
    )
    assert done.exit_code == 0 and "16 of 16 visual tokens" in done.stderr


def test_the_kept_patches_are_written(llava: Path, tmp_path: Path, picture: Path) -> None:
    target = tmp_path / "new folder" / "kept.png"
    done = call("run", picture, "-q", Q, "--model", llava, "--plan", PLAN, "--json",
                "--max-new-tokens", 1, "--picture", target)  # fmt: skip
    assert done.exit_code == 0, done.stderr
    assert last_json(done.stdout)["picture"] == str(target)
    with Image.open(target) as image:
        assert image.size == (360, 240)
        unseen = image.getpixel((10, 120))  # left of the square that the processor cuts out
        assert isinstance(unseen, tuple) and max(unseen) < 80


def test_a_picture_that_cannot_be_written_does_not_cost_the_answer(
    llava: Path, tmp_path: Path, picture: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full_disk(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Image.Image, "save", full_disk)
    done = call("run", picture, "-q", Q, "--model", llava, "--json", "--max-new-tokens", 1,
                "--picture", tmp_path / "kept.png")  # fmt: skip
    data = last_json(done.stdout)
    assert done.exit_code == 2 and data["results"][0]["full"]["report"] and data["picture"] is None
    assert "No space left" in data["error"]["message"]


def test_several_pictures_make_a_sheet(llava: Path, tmp_path: Path) -> None:
    pictures = [noise(tmp_path / f"{i}.png", 40, 40, i) for i in range(4)]
    target = tmp_path / "sheet.png"
    done = call("run", *pictures, "-q", Q, "--model", llava, "--plan", PLAN,
                "--max-new-tokens", 1, "--picture", target)  # fmt: skip
    assert done.exit_code == 0, done.stderr
    with Image.open(target) as image:
        assert image.width > 900 and image.height > 700


def test_a_refusal_of_the_process_keeps_the_contract(llava: Path, picture: Path) -> None:
    done = process(
        *("run", picture, "-q", Q, "--model", llava, "--plan", "cdpruner-clip:keep=1/4", "--json")
    )
    assert done.returncode == 5, done.stderr
    assert last_json(done.stdout)["error"]["type"] == "UnsupportedError"
    assert "Traceback" not in done.stderr
