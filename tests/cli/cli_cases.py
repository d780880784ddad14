"""Calls of the command line for its tests: in this process, or as a process of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from typer.testing import CliRunner, Result

from foveate.cli.app import app

ROOT = Path(__file__).parents[2]


def call(*words: object, stdin: str | None = None) -> Result:
    """`foveate WORDS` in this process; stdout and stderr apart."""
    return CliRunner().invoke(app, [str(w) for w in words], input=stdin, prog_name="foveate")


def process(
    *words: object, code: str | None = None, stdin: str | None = None
) -> subprocess.CompletedProcess[str]:
    """`python -m foveate.cli WORDS`, or `python -c CODE WORDS`, as a process of its own."""
    program = ["-m", "foveate.cli"] if code is None else ["-c", code]
    return subprocess.run(
        [sys.executable, *program, *(str(w) for w in words)],
        capture_output=True,
        text=True,
        timeout=300,
        input=stdin,
        env={**os.environ, "PYTHONPATH": str(ROOT / "src"), "COLUMNS": "120"},
        check=False,
    )


def last_json(stdout: str) -> dict[str, Any]:
    """The JSON object that is all of stdout: one line."""
    lines = stdout.splitlines()
    assert len(lines) == 1, stdout
    found: dict[str, Any] = json.loads(lines[0])
    return found


def noise(path: Path, width: int, height: int, seed: int) -> Path:
    pixels = np.random.default_rng(seed).integers(0, 255, (height, width, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return path
