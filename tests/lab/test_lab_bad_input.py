"""The lab's training files when they are wrong: absent, cut short, or a disk that is full for real."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from foveate.core.errors import CheckpointError, SettingError
from foveate.lab import card, checkpoint
from foveate.lab.export import export, load_run
from foveate.lab.recipe import load

STATE: dict[str, Any] = {
    "stage": 0, "step": 1, "elapsed_s": 1.0, "total_s": 1.0, "heads": {}, "optimiser": None, "recipe": {},
}  # fmt: skip


def _state(value: float) -> checkpoint.State:
    return checkpoint.State(model={"weight": torch.full((200, 200), value)}, **STATE)


def test_a_full_disk_in_the_middle_of_writing_keeps_the_old_checkpoint(tmp_path: Path) -> None:
    """The write itself fails after some kilobytes, as on a full disk: a limit of the file size."""
    checkpoint.save(tmp_path, _state(1.0))
    before = (tmp_path / checkpoint.NAME).read_bytes()
    code = (
        "import resource, sys; sys.path.insert(0, sys.argv[1])\n"
        "from pathlib import Path\n"
        "from test_lab_bad_input import _state\n"
        "from foveate.core.errors import CheckpointError\n"
        "from foveate.lab import checkpoint\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (40_000, 40_000))\n"
        "try:\n"
        "    checkpoint.save(Path(sys.argv[2]), _state(2.0))\n"
        "except CheckpointError as error:\n"
        "    print(error)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(Path(__file__).parent), str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        check=False,
    )
    assert "could not be written" in done.stdout, done.stdout + done.stderr
    assert "the one before is kept" in done.stdout
    assert (tmp_path / checkpoint.NAME).read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == [checkpoint.NAME]
    found = checkpoint.load(tmp_path)
    assert found is not None and float(found.model["weight"][0, 0]) == 1.0


def test_a_run_without_a_checkpoint_cannot_be_exported(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(CheckpointError, match=f"holds no {checkpoint.NAME}: train first"):
        load_run(tmp_path)
    words = ["--run", str(tmp_path / "none"), "--model", str(tmp_path / "model")]
    assert card.main(words) == CheckpointError.exit_code == 2
    assert "train first" in capsys.readouterr().err
    assert not (tmp_path / "model").exists()


@pytest.mark.parametrize("left", [0, 100, 20_000])
def test_a_checkpoint_that_is_cut_short_is_not_exported(tmp_path: Path, left: int) -> None:
    checkpoint.save(tmp_path, _state(1.0))
    file = tmp_path / checkpoint.NAME
    file.write_bytes(file.read_bytes()[:left])
    with pytest.raises(CheckpointError, match="truncated or damaged"):
        export(tmp_path, tmp_path / "model")
    assert not (tmp_path / "model").exists()


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("seed = -1\n[[stages]]\nname = 'a'\nsteps = 1\nmix = {shapes = 1.0}",
         "seed is -1; it must lie in 0 to"),
        ("sed = 1\n[[stages]]\nname = 'a'\nsteps = 1\nmix = {shapes = 1.0}", "unknown field 'sed'"),
        ("stages = []", r"no \[\[stages\]\]"),
        ("[model]\ntext_layers = 99\n[[stages]]\nname = 'a'\nsteps = 1\nmix = {shapes = 1.0}",
         "text_layers is 99; it must lie in 1 to 24"),
        ("[[stages]]\nname = 'a'\nsteps = 1\nlr = 3.0\nmix = {shapes = 1.0}",
         "lr is 3.0; it must lie in"),
        ("[[stages]]\nname = 'a'\nsteps = 1\nbatch = 0\nmix = {shapes = 1.0}",
         "batch is 0; it must lie in 1 to"),
    ],
)  # fmt: skip
def test_a_recipe_file_out_of_range_names_field_value_and_range(
    tmp_path: Path, line: str, words: str
) -> None:
    file = tmp_path / "recipe.toml"
    file.write_text(line)
    with pytest.raises(SettingError, match=words):
        load(file)
