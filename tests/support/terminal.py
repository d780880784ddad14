"""The `foveate` command as a user's shell runs it."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass


@dataclass(frozen=True)
class Done:
    code: int
    out: str
    err: str


def foveate(*words: str, timeout_s: float = 300, **environment: str) -> Done:
    """Run the command to its end."""
    done = subprocess.run(
        [sys.executable, "-m", "foveate.cli", *words],
        capture_output=True,
        text=True,
        timeout=timeout_s,
        env=os.environ | environment,
        check=False,
    )
    return Done(done.returncode, done.stdout, done.stderr)
