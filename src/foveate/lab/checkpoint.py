"""Saving and resuming a training run so that a killed run loses at most the steps since its last
save.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from foveate.core.errors import CheckpointError

NAME = "state.pt"


@dataclass
class State:
    """Where a run stands. `elapsed_s` counts wall clock within the stage; `history` holds the
    measured rows.
    """

    stage: int
    step: int
    elapsed_s: float
    total_s: float
    model: dict[str, Any]
    heads: dict[str, Any]
    optimiser: dict[str, Any] | None
    recipe: dict[str, Any]


def save(folder: Path, state: State) -> None:
    """Write the state beside the old one and swap them in one move; a full disk leaves the old one
    in place.
    """
    file, fresh = folder / NAME, folder / (NAME + ".new")
    try:
        with fresh.open("wb") as handle:
            torch.save(vars(state), handle)
            handle.flush()
            os.fsync(handle.fileno())
        os.replace(fresh, file)
    except (OSError, RuntimeError) as error:
        fresh.unlink(missing_ok=True)
        kept = "the one before is kept" if file.is_file() else "there is none before it"
        raise CheckpointError(
            f"checkpoint {file} could not be written ({error}); {kept}"
        ) from error


def load(folder: Path) -> State | None:
    """The saved state of a folder, or None if it has none. Errors: CheckpointError for a damaged
    file.
    """
    file = folder / NAME
    if not file.is_file():
        return None
    try:
        values = torch.load(file, map_location="cpu", weights_only=True)
        return State(**values)
    except Exception as error:  # torch.load names no class for a damaged file
        raise CheckpointError(
            f"checkpoint {file} is truncated or damaged ({type(error).__name__}): "
            "delete it to start anew"
        ) from error
