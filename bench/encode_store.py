"""The grid's results: one cell a method, tokens, keep ratio and geometry, kept with the version of
the code that it was measured on, so that a run goes on where the last one ended.
"""

from __future__ import annotations

import ast
import functools
import hashlib
import importlib.util
import json
from datetime import date
from pathlib import Path
from typing import Any

from bench.common import RESULTS, machine
from foveate.core import registry

PATH = RESULTS / "encode.json"
ROOMS = (
    "foveate.encode.tokens",
    "foveate.prefill._",
    "foveate.memory._",
    "foveate.core.arrays",
    "foveate.core._",
)
# What scores, and what is measured on; a change here makes every cell old. After a colon: that
# function alone.
SHARED = ("foveate.core.arrays", "foveate.models.compat:observe", "bench.encode_models:Tiles",
          "bench.geometry:Facts")  # fmt: skip


def _bare(tree: ast.AST) -> str:
    """What a piece of source does: without comments, docstrings and layout."""
    for node in ast.walk(tree):
        kinds = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
        if isinstance(node, kinds) and ast.get_docstring(node, clean=False) is not None:
            node.body[0] = ast.Expr(ast.Constant(""))
    return ast.dump(tree)


@functools.cache
def _source(place: str) -> tuple[str, frozenset[str]]:
    """A module or one name of it, and the modules of ROOMS that it imports."""
    module, _, name = place.partition(":")
    spec = importlib.util.find_spec(module)
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError(module)
    whole = ast.parse(Path(spec.origin).read_bytes())
    tree: ast.AST = whole
    if name:
        tree = next(x for x in whole.body if getattr(x, "name", "") == name)
    found: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {a.name for a in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            found |= {node.module, *(f"{node.module}.{a.name}" for a in node.names)}
    mine = {m for m in found if m.startswith(ROOMS) and _exists(m)}
    return _bare(tree), frozenset(mine)


def _exists(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:
        return False


def version(method: str, shared: tuple[str, ...] = SHARED) -> str:
    """A hash of the method's file, of what computes that it imports (ROOMS), and of `shared`."""
    todo, seen = [registry.get(method).__module__, *shared], set[str]()
    while todo:
        module = todo.pop()
        if module in seen:
            continue
        seen.add(module)
        todo += _source(module)[1]
    digest = hashlib.sha256()
    for module in sorted(seen):
        digest.update(f"{module}\0{_source(module)[0]}".encode())
    return digest.hexdigest()[:12]


def key(geometry: str, tokens: int, keep: str, method: str) -> str:
    return f"{geometry} {tokens} {keep} {method}"


class Store:
    """Cells by key and kind ("time" or "memory"); `save` writes one line a cell."""

    def __init__(self, path: Path = PATH) -> None:
        self.path = path
        self.data: dict[str, Any] = {"bench": path.stem, "cells": {}}
        if path.is_file():
            self.data = json.loads(path.read_text(encoding="utf-8"))
        self.cells: dict[str, dict[str, Any]] = self.data["cells"]

    def get(self, at: str, kind: str) -> dict[str, Any] | None:
        found: dict[str, Any] | None = self.cells.get(at, {}).get(kind)
        return found

    def rounds(self, at: str, kind: str, code: str | None) -> int | None:
        """Rounds measured on this code (None: on any); None where it was given up: no more tries."""
        cell = self.get(at, kind)
        if cell is None or code not in (None, cell["version"]):
            return 0
        return None if "not_run" in cell else int(cell.get("rounds", 1))

    def put(self, at: str, kind: str, code: str, figures: dict[str, Any]) -> None:
        """Replace a cell; `figures` is what was found, or {"not_run": reason}."""
        cell = {"version": code, "date": date.today().isoformat(), **figures}
        self.cells.setdefault(at, {})[kind] = cell

    def append(self, at: str, code: str, k: int, values: dict[str, float]) -> None:
        """One more round of a time cell: each of `values` joins its list."""
        old = self.get(at, "time")
        if old is None or old["version"] != code or "not_run" in old:
            old = {}
        lists = {name: [*old.get(name, []), float(f"{x:.4g}")] for name, x in values.items()}
        self.put(at, "time", code, {"rounds": old.get("rounds", 0) + 1, "k": k, **lists})

    def save(self, **facts: Any) -> None:
        """Write the file; `facts` go to its head."""
        self.data["machine"] = machine()
        self.data.update(facts)
        head = {k: v for k, v in self.data.items() if k != "cells"}
        lines = [f" {json.dumps(k)}: {json.dumps(self.cells[k])}" for k in sorted(self.cells)]
        body = (
            json.dumps(head, indent=1)[:-2] + ',\n "cells": {\n' + ",\n".join(lines) + "\n }\n}\n"
        )
        self.path.parent.mkdir(exist_ok=True)
        self.path.write_text(body, encoding="utf-8")
