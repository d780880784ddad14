"""The pages and the tooling: what they say must exist and parse."""

from __future__ import annotations

import ast
import importlib.util
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from tests.house.repository import ROOT, Block, blocks, short

PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("**/*.md")])
README = ROOT / "README.md"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
CODE = [(page, block) for page in PAGES for block in blocks(page)]
GROUPS = ("audit", "lab")
SHELL = [(p, b) for p, b in CODE if b.language in ("sh", "bash", "console")]


def name_of(value: object) -> str:
    return f"{short(value)}" if isinstance(value, Path) else f"line {getattr(value, 'line', '')}"


def commands(program: str) -> list[str]:
    """Lines of the pages' shell blocks that call a program; continued lines are joined."""
    lines = [line for _, b in SHELL for line in b.text.replace("\\\n", " ").splitlines()]
    return sorted({line.strip() for line in lines if line.strip().split(" ")[0] == program})


@pytest.mark.parametrize(("page", "block"), CODE, ids=name_of)
def test_code_parses(page: Path, block: Block) -> None:
    assert block.language, f"{short(page)}:{block.line}: say the language of the block"
    if block.language == "python":
        ast.parse(block.text)
    elif block.language == "toml":
        tomllib.loads(block.text)
    elif (page, block) in SHELL:
        done = subprocess.run(["bash", "-n"], input=block.text, text=True, capture_output=True)
        assert done.returncode == 0, done.stderr


def test_python_code_uses_public_names_and_plans_that_parse() -> None:
    import foveate
    from foveate.core import Plan

    used, plans = set(), []
    for _, block in CODE:
        if block.language != "python":
            continue
        for node in ast.walk(ast.parse(block.text)):
            if (
                isinstance(node, ast.Attribute)
                and isinstance(node.value, ast.Name)
                and node.value.id == "foveate"
            ):
                used.add(node.attr)
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                plans += [node.value] if re.fullmatch(r"[a-z0-9-]+:\w+=\S+", node.value) else []
    plans += [m for line in commands("foveate") for m in re.findall(r'--plan "([^"]+)"', line)]
    assert {"attach", "Engine"} <= used <= set(foveate.__all__)
    assert len(plans) >= 3 and all(Plan.parse(p).methods for p in plans)


def test_commands_of_the_pages_exist() -> None:
    if importlib.util.find_spec("foveate.cli.app") is None:
        pytest.fail("the pages show commands, and there is no foveate.cli")
    lines = commands("foveate")
    assert lines
    # A verb of two words, as in `foveate lab eval`, has its options below the second.
    calls = [(" ".join(line.split()[1:3]) if line.split()[1] in GROUPS else line.split()[1], line)
             for line in lines]  # fmt: skip
    for verb in sorted({verb for verb, _ in calls}):
        done = subprocess.run(
            [sys.executable, "-m", "foveate.cli", *verb.split(), "--help"],
            capture_output=True,
            text=True,
            timeout=120,
            env={**os.environ, "PYTHONPATH": str(ROOT / "src"), "COLUMNS": "200"},
            check=False,
        )
        assert done.returncode == 0, done.stderr
        for called, line in calls:
            if called == verb:
                for option in re.findall(r"(?<!\S)--[a-z-]+", line):
                    assert option in done.stdout, f"foveate {verb} has no {option}"


def test_make_targets_of_the_pages_exist() -> None:
    targets = {line.split()[1] for line in commands("make")}
    assert {"demo", "test"} <= targets
    for target in sorted(targets):
        done = subprocess.run(
            ["make", "-n", target], cwd=ROOT, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr


def test_the_two_commands_stand_first_in_the_readme() -> None:
    first = next(b for b in blocks(README) if b.language in ("sh", "bash"))
    assert [line.split("#")[0].strip() for line in first.text.splitlines()] == [
        "make demo",
        "make test",
    ]
    assert first.line < 25


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_inside_the_repository_lead_somewhere(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if re.match(r"[a-z]+:", target):
            continue
        file, _, anchor = target.partition("#")
        linked = (page.parent / file).resolve() if file else page
        assert linked.exists(), f"{short(page)} links to {target}"
        if anchor:
            heads = re.findall(r"^#+ (.+)$", linked.read_text(encoding="utf-8"), re.MULTILINE)
            slugs = {re.sub(r"[^\w\- ]", "", h.lower()).strip().replace(" ", "-") for h in heads}
            assert anchor in slugs, f"{short(page)} links to {target}; there are {sorted(slugs)}"


def test_the_architecture_page_has_the_figures_and_every_room() -> None:
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    assert [f"| P{i} |" in text for i in range(1, 9)] == [True] * 8
    for room in sorted(p.name for p in (ROOT / "src" / "foveate").iterdir() if p.is_dir()):
        if not room.startswith(("_", ".")):
            assert f"`{room}/`" in text, f"docs/architecture.md does not speak of {room}/"


# --- tooling ------------------------------------------------------------------------------------
def test_hooks_and_extra_have_the_same_pins() -> None:
    dev = PROJECT["project"]["optional-dependencies"]["dev"]
    pins = {name: pin for name, _, pin in (x.partition("==") for x in dev) if pin}
    assert set(pins) == {"ruff", "mypy", "import-linter", "typer"}
    del pins["typer"]  # pinned because the help blocks in docs/cli.md are its output
    hooks = (ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8")
    found = re.findall(r"\b([a-z-]+)==([0-9.]+)", hooks)
    assert {name for name, _ in found} == set(pins)
    assert all(pins[name] == version for name, version in found)


def test_torch_is_no_core_dependency() -> None:
    names = {re.split(r"[<>=\[]", d)[0] for d in PROJECT["project"]["dependencies"]}
    assert names.isdisjoint({"torch", "torchvision", "transformers", "scipy", "psutil"})


def test_every_extra_that_an_error_names_exists() -> None:
    extras = set(PROJECT["project"]["optional-dependencies"])
    named = set()
    for path in (ROOT / "src" / "foveate").rglob("*.py"):
        text = path.read_text(encoding="utf-8")
        named |= set(re.findall(r'MissingExtraError\(\s*"[^"]+",\s*"([^"]+)"', text))
        named |= set(re.findall(r"foveate\[([a-z]+)\]", text))
    assert named and named <= extras


def test_ci_is_bash_that_parses_and_calls_the_readmes_test_command() -> None:
    script = ROOT / ".ci" / "run"
    assert os.access(script, os.X_OK)
    subprocess.run(["bash", "-n", str(script)], check=True)
    text = script.read_text(encoding="utf-8")
    assert text.startswith("#!/usr/bin/env bash") and "set -euo pipefail" in text
    for command in ("make install", "make lint", "make test"):
        assert re.search(rf"^[^#]*{command}\b", text, re.MULTILINE)


def test_licence_and_change_log() -> None:
    licence = (ROOT / "LICENSE").read_text(encoding="utf-8")
    assert "Apache License" in licence and "Version 2.0, January 2004" in licence
    assert "END OF TERMS AND CONDITIONS" in licence
    assert PROJECT["project"]["license"] == "Apache-2.0"
    import foveate

    version = PROJECT["project"]["version"]
    assert foveate.__version__ == version
    heads = re.findall(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text("utf-8"), re.MULTILINE)
    assert heads[0] in (version.partition(".dev")[0], "Unreleased")
