"""A judge of your own: any function that scores an answer, such as a larger model behind an API.

    def judge(item: foveate.audit.records.Item, answer: str) -> float: ...

It may be `async`; one that is not runs in a thread of its own. It is named as "module:function", where
the module is installed or stands in the current folder, or by an entry point of the group
`foveate.judges`. Its scores stand in the raw rows, because nobody can
compute them again from the text.
"""

from __future__ import annotations

import asyncio
import importlib
import inspect
import math
import sys
from collections.abc import Awaitable, Callable
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any, Protocol

from foveate.audit.records import Item
from foveate.core.errors import InputError, SettingError, nearest

ENTRY_POINT = "foveate.judges"


class Judge(Protocol):
    """What scores the answers of a run, in 0 to 1. It is called once for every finished request, while
    others are under way, so it must not use the machine that is measured.
    """

    def __call__(self, item: Item, answer: str) -> Awaitable[float]: ...


def load_judge(name: str) -> Judge:
    """The judge of that name, "module:function" or an entry point; its scores are checked.

    Errors: SettingError, with the reason, where it cannot be loaded or called; when it judges,
    InputError with the item for an exception of its own and for anything but a number in 0 to 1.
    """
    module, colon, attribute = name.partition(":")
    found = _from_module(name, module, attribute) if colon else _from_entry_point(name)
    if not callable(found):
        raise SettingError(f"judge {name!r} is no function but {type(found).__name__}")
    return checked(found, name)


def _from_module(name: str, module: str, attribute: str) -> Any:
    if not module or not attribute:
        raise SettingError(f"judge {name!r} must read module:function")
    here = str(Path.cwd())  # the `foveate` script, unlike `python -m`, does not look there
    sys.path.append(here)
    try:
        found: Any = importlib.import_module(module)
        for part in attribute.split("."):
            found = getattr(found, part)
    except Exception as error:  # the module is the user's own: anything may happen in it
        raise SettingError(f"judge {name!r} cannot be loaded: {_line(error)}") from error
    finally:
        sys.path.remove(here)
    return found


def _from_entry_point(name: str) -> Any:
    points = {point.name: point for point in entry_points(group=ENTRY_POINT)}
    if name not in points:
        known = nearest(name, points) if points else "none is installed"
        raise SettingError(f"unknown judge {name!r}: give module:function, or a name ({known})")
    try:
        return points[name].load()
    except Exception as error:  # the package is another's: anything may happen in it
        raise SettingError(f"judge {name!r} cannot be loaded: {_line(error)}") from error


def checked(judge: Callable[[Item, str], Any], name: str) -> Judge:
    """A judge whose scores are checked, and that never holds up the event loop."""
    function = judge if inspect.isroutine(judge) else type(judge).__call__
    waits = inspect.iscoroutinefunction(function)

    async def judged(item: Item, answer: str) -> float:
        try:
            found = judge(item, answer) if waits else await asyncio.to_thread(judge, item, answer)
            value = await found if inspect.isawaitable(found) else found
        except Exception as error:  # the judge is the user's own: anything may happen in it
            raise InputError(
                f"judge {name!r} failed on item {item.id!r}: {_line(error)}"
            ) from error
        return _score(value, name, item)

    return judged


def _score(value: Any, name: str, item: Item) -> float:
    try:
        score = float(value) if not isinstance(value, str | bytes) else math.nan
    except (TypeError, ValueError):
        score = math.nan
    if not 0 <= score <= 1:
        raise InputError(
            f"judge {name!r} gave {value!r} for item {item.id!r}; a score is a number in 0 to 1"
        )
    return score


def _line(error: BaseException) -> str:
    text = str(error).strip().split("\n")[0]
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
