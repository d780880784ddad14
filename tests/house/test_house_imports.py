"""What an import pulls in, and that the import contracts bite where a room appears."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.house.repository import ROOT, python

IMPORT_S = 5.0  # about 0.3 s on an idle core; the bound is for a busy one
HEAVY = "[m for m in ('torch', 'transformers', 'scipy', 'av', 'matplotlib') if m in sys.modules]"


@pytest.mark.parametrize("name", ["foveate", "foveate.core", "foveate.encode", "foveate.measure"])
def test_a_light_import_pulls_no_heavy_package_and_is_quick(name: str) -> None:
    out = python(
        "import sys, time\n"
        "start = time.process_time()\n"
        f"import {name}\n"
        f"print({HEAVY}, time.process_time() - start)\n"
    )
    heavy, seconds = out.rsplit(" ", 1)
    assert heavy == "[]" and float(seconds) < IMPORT_S


def test_methods_are_listed_and_run_where_torch_is_not_installed() -> None:
    out = python(
        "import importlib.abc, sys\n"
        "class Absent(importlib.abc.MetaPathFinder):\n"
        "    def find_spec(self, name, path, target=None):\n"
        "        if name.partition('.')[0] in ('torch', 'transformers', 'scipy'):\n"
        "            raise ModuleNotFoundError(name, name=name)\n"
        "sys.meta_path.insert(0, Absent())\n"
        "import numpy as np\n"
        "from foveate.core import PlanRng, Segment, build, methods, resolve\n"
        "segment = Segment(0, 0, 'image', (1, 6, 6), np.random.default_rng(0).normal(size=(36, 8)))\n"
        "method = build('divprune', keep='1/4')\n"
        "kept = method.select([segment], resolve(method.budget, [[36]]), None, PlanRng(0))\n"
        "print(len(methods()), kept[0].k)\n"
    )
    count, kept = map(int, out.split())
    assert count > 10 and kept == 9


# --- the contracts of import-linter -------------------------------------------------------------
def lint(folder: Path) -> subprocess.CompletedProcess[str]:
    command = Path(sys.executable).with_name("lint-imports")
    found = str(command) if command.exists() else shutil.which("lint-imports")
    if found is None:
        pytest.skip("import-linter is not installed: it is in the extra dev")
    return subprocess.run(
        [found, "--config", str(ROOT / "pyproject.toml"), "--no-cache"],
        capture_output=True,
        text=True,
        timeout=120,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(folder), "COLUMNS": "200"},
        check=False,
    )


def house(folder: Path, files: dict[str, str]) -> Path:
    """A package foveate with a core and these modules, and no other room."""
    for name, text in {"core/__init__.py": "", **files}.items():
        path = folder / "foveate" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        for parent in [path.parent, *path.parent.parents]:
            if parent == folder:
                break
            (parent / "__init__.py").touch()
        path.write_text(text)
    return folder


def test_the_contracts_hold_here_and_in_a_house_with_one_room(tmp_path: Path) -> None:
    here = lint(ROOT / "src")
    assert here.returncode == 0, here.stdout
    lone = lint(house(tmp_path, {}))
    assert lone.returncode == 0, lone.stdout


PLANTED = {
    "core imports a room": {"core/a.py": "import foveate.models", "models/__init__.py": ""},
    "two rooms": {"memory/a.py": "import foveate.decode", "decode/__init__.py": ""},
    "a room and models": {"encode/a.py": "import foveate.models", "models/__init__.py": ""},
    "measure imports a room": {"measure/a.py": "import foveate.encode", "encode/__init__.py": ""},
    "upwards": {"engine/a.py": "from foveate import serve", "serve/__init__.py": ""},
    "an unknown room": {"helpers/a.py": ""},
    "a method room's package and transformers": {"prefill/__init__.py": "import transformers"},
    "a method and transformers, in a function": {
        "decode/deep/a.py": "def f():\n    from transformers import AutoModel\n    AutoModel"
    },
    "a token method and torch": {"encode/tokens/a.py": "import torch.nn"},
    "a pixel method and torch through core": {
        "encode/pixels/a.py": "import foveate.core.b",
        "core/b.py": "import torch",
    },
    "vllm and the engine": {
        "serve/vllm/a.py": "import foveate.serve.app",
        "serve/app.py": "import foveate.engine",
        "engine/__init__.py": "",
    },
}
LEGAL = {
    "measure from anywhere": {
        "measure/clock.py": "import foveate.core",
        "memory/a.py": "import foveate.measure.clock",
        "engine/a.py": "import foveate.memory.a, foveate.measure.clock, transformers, torch",
        "serve/a.py": "import foveate.engine.a, foveate.lab",
        "lab/__init__.py": "",
        "serve/vllm/a.py": "import foveate.core, foveate.encode, torch",
        "encode/tower/a.py": "import torch",
    }
}


@pytest.mark.parametrize("name", PLANTED)
def test_the_contracts_bite(name: str, tmp_path: Path) -> None:
    done = lint(house(tmp_path, PLANTED[name]))
    assert done.returncode == 1 and "BROKEN" in done.stdout, done.stdout + done.stderr


@pytest.mark.parametrize("name", LEGAL)
def test_the_contracts_allow_what_the_architecture_allows(name: str, tmp_path: Path) -> None:
    done = lint(house(tmp_path, LEGAL[name]))
    assert done.returncode == 0, done.stdout + done.stderr
