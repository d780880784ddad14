"""What an audit compares and how: the arms, the workload, the loads, the bounds. From a TOML file or
from the options of the command line; the same spec makes the same requests in the same order.

    workload = "lab:shape,code"
    loads = ["closed:1,4"]
    blocks = 6

    [baseline]
    model = "lab-nano"

    [[candidate]]
    name = "quarter"
    model = "lab-nano"
    plan = "visionzip:keep=1/4"

    [bounds]
    max_quality_drop = 0.05
"""

from __future__ import annotations

import hashlib
import json
import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from foveate.audit.target import BASELINE
from foveate.core.errors import InputError, MissingExtraError, PlanError

try:
    from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
except ModuleNotFoundError as error:  # the verb that needs it says which extra brings it
    raise MissingExtraError(error.name or "pydantic", "audit", "an audit") from None

LAB_NANO = "lab-nano"
"""The name of the bundled model where a model is asked for."""


class Arm(BaseModel):
    """One arm: an endpoint (`url`) or our engine in this process (`model`, `plan`).

    model: of an endpoint, the name it is asked by (else the one it lists); of the engine, a folder,
    a hub id or "lab-nano". body: fields added to every request of an endpoint. api_key_env: the
    environment variable that holds its key. pid: the server's process, for its counters.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = Field(min_length=1, max_length=120)
    url: str | None = None
    model: str | None = None
    plan: str | None = None
    body: dict[str, Any] = Field(default_factory=dict)
    api_key_env: str | None = None
    pid: int | None = Field(default=None, ge=1)

    @property
    def in_process(self) -> bool:
        """Whether our engine answers, in this process."""
        return self.url is None

    @model_validator(mode="after")
    def _whole(self) -> Arm:
        if not self.name.isprintable():
            raise ValueError("a name must not hold line breaks or control characters")
        if self.url is None:
            if self.model is None:
                raise ValueError(f"arm {self.name!r} has neither a url nor a model")
            if self.body or self.api_key_env or self.pid:
                raise ValueError(
                    f"arm {self.name!r} runs in this process: body, api_key_env and pid are for "
                    "endpoints"
                )
            self._plan()
            return self
        if self.plan is not None:
            raise ValueError(
                f"arm {self.name!r} is an endpoint and takes no plan here: start the server with it, "
                "or give the request fields it understands as body"
            )
        parts = urlsplit(self.url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError(f"{self.url!r} is no http(s) address")
        if parts.username or parts.password or parts.query or parts.fragment:
            raise ValueError(
                f"the address of arm {self.name!r} carries more than host and path: put a key into "
                "an environment variable and name that in api_key_env"
            )
        return self

    def _plan(self) -> None:
        from foveate.core.plan import Plan

        try:
            Plan.parse(self.plan)
        except PlanError as error:
            raise ValueError(f"arm {self.name!r}: {error}") from None


class AuditSpec(BaseModel):
    """A whole audit. Counts are per arm, load and block; times are seconds.

    arms: the baseline first. max_new_tokens: of items that do not say theirs. requests: measured
    requests of one turn; warmup: those before it that count nowhere. time_limit_s: the longest a
    turn may send new requests. bounds: a table as in a bounds file (`foveate.audit.bounds`).
    grid: g CO2e a kWh, or a country's code of three letters (`foveate.measure.carbon`); pue: the
    site's power usage effectiveness.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    workload: str = Field(min_length=1)
    limit: int | None = Field(default=None, ge=1)
    seed: int = Field(default=0, ge=0)
    metric: str | None = None
    max_new_tokens: int = Field(default=64, ge=1)
    judge: str | None = None
    arms: tuple[Arm, ...]
    loads: tuple[str, ...] = ("closed:4",)
    blocks: int = Field(default=6, ge=1)
    requests: int = Field(default=20, ge=1)
    warmup: int = Field(default=2, ge=0)
    timeout_s: float = Field(default=60.0, gt=0)
    time_limit_s: float | None = Field(default=None, gt=0)
    bounds: dict[str, Any] = Field(default_factory=dict)
    grid: str | None = None
    pue: float = Field(default=1.0, ge=1)

    @model_validator(mode="after")
    def _consistent(self) -> AuditSpec:
        names = [arm.name for arm in self.arms]
        if len(self.arms) < 2 or names[0] != BASELINE:
            raise ValueError("an audit compares a baseline with at least one candidate")
        twice = sorted({n for n in names if names.count(n) > 1})
        if twice:
            raise ValueError(f"two arms are called {twice[0]!r}: give each its own name")
        if not self.loads:
            raise ValueError("no load is given, such as closed:4")
        again = sorted({x for x in self.loads if self.loads.count(x) > 1})
        if again:
            raise ValueError(f"load {again[0]} is given twice")
        return self

    @property
    def candidates(self) -> tuple[Arm, ...]:
        return self.arms[1:]

    def as_json(self) -> dict[str, Any]:
        """The spec as the receipt holds it, without what is of one moment only (process ids)."""
        arms = [a.model_dump(exclude={"pid"}, exclude_defaults=True) for a in self.arms]
        return {**self.model_dump(exclude={"arms"}, mode="json"), "arms": arms}

    @property
    def hash(self) -> str:
        """SHA-256 of the spec, the same on every machine."""
        return hash_of(self.as_json())


def hash_of(spec: Mapping[str, Any]) -> str:
    """SHA-256 of a spec as a receipt holds it, whichever version wrote it; hexadecimal."""
    text = json.dumps(spec, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def checked(given: Mapping[str, Any], where: str) -> AuditSpec:
    """A spec from plain values; InputError names the field that is wrong and where it stands."""
    try:
        return AuditSpec.model_validate(dict(given))
    except ValidationError as error:
        raise InputError(f"{where}: {_reason(error)}") from None


def _reason(error: ValidationError) -> str:
    parts = []
    for e in error.errors(include_url=False, include_input=False):
        place = ".".join(map(str, e["loc"]))
        text = str(e["msg"]).removeprefix("Value error, ")
        parts.append(f"{place}: {text}" if place else text)
    return "; ".join(parts)


def load_spec(path: Path) -> AuditSpec:
    """A spec file. A workload, a bounds or a trace file that it names stands beside it."""
    given = read_toml(path, "the spec")
    arms: list[dict[str, Any]] = []
    for key in ("baseline", "candidate"):
        found = given.pop(key, [])
        tables = [found] if isinstance(found, dict) else found
        if not isinstance(tables, list) or not all(isinstance(t, dict) for t in tables):
            raise InputError(f"{path}: {key} must be a table, [{key}] or [[{key}]]")
        if key == "baseline":
            if len(tables) != 1:
                raise InputError(f"{path}: a spec has one [baseline] table")
            tables = [{"name": BASELINE, **tables[0]}]
        arms += tables
    shared = given.pop("model", None)
    given["arms"] = [
        {"model": shared, **a} if "url" not in a and shared is not None else a for a in arms
    ]
    loads = given.get("loads")
    if isinstance(loads, list) and all(isinstance(x, str) for x in loads):
        given["loads"] = tuple(
            _beside(x, path, "trace:") if x.startswith("trace:") else x for x in expanded(loads)
        )
    workload = given.get("workload")
    if isinstance(workload, str):
        given["workload"] = _beside(workload, path)
    if isinstance(given.get("bounds"), str):
        given["bounds"] = read_bounds(Path(_beside(given["bounds"], path)), "the bounds")
    return checked(given, str(path))


def _beside(text: str, spec: Path, prefix: str = "") -> str:
    """A file that stands beside the spec, by a path that works from here; other words unchanged."""
    name = text.removeprefix(prefix)
    near = spec.parent / name
    split = spec.parent / name.rpartition("#")[0]  # FOLDER#SPLIT of a workload
    found = near.exists() or (split != spec.parent and split.is_dir())
    return prefix + str(near) if found else text


def read_toml(path: Path, what: str) -> dict[str, Any]:
    """A TOML file as a table. InputError where it is missing or no TOML."""
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"{what}: there is no file {path}") from None
    except OSError as error:
        raise InputError(f"{what}: {path} cannot be read: {error.strerror}") from None
    except (UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise InputError(f"{what}: {path} is no TOML file in UTF-8: {error}") from None


def read_bounds(path: Path, what: str) -> dict[str, Any]:
    """A bounds file; InputError for one that demands nothing, which would mean the default bounds."""
    found = read_toml(path, what)
    if not found:
        raise InputError(f"{what}: {path} is empty; give max_quality_drop or min_speedup")
    return found


def expanded(loads: Iterable[str]) -> tuple[str, ...]:
    """One load each: "closed:1,2,4" stands for three, "open:1,5" for two."""
    out: list[str] = []
    for text in loads:
        kind, _, rest = text.partition(":")
        several = kind in ("closed", "open") and "," in rest
        out += [f"{kind}:{part.strip()}" for part in rest.split(",")] if several else [text]
    return tuple(out)
