"""The trainer: a killed and resumed run equals a whole one; wrong recipes are refused."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from foveate.core.errors import CheckpointError, InputError, SettingError
from foveate.lab import checkpoint
from foveate.lab.recipe import PACKAGED, Recipe, from_dict, load
from foveate.lab.train import Trainer, main

GEOMETRY = {
    "vision_width": 32, "vision_layers": 2, "vision_ff": 32, "vision_heads": 2, "patch": 16,
    "text_width": 32, "text_layers": 2, "text_ff": 32, "text_heads": 2,
}  # fmt: skip
STAGE = {"batch": 2, "steps": 20, "mix": {"shapes": 1.0}}
TINY: dict[str, Any] = {
    "model": GEOMETRY,
    "stages": [
        {**STAGE, "name": "tower", "answers": 0.0, "dense": 1.0, "dense_end": 1.0},
        {**STAGE, "name": "joint", "patches": 20},
    ],
    "save_every": 0.0,
    "measure_pictures": 2,
}
KILLED = """
import os, signal, sys
from pathlib import Path
sys.path.insert(0, {here!r})
from test_lab_training import TINY
from foveate.lab.recipe import from_dict
from foveate.lab.train import Trainer

whole = Trainer.train_step
def step(self, stage):
    if (self.stage, self.step) == ({stage}, {step}):
        os.kill(os.getpid(), signal.SIGKILL)
    whole(self, stage)
Trainer.train_step = step
Trainer(from_dict(TINY), Path({folder!r})).run()
"""


def _quiet(line: str) -> None:
    del line


def _run(folder: Path, recipe: Recipe | None = None) -> checkpoint.State:
    Trainer(recipe or from_dict(TINY), folder, _quiet).run()
    state = checkpoint.load(folder)
    assert state is not None
    return state


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> checkpoint.State:
    return _run(tmp_path_factory.mktemp("whole"))


@pytest.mark.parametrize(("stage", "step"), [(0, 7), (1, 0), (1, 13)])
@pytest.mark.claim("L4")
def test_killed_and_resumed_equals_uninterrupted(
    tmp_path: Path, whole: checkpoint.State, stage: int, step: int
) -> None:
    code = KILLED.format(
        here=str(Path(__file__).parent), folder=str(tmp_path), stage=stage, step=step
    )
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    ended = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, timeout=120)
    assert ended.returncode == -signal.SIGKILL, ended.stderr.decode()[-800:]
    halted = checkpoint.load(tmp_path)
    assert halted is not None
    assert (halted.stage, halted.step) == (stage, step)
    resumed = _run(tmp_path)
    for name, weight in whole.model.items():
        assert torch.equal(weight, resumed.model[name]), name
    for name, weight in whole.heads.items():
        assert torch.equal(weight, resumed.heads[name]), name


def test_training_moves_weights_and_logs(tmp_path: Path) -> None:
    from foveate.lab.curves import read_log

    trainer = Trainer(from_dict(TINY), tmp_path, _quiet)
    start = {name: weight.clone() for name, weight in trainer.model.state_dict().items()}
    trainer.run()
    moved = {n for n, w in trainer.model.state_dict().items() if not torch.equal(w, start[n])}
    assert any("vision_tower" in name for name in moved)
    assert any("language_model" in name for name in moved)
    rows = read_log(tmp_path)
    assert [row["stage"] for row in rows] == ["tower", "joint"]
    assert "shapes.colour" in rows[0]["dev"]
    assert "count" in rows[1]["dev"]


def test_steps_see_different_pictures(tmp_path: Path) -> None:
    trainer = Trainer(from_dict(TINY), tmp_path, _quiet)
    first, again, later, other = (
        trainer.batch(*at)[0].pixels for at in ((0, 0), (0, 0), (0, 1), (1, 0))
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, later)
    assert not torch.equal(first, other)


def test_another_recipe_does_not_resume(tmp_path: Path) -> None:
    _run(tmp_path)
    with pytest.raises(CheckpointError, match="another recipe"):
        Trainer(from_dict({**TINY, "seed": 2}), tmp_path, _quiet)


def test_truncated_checkpoint_is_refused(tmp_path: Path) -> None:
    _run(tmp_path)
    file = tmp_path / checkpoint.NAME
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    with pytest.raises(CheckpointError, match="truncated or damaged"):
        Trainer(from_dict(TINY), tmp_path, _quiet)


def test_full_disk_keeps_the_old_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    state = _run(tmp_path)
    before = (tmp_path / checkpoint.NAME).read_bytes()

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(CheckpointError, match=r"No space left.*the one before is kept"):
        checkpoint.save(tmp_path, state)
    assert (tmp_path / checkpoint.NAME).read_bytes() == before
    assert [file.name for file in tmp_path.glob("*.new")] == []


def test_packaged_recipe_is_lab_nano() -> None:
    recipe = load(PACKAGED)
    names = [stage.name for stage in recipe.stages]
    assert names[:3] == ["tower", "joint", "finish"] and names[-1] == "wide-finish"
    assert recipe.model.text_layers >= 6


def _with(field: str, value: object, where: str) -> dict[str, Any]:
    stages = [dict(stage) for stage in TINY["stages"]]
    if where == "stage":
        stages[1][field] = value
        return {**TINY, "stages": stages}
    if where == "model":
        return {**TINY, "model": {**GEOMETRY, field: value}}
    return {**TINY, field: value}


@pytest.mark.parametrize(
    ("field", "value", "where", "words"),
    [
        ("lr", 3.0, "stage", "lr is 3.0; it must lie in 1e-07 to 1.0"),
        ("batch", 0, "stage", "batch is 0; it must lie in 1 to 4096"),
        ("batch", 1.5, "stage", "batch is 1.5"),
        ("steps", 0, "stage", "neither steps nor seconds"),
        ("mix", {"shape": 1.0}, "stage", "'shape': did you mean shapes"),
        ("mix", {"page": 1.0}, "stage", "pages have no questions"),
        ("mix", {}, "stage", "mix is empty"),
        ("learning_rate", 1.0, "stage", "unknown field 'learning_rate'"),
        ("text_layers", 99, "model", "text_layers is 99; it must lie in 1 to 24"),
        ("text_width", 50, "model", "must be multiples"),
        ("seed", -1, "top", "seed is -1; it must lie in 0 to"),
        ("stages", [], "top", r"no \[\[stages\]\]"),
    ],
)
def test_wrong_recipe_names_field_value_and_range(
    field: str, value: object, where: str, words: str
) -> None:
    with pytest.raises(SettingError, match=words):
        from_dict(_with(field, value, where))


def test_command_line_refuses_a_missing_or_broken_recipe(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--recipe", str(tmp_path / "none.toml"), "--out", str(tmp_path / "run")]) == 2
    (tmp_path / "bad.toml").write_text("seed = ")
    assert main(["--recipe", str(tmp_path / "bad.toml"), "--out", str(tmp_path / "run")]) == 2
    errors = capsys.readouterr().err
    assert "cannot be read" in errors
    assert "no TOML" in errors
    assert not (tmp_path / "run").exists()


def test_curves_are_drawn(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    from foveate.lab.curves import plot

    _run(tmp_path / "run")
    plot(tmp_path / "run", tmp_path / "curves.png")
    with Image.open(tmp_path / "curves.png") as picture:
        assert len(set(picture.convert("L").tobytes())) > 20
    with pytest.raises(InputError, match=r"no log\.jsonl"):
        plot(tmp_path, tmp_path / "none.png")
