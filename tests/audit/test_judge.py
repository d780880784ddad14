"""Judges of the user's own: how they are found, called and checked."""

from __future__ import annotations

import asyncio
import sys
import threading
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import pytest

from foveate.audit import judge as judges
from foveate.audit.judge import load_judge
from foveate.audit.records import Item
from foveate.core.errors import InputError, SettingError

ITEM = Item("q7", (), "what is it ?", (), "judge", "uncategorised", 8)

MODULE = """
import threading
seen = []
def length(item, answer):
    seen.append(threading.current_thread())
    return len(answer) / 10
async def later(item, answer):
    seen.append(threading.current_thread())
    return item.id == "q7"
class Strict:
    async def __call__(self, item, answer):
        seen.append(threading.current_thread())
        return 0.25
    def method(self, item, answer):
        return later(item, answer)
strict = Strict()
def broken(item, answer):
    raise RuntimeError("no network\\nat all")
def wrong(item, answer):
    return {"nan": float("nan"), "big": 1.5, "text": "1", "none": None}[answer]
number = 3
"""


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    (tmp_path / "my_judges.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)  # the current folder is looked into, and nothing else is changed
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry])
    monkeypatch.delitem(sys.modules, "my_judges", raising=False)
    return "my_judges"


def said(name: str, answer: str) -> float:
    async def one() -> float:
        return await load_judge(name)(ITEM, answer)

    return asyncio.run(one())


def test_a_function_is_called_in_a_thread_and_an_async_one_is_not(module: str) -> None:
    assert said(f"{module}:length", "abc") == 0.3
    assert said(f"{module}:later", "abc") == 1.0
    assert said(f"{module}:strict", "abc") == 0.25
    assert said(f"{module}:strict.method", "abc") == 1.0
    threads = sys.modules[module].seen
    assert str(Path.cwd()) not in sys.path
    here = threading.main_thread()
    assert [thread is here for thread in threads] == [False, True, True, True]


@pytest.mark.parametrize("answer", ["nan", "big", "text", "none"])
def test_a_score_outside_0_to_1_names_judge_and_item(module: str, answer: str) -> None:
    with pytest.raises(InputError, match=r"my_judges:wrong.*q7.*0 to 1"):
        said(f"{module}:wrong", answer)


def test_a_judge_that_fails_names_item_and_reason(module: str) -> None:
    with pytest.raises(InputError, match=r"q7.*RuntimeError: no network$"):
        said(f"{module}:broken", "x")


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("my_judges:missing", "cannot be loaded: AttributeError"),
        ("no_such_module:f", "cannot be loaded: ModuleNotFoundError"),
        ("my_judges:number", "no function but int"),
        ("my_judges:", "module:function"),
        (":f", "module:function"),
        ("nothing", "unknown judge 'nothing'"),
    ],
)
def test_what_cannot_be_loaded_is_refused(module: str, name: str, reason: str) -> None:
    with pytest.raises(SettingError, match=reason):
        load_judge(name)


def test_entry_points(module: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def points(group: str) -> list[Any]:
        assert group == "foveate.judges"
        return [
            EntryPoint("mine", f"{module}:length", group),
            EntryPoint("gone", "no_such_module:f", group),
        ]

    monkeypatch.setattr(judges, "entry_points", points)
    monkeypatch.syspath_prepend(Path.cwd())
    assert said("mine", "ab") == 0.2
    with pytest.raises(SettingError, match="did you mean mine"):
        load_judge("mina")
    with pytest.raises(SettingError, match="ModuleNotFoundError"):
        load_judge("gone")
