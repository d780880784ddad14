"""The rules of architecture.md and CONTRIBUTING.md that a program can check in the source."""

from __future__ import annotations

import ast
import inspect
import re
from dataclasses import fields

import pytest

from tests.house.repository import SOURCE, modules, short, texts, tree

CEILING_LINES = 400
# Joined at run time, or this file would be its own first finding.
PLACES = "|".join(["wor" + "k", "roo" + "t", "hom" + r"e/\w+", "opt/py" + "pi"])
PAGES = "|".join(["des" + "ign", "pro" + "bes", "gol" + "den"])
TOOLS = "|".join(["clau" + "de", "anthro" + "pic", "chatg" + "pt"])
UNDONE = "|".join(["TO" + "DO", "FIX" + "ME", "XX" + "X"])
FORBIDDEN = {
    "a path of one machine": re.compile(rf"(?<![\w.])/(?:{PLACES})/"),
    "a page that is not in this repository": re.compile(f"shared/(?:{PAGES})"),
    "the name of a writing tool": re.compile(rf"\b(?:{TOOLS})\b", re.I),
    "work left undone": re.compile(rf"\b(?:{UNDONE})\b"),
}
SAMPLES = [f"cd /{PLACES[:4]}/x", f"../shared/{PAGES[:6]}/a.md", TOOLS[:6].title(), UNDONE[:4]]


def test_no_file_is_too_long() -> None:
    lengths = {short(p): len(p.read_text(encoding="utf-8").splitlines()) for p in modules()}
    assert len(lengths) > 20
    assert {k: v for k, v in lengths.items() if v > CEILING_LINES} == {}


def test_no_forbidden_words() -> None:
    seen, found = 0, []
    for path in texts():
        seen += 1
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
            found += [
                f"{short(path)}:{number}: {why}"
                for why, pattern in FORBIDDEN.items()
                if pattern.search(line)
            ]
    assert seen > 50 and found == []


@pytest.mark.parametrize("line", SAMPLES)
def test_the_forbidden_words_are_seen(line: str) -> None:
    assert any(pattern.search(line) for pattern in FORBIDDEN.values())


def test_every_module_says_what_it_is() -> None:
    assert [
        short(p) for p in modules() if p.stat().st_size and not ast.get_docstring(tree(p))
    ] == []


def test_every_public_name_has_a_docstring() -> None:
    pytest.importorskip("transformers")
    import foveate

    assert len(foveate.__all__) >= 8
    for name in foveate.__all__:
        value = getattr(foveate, name)
        if name != "__version__":
            text = inspect.cleandoc(value.__doc__ or "")
            # A dataclass without a docstring is given its signature as one.
            assert text and not text.startswith(f"{name}("), name


# --- who may do what ----------------------------------------------------------------------------
def uses(path: str, code: ast.AST, names: set[str]) -> list[str]:
    """Places where one of the names is read, called or imported."""
    found = []
    for node in ast.walk(code):
        said: list[str] = []
        if isinstance(node, ast.Name):
            said = [node.id]
        elif isinstance(node, ast.Attribute):
            said = [node.attr]
        elif isinstance(node, ast.ImportFrom | ast.Import):
            said = [alias.name.rpartition(".")[2] for alias in node.names]
        found += [f"{path}:{node.lineno}: {n}" for n in said if n in names]  # type: ignore[attr-defined]
    return found


CHOOSING = {"topk", "argsort", "cdist"}


def test_engine_models_and_serve_do_not_choose() -> None:
    """Choosing is a method's job; an order is undone by an inverse scatter."""
    files = modules("engine", "models", "serve")
    assert len(files) > 10
    assert [x for p in files for x in uses(short(p), tree(p), CHOOSING)] == []


def test_the_choosing_lint_sees_every_way_to_write_it() -> None:
    code = "from torch import topk\nx.argsort()\ntorch.cdist(a, b)\ntopk(x, 2)\nmodel(top_k=3)\n"
    assert {x.split(":")[1] for x in uses("f", ast.parse(code), CHOOSING)} == {"1", "2", "3", "4"}


def test_the_engine_never_names_a_method() -> None:
    from foveate.core import PixelPlan, methods

    # A method may be called like the thing it acts on; the contract's own words stay allowed.
    names = set(methods()) - {field.name for field in fields(PixelPlan)}
    found = [
        f"{short(p)}:{node.lineno}: {node.value}"
        for p in modules("engine")
        for node in ast.walk(tree(p))
        if isinstance(node, ast.Constant) and node.value in names
    ]
    assert len(names) > 10 and found == []


def test_private_names_of_transformers_are_touched_in_compat_alone() -> None:
    found = []
    for path in modules():
        if path.parent == SOURCE / "models" and path.name.startswith("compat"):
            continue
        for node in ast.walk(tree(path)):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("transformers"):
                words = [*(node.module or "").split("."), *(a.name for a in node.names)]
                found += [f"{short(path)}:{node.lineno}: {w}" for w in words if w.startswith("_")]
    assert found == []
