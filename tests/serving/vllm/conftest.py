"""vLLM pins its own transformers, so it lives in an environment of its own: its Python is named by
VLLM_PYTHON, or is this one. Without it these tests are skipped.
"""

from __future__ import annotations

import functools
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

HERE = Path(__file__).parent
ASK = "import vllm, foveate; print(vllm.__version__)"


@functools.cache
def vllm_python() -> tuple[str | None, str]:
    """The Python with vLLM and foveate, and its vLLM version or why there is none."""
    python = os.environ.get("VLLM_PYTHON", sys.executable)
    quiet = {**os.environ, "VLLM_LOGGING_LEVEL": "ERROR"}
    try:
        found = subprocess.run(
            [python, "-c", ASK], capture_output=True, text=True, timeout=300, env=quiet
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return None, f"{python}: {error}"
    if found.returncode:
        last = (found.stderr.strip().splitlines() or ["no message"])[-1]
        return None, f"{python}: {last}"
    return python, found.stdout.strip().splitlines()[-1]


def run_job(job: dict[str, Any], folder: Path, script: str = "engine_run.py") -> Any:
    """What a script of this folder answers to a job, run by the Python that has vLLM."""
    python, _ = vllm_python()
    assert python is not None
    asked, answer = folder / "job.json", folder / "answer.json"
    asked.write_text(json.dumps(job))
    answer.unlink(missing_ok=True)
    done = subprocess.run(
        [python, str(HERE / script), str(asked), str(answer)],
        capture_output=True,
        text=True,
        timeout=1200,
    )
    assert answer.exists(), f"{script} failed:\n{done.stderr[-6000:]}"
    return json.loads(answer.read_text())


def connector(role: str, store: Path) -> dict[str, Any]:
    """Options of an engine that hands encoder outputs on, or takes them, through a folder."""
    options: dict[str, Any] = {
        "ec_transfer_config": {
            "ec_connector": "ECExampleConnector",
            "ec_role": f"ec_{role}",
            "ec_connector_extra_config": {"shared_storage_path": str(store)},
        }
    }
    if role == "producer":
        options |= {"mm_encoder_only": True, "enable_prefix_caching": False}
    return options


@pytest.fixture(scope="session")
def vllm() -> str:
    """The version of vLLM that is tested; skips where there is none."""
    python, version = vllm_python()
    if python is None:
        pytest.skip(f"no vLLM: set VLLM_PYTHON, or run `make test-vllm` ({version})")
    return version
