"""Registration is strict: malformed, taken and incomplete names fail at import; broken plug-ins are
named, not fatal.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib.metadata import EntryPoint
from typing import Any, ClassVar

import pytest

from foveate.core import TokenMethod, registry
from foveate.core.errors import PlanError, UnknownMethodError


def make(name: str, **attributes: Any) -> type[TokenMethod]:
    body = {"name": name, "summary": "test", "__annotations__": {}, **attributes}
    return dataclass(frozen=True)(type("Made", (TokenMethod,), body))


@pytest.mark.parametrize(
    "name", ["Upper", "trailing-", "-lead", "two words", "under_score", "", "1st"]
)
def test_malformed_names_fail(name: str) -> None:
    with pytest.raises(PlanError, match="malformed"):
        registry.register(make(name))


def test_taken_names_and_missing_attributes_fail() -> None:
    with pytest.raises(PlanError, match="already taken"):
        registry.get("divprune")
        registry.register(make("divprune"))
    with pytest.raises(PlanError, match="summary"):
        registry.register(make("no-summary", summary=None))
    with pytest.raises(PlanError, match="unknown stage"):
        registry.register(make("bad-stage", stage="token"))


def test_every_builtin_has_what_the_catalogue_shows() -> None:
    found = registry.methods()
    assert {"random", "uniform", "divprune"} <= set(found)
    for name, cls in found.items():
        assert cls.name == name and cls.summary and cls.evidence
        assert cls.paper is not None or cls.evidence == "control", name


def test_a_broken_plug_in_is_named_and_the_others_live(monkeypatch: pytest.MonkeyPatch) -> None:
    point = EntryPoint("broken-one", "no_such_module:Method", registry.ENTRY_POINT)
    monkeypatch.setattr(registry, "entry_points", lambda group: [point])
    monkeypatch.setattr(registry, "_loaded", False)
    monkeypatch.setattr(registry, "_broken", {})
    assert "divprune" in registry.methods()
    assert "no_such_module" in registry.broken()["broken-one"]
    with pytest.raises(UnknownMethodError, match="failed to load"):
        registry.get("broken-one")


@dataclass(frozen=True)
class Sample(TokenMethod):
    name: ClassVar[str] = "sample"
    summary: ClassVar[str] = "test"


def test_settings_are_frozen() -> None:
    method = Sample(keep="1/2")  # type: ignore[arg-type]
    with pytest.raises(AttributeError):
        method.keep = 1  # type: ignore[misc]
    assert method.settings == {"keep": method.keep}
