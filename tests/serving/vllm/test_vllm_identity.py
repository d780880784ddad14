"""What makes a plan's cache entries its own: settings, and the versions of the packages whose methods
choose.
"""

from __future__ import annotations

from importlib.metadata import EntryPoint
from types import SimpleNamespace
from typing import Any

import pytest

from foveate.core import registry
from foveate.core.method import TokenMethod
from foveate.core.plan import Plan
from foveate.serve.vllm import plan_source as source


class Foreign(TokenMethod):
    """Of another package, found by its entry point."""

    name = "foreign"
    summary = "keeps something"


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Pretends that a package of a version brings the method `foreign`."""

    def at(version: str | None) -> None:
        point = EntryPoint("foreign", f"{__name__}:Foreign", registry.ENTRY_POINT)
        if version is not None:
            vars(point)["dist"] = SimpleNamespace(name="foreign-package", version=version)
        monkeypatch.setattr(registry, "entry_points", lambda group: [point])
        for table in ("_methods", "_broken", "_origins"):
            monkeypatch.setattr(registry, table, {})
        monkeypatch.setattr(registry, "_loaded", False)

    monkeypatch.setattr(registry, "BUILTIN_PACKAGES", ())
    return at


def test_a_new_version_of_a_methods_package_is_another_identity(installed: Any) -> None:
    keys = set()
    for version in ("1.0", "1.1"):
        installed(version)
        keys.add(source.identity(Plan.parse("foreign:keep=1/2"), "1"))
    assert len(keys) == 2


def test_a_method_without_a_package_counts_by_its_source(installed: Any) -> None:
    installed(None)
    key = source.identity(Plan.parse("foreign:keep=1/2"), "1")
    assert key != source.identity(Plan.parse("none"), "1")
    assert registry.origin("foreign") is not None


def test_built_in_methods_count_by_foveates_version() -> None:
    plan = Plan.parse("downscale:keep=1/2+divprune:keep=1/2")
    assert all(registry.origin(m.name) is None for m in plan.methods)
    assert source.identity(plan, "1") == f"{plan.hash}-1"
