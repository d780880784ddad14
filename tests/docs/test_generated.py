"""What is generated in docs/ is up to date, complete, and made without torch."""

from __future__ import annotations

import json
import os
import runpy
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from foveate.core import methods

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
BUILTIN = {n: m for n, m in methods().items() if m.__module__.startswith("foveate.")}
CATALOGUE: dict[str, Any] = json.loads((DOCS / "catalogue.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def generate() -> dict[str, Any]:
    return runpy.run_path(str(DOCS / "generate.py"))


def test_nothing_generated_is_stale(generate: dict[str, Any]) -> None:
    stale = [
        str(path.relative_to(DOCS))
        for path, text in generate["wanted"]().items()
        if (path.read_text(encoding="utf-8") if path.exists() else None) != text
    ]
    assert stale == [], "run python docs/generate.py"


def test_a_changed_page_and_a_page_too_many_are_seen(
    generate: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main = generate["main"]
    for name in ("catalogue.py", "choosing.py"):
        (tmp_path / name).write_bytes((DOCS / name).read_bytes())
    main.__globals__["PAGES"] = tmp_path
    try:
        assert main(["--check"]) == 1 and not (tmp_path / "methods").exists()
        assert main([]) == 0 and main(["--check"]) == 0
        first, gone = (
            sorted((tmp_path / "methods").glob("*.md"))[1],
            tmp_path / "methods" / "gone.md",
        )
        first.write_text(first.read_text(encoding="utf-8") + "x", encoding="utf-8")
        gone.write_text("x", encoding="utf-8")
        capsys.readouterr()
        assert main(["--check"]) == 1
        said = capsys.readouterr().out
        assert f"methods/{first.name}: stale" in said and "methods/gone.md: stale" in said
        assert main([]) == 0 and not gone.exists() and main(["--check"]) == 0
    finally:
        main.__globals__["PAGES"] = DOCS


def test_the_generator_needs_no_torch() -> None:
    code = (
        "import runpy, sys; sys.modules['torch'] = sys.modules['transformers'] = None\n"
        f"made = runpy.run_path({str(DOCS / 'generate.py')!r})\n"
        "raise SystemExit(made['main'](['--check']))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        env={**os.environ, "PYTHONPATH": str(ROOT / "src")},
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_catalogue_holds_every_method_and_what_the_registry_says() -> None:
    rows = {row["name"]: row for row in CATALOGUE["methods"]}
    assert list(rows) == list(BUILTIN) and len(rows) > 30
    for name, method in BUILTIN.items():
        row = rows[name]
        assert (row["stage"], row["counts"]) == (method.stage, method.counts)
        assert row["evidence"] == method.evidence and row["evidence"] in CATALOGUE["evidence"]
        assert {(n["what"], n["layer"]) for n in row["needs"]} == {
            (n.what, n.layer) for n in method.needs
        }
        assert row["code_licence"] == (method.paper.code_licence if method.paper else None)
        assert (row["paper"] is None) == (method.paper is None)
        assert all(s["help"] and s["type"] for s in row["settings"]), name


def test_every_method_has_a_page_and_the_index_leads_to_it() -> None:
    index = (DOCS / "methods" / "README.md").read_text(encoding="utf-8")
    for name, method in BUILTIN.items():
        text = (DOCS / "methods" / f"{name}.md").read_text(encoding="utf-8")
        assert index.count(f"]({name}.md)") == 1
        heads = ["## What it does", "## Settings", "## Where it fails"]
        heads += ["## Paper and formula"] if method.paper else []
        assert [h for h in heads if f"\n{h}\n" not in text] == []
        assert text.partition("## Where it fails")[2].strip().startswith("- ")
        assert not method.paper or method.paper.title.replace("*", "\\*") in text
