"""Names to methods. Built-ins are found by scanning their packages, third parties by the entry
point `foveate.methods`.
"""

from __future__ import annotations

import hashlib
import importlib
import inspect
import logging
import pkgutil
import re
from importlib.metadata import entry_points, packages_distributions, version
from pathlib import Path
from typing import Any, TypeVar

from foveate.core.errors import PlanError, UnknownMethodError, nearest
from foveate.core.method import STAGES, Method

ENTRY_POINT = "foveate.methods"
BUILTIN_PACKAGES = (
    "foveate.encode.pixels",
    "foveate.encode.tower",
    "foveate.encode.tokens",
    "foveate.prefill",
    "foveate.memory",
    "foveate.decode",
)
_NAME = re.compile(r"^[a-z][a-z0-9]*(-[a-z0-9]+)*$")
_log = logging.getLogger("foveate")
_methods: dict[str, type[Method]] = {}
_broken: dict[str, str] = {}
_origins: dict[str, str] = {}
_loaded = False

M = TypeVar("M", bound=type[Method])


def register(cls: M) -> M:
    """Class decorator. A malformed or taken name, or a missing attribute, fails here, at import."""
    for attribute in ("name", "stage", "summary"):
        if not isinstance(getattr(cls, attribute, None), str):
            raise PlanError(f"{cls.__name__} must set the class attribute {attribute!r}")
    if not _NAME.match(cls.name):
        raise PlanError(
            f"method name {cls.name!r} is malformed: lower-case letters and digits, parts joined by '-'"
        )
    if cls.stage not in STAGES:
        raise PlanError(f"{cls.name}: unknown stage {cls.stage!r}; {nearest(cls.stage, STAGES)}")
    taken = _methods.get(cls.name)
    if taken is not None and taken is not cls:
        same = (taken.__module__, taken.__qualname__) == (cls.__module__, cls.__qualname__)
        if not same:
            raise PlanError(f"method name {cls.name!r} is already taken by {taken.__module__}")
    _methods[cls.name] = cls
    return cls


def _load() -> None:
    global _loaded
    if _loaded:
        return
    _loaded = True
    for package_name in BUILTIN_PACKAGES:
        try:
            package = importlib.import_module(package_name)
        except ModuleNotFoundError as error:
            if error.name and package_name.startswith(error.name):
                continue
            raise
        for info in pkgutil.iter_modules(package.__path__):
            if not info.name.startswith("_"):
                importlib.import_module(f"{package_name}.{info.name}")
    for point in entry_points(group=ENTRY_POINT):
        try:
            cls = register(point.load())
            if point.dist is not None:
                _origins[cls.name] = f"{point.dist.name}-{point.dist.version}"
        except Exception as error:
            # One broken plug-in must not take the others down; naming it later raises, `doctor`
            # shows it.
            _broken[point.name] = f"{type(error).__name__}: {error}"
            _log.warning("third-party method %s could not be loaded: %s", point.name, error)


def methods(stage: str | None = None) -> dict[str, type[Method]]:
    """All registered methods by name, of one stage if given, in the order of stages and names."""
    _load()
    order = {s: i for i, s in enumerate(STAGES)}
    found = sorted(_methods.values(), key=lambda c: (order[c.stage], c.name))
    return {c.name: c for c in found if stage is None or c.stage == stage}


def broken() -> dict[str, str]:
    """Third-party entry points that failed to load, with the reason."""
    _load()
    return dict(_broken)


def origin(name: str) -> str | None:
    """What tells the code of a third-party method apart: its package and version, or a hash of its
    source file where no package brings it. None for built-in methods, which are as old as Foveate.
    """
    cls = get(name)
    package = cls.__module__.partition(".")[0]
    if package == "foveate":
        return None
    if name not in _origins:
        found = sorted(set(packages_distributions().get(package, ())))
        _origins[name] = "+".join(f"{p}-{version(p)}" for p in found) or _source(cls)
    return _origins[name]


def _source(cls: type[Method]) -> str:
    try:
        code = Path(inspect.getfile(cls)).read_bytes()
    except (OSError, TypeError):
        raise PlanError(
            f"method {cls.name!r} belongs to no package and has no source file, so that caches could not "
            f"tell its versions apart: install it with an entry point {ENTRY_POINT!r}"
        ) from None
    return hashlib.sha256(code).hexdigest()[:16]


def get(name: str) -> type[Method]:
    """The method class of a name, or UnknownMethodError with the nearest names."""
    _load()
    if name in _methods:
        return _methods[name]
    if name in _broken:
        raise UnknownMethodError(
            f"method {name!r} is installed but failed to load: {_broken[name]}"
        )
    raise UnknownMethodError(f"unknown method {name!r}; {nearest(name, _methods)}")


def build(name: str, **settings: Any) -> Any:
    """A configured method: `build("divprune", keep="1/4")`."""
    return get(name).from_settings(settings)
