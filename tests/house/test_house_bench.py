"""Every benchmark still imports: a name that moved must not be found out when a figure is wanted."""

from __future__ import annotations

import importlib
import pkgutil

import pytest

import bench

MODULES = sorted(m.name for m in pkgutil.iter_modules(bench.__path__))


@pytest.mark.parametrize("name", MODULES)
def test_benchmarks_import(name: str) -> None:
    importlib.import_module(f"bench.{name}")
