"""Model folders and pictures for the command line's tests."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.cli.cli_cases import noise
from tests.models.tiny_processors import save_folder
from tests.support import tiny


@pytest.fixture(scope="session")
def llava(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny LLaVA folder: 16 visual tokens a picture, cut out of its centre."""
    return save_folder("llava", tiny.make_model("llava"), tmp_path_factory.mktemp("model"))


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    return noise(tmp_path / "picture.png", 60, 40, 1)


@pytest.fixture
def no_model(monkeypatch: pytest.MonkeyPatch) -> None:
    """Loading a model fails the test: what is refused must be refused before."""

    def refuse(*_: object) -> None:
        pytest.fail("a model was loaded for input that should have been refused before")

    for verb in ("run", "explain", "demo"):
        monkeypatch.setattr(f"foveate.cli.{verb}.open_engine", refuse)
