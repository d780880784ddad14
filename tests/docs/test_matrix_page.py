"""docs/matrix.md is what `foveate list --families --markdown` prints of the committed support matrix."""

from __future__ import annotations

import json
from pathlib import Path

from typer.testing import CliRunner

from foveate.cli import families
from foveate.cli.app import app
from tests.support import tiny

ROOT = Path(__file__).resolve().parents[2]


def test_the_matrix_page_is_not_stale() -> None:
    done = CliRunner().invoke(app, ["list", "--families", "--markdown"])
    assert done.exit_code == 0
    page = (ROOT / "docs" / "matrix.md").read_text(encoding="utf-8")
    assert page.strip() == done.stdout.strip(), "stale: run `make matrix`"


def test_the_support_matrix_covers_every_family_that_the_tests_build() -> None:
    data = json.loads((ROOT / "src" / "foveate" / "models" / "support.json").read_text())
    assert list(data["families"]) == list(tiny.FAMILIES)
    exact = [n for n, f in data["families"].items() if f["encode"] == "exact"]
    assert len(exact) >= 36
    for name, found in data["families"].items():
        assert found["encode"] == "exact" or found["reason"], name
        inside = found["inside"]
        for kind in families.INSIDE:
            reasons = [r for r in inside["reasons"] if r.startswith(f"{kind}: ")]
            assert inside[kind] in (*families.STATUS, "runs"), (name, kind)
            assert (inside[kind] == "refused") == bool(reasons), (name, kind)
        assert inside["layers"]
