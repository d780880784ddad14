"""A method from outside: one file and an entry point; a broken one does not take others down."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from tests.house.repository import ROOT, python

EXAMPLE = ROOT / "tests" / "third_party" / "foveate_example_corner"
LIST = (
    "import json\n"
    "from foveate.core.registry import broken, methods\n"
    "print(json.dumps([sorted(methods()), broken()]))\n"
)


def install(site: Path, name: str, entries: dict[str, str]) -> None:
    """What pip writes for a distribution, as far as entry points are concerned."""
    info = site / f"{name}-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    lines = "".join(f"{key} = {value}\n" for key, value in entries.items())
    (info / "entry_points.txt").write_text(f"[foveate.methods]\n{lines}")


@pytest.fixture
def site(tmp_path: Path) -> Path:
    project = tomllib.loads((EXAMPLE / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    install(tmp_path, "foveate_example_corner", project["entry-points"]["foveate.methods"])
    shutil.copy(EXAMPLE / "foveate_example_corner.py", tmp_path)
    return tmp_path


def test_it_is_listed_beside_a_broken_and_a_clashing_one(site: Path) -> None:
    install(site, "other", {"gone": "no_such_module:Gone", "clash": "clash:Clash"})
    (site / "clash.py").write_text(
        "from foveate_example_corner import ExampleCorner\n"
        "class Clash(ExampleCorner):\n"
        "    name = 'divprune'\n"
    )
    found, broken = json.loads(python(LIST, path=str(site)))
    assert "example-corner" in found and "divprune" in found
    assert set(broken) == {"gone", "clash"} and "already taken" in broken["clash"]


def test_all_doors_keep_the_same_tokens(site: Path) -> None:
    pytest.importorskip("transformers")
    places = os.pathsep.join([str(ROOT / "src"), str(site)])
    done = subprocess.run(
        [sys.executable, str(ROOT / "tests" / "third_party" / "check_doors.py")],
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, "PYTHONPATH": places},
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("keep the same") == 2
