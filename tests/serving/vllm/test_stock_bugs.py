"""V3: the five bugs of vLLM's own video pruning (docs/upstream.md) do not occur under the plug-in.

Each is one script of examples/upstream, which ends with 1 where the bug shows. The same scripts run on
stock vLLM, which has to show it: else a test here could not fail. A vLLM that has fixed one of them is
told apart by that.
"""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from tests.serving.vllm.conftest import vllm_python

SCRIPTS = Path(__file__).parents[3] / "examples" / "upstream"
LIMIT_S = 900
FIXED: dict[str, str] = {}
"""Bugs by script that a tested vLLM no longer has, with the first version without it."""

VIDEO = "evs:keep=1/2"  # the rule that vLLM's own pruning follows
PLANS = {
    "prefix_ends_at_vision_start": VIDEO,
    "hit_differs_from_cold": VIDEO,
    "portrait_image_moves_text": VIDEO,
    "cpu_runner_never_prunes": VIDEO,
    "positions_in_bfloat16": "uniform:keep=1/2",
}


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the scripts keep the one checkpoint that they share."""
    return tmp_path_factory.mktemp("upstream")


def run(name: str, work: Path, plan: str | None) -> tuple[int, str]:
    """Exit code and last line of a script, or the end of its errors."""
    python, _ = vllm_python()
    assert python is not None
    command = [python, str(SCRIPTS / f"{name}.py"), "--work", str(work)]
    done = subprocess.run(
        [*command, *(["--plan", plan] if plan is not None else [])],
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    said = [line for line in done.stdout.splitlines() if "bug" in line]
    return done.returncode, said[-1] if said else done.stderr[-3000:]


def test_every_reproduction_is_tested() -> None:
    assert {p.stem for p in SCRIPTS.glob("*.py")} - {"tiny"} == set(PLANS)


@pytest.mark.claim("V3")
@pytest.mark.parametrize("name", PLANS)
def test_the_plugin_does_not_have_it(vllm: str, work: Path, name: str) -> None:
    code, said = run(name, work, PLANS[name])
    assert code == 0 and said.startswith("no bug"), said


@pytest.mark.claim("V3")
@pytest.mark.parametrize("name", PLANS)
def test_stock_vllm_has_it(vllm: str, work: Path, name: str) -> None:
    code, said = run(name, work, None)
    if name in FIXED and code == 0:
        pytest.skip(f"fixed in vLLM {FIXED[name]}; this is {vllm}")
    assert code == 1 and said.startswith("the bug shows"), said
