"""A plan: at most one method a stage, and how positions, seed and question turn are taken. Text,
TOML, JSON, stable hash.

Text form: `downscale:side=336+visionzip:keep=1/4;positions=retain;seed=7`.
"""

from __future__ import annotations

import hashlib
import json
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from fractions import Fraction
from pathlib import Path
from typing import Any, Literal

from foveate.core import registry
from foveate.core.errors import PlanError, SettingError, nearest
from foveate.core.method import STAGES, Method, parse_value

Positions = Literal["auto", "retain", "renumber"]
POSITIONS: tuple[Positions, ...] = ("auto", "retain", "renumber")
Newlines = Literal["auto", "rows", "all"]
NEWLINES: tuple[Newlines, ...] = ("auto", "rows", "all")
_OPTIONS = ("positions", "seed", "question_turn", "newlines")
_LATER = ("newlines", "auto")


@dataclass(frozen=True)
class Plan:
    """The composition of methods that a run uses.

    positions: "auto" resolves to retain for M-RoPE and to renumber for 1-D models; question_turn:
    which
    turn of a conversation a text-conditioned method reads (-1 the last). newlines: tokens that carry
    layout stay where their grid row keeps a token ("rows", what "auto" means) or all stay ("all": then
    their number is known before encoding, as vLLM needs).
    """

    methods: tuple[Method, ...] = ()
    positions: Positions = "auto"
    seed: int = 0
    question_turn: int = -1
    newlines: Newlines = "auto"

    def __post_init__(self) -> None:
        if self.newlines not in NEWLINES:
            raise SettingError(
                f"plan: newlines = {self.newlines!r}; {nearest(str(self.newlines), NEWLINES)}"
            )
        if self.positions not in POSITIONS:
            raise SettingError(
                f"plan: positions = {self.positions!r}; {nearest(str(self.positions), POSITIONS)}"
            )
        if self.seed < 0:
            raise SettingError(f"plan: seed = {self.seed} is out of range: at least 0")
        seen: dict[str, str] = {}
        for m in self.methods:
            if m.stage in seen:
                raise PlanError(
                    f"a plan takes one method a stage; {seen[m.stage]} and {m.name} both act at "
                    f"stage {m.stage!r}: drop one of them"
                )
            seen[m.stage] = m.name
        order = {s: i for i, s in enumerate(STAGES)}
        ordered = tuple(sorted(self.methods, key=lambda m: order[m.stage]))
        object.__setattr__(self, "methods", ordered)

    def stage(self, name: str) -> Any | None:
        """The method of a stage, or None."""
        return next((m for m in self.methods if m.stage == name), None)

    @property
    def is_identity(self) -> bool:
        return not self.methods

    def resolved(self, *, mrope: bool) -> Plan:
        """The plan with `positions` decided for a model."""
        if self.positions != "auto":
            return self
        return replace(self, positions="retain" if mrope else "renumber")

    # --- text -----------------------------------------------------------------------------------
    @staticmethod
    def parse(text: str | Plan | Mapping[str, Any] | None) -> Plan:
        """A plan from its text form; "" or "none" is the identity. Plans and mappings pass through."""
        if text is None:
            return Plan()
        if isinstance(text, Plan):
            return text
        if isinstance(text, Mapping):
            return Plan.from_dict(text)
        if not isinstance(text, str):
            raise PlanError(
                f"a plan is text such as visionzip:keep=1/4, a Plan or a mapping, not "
                f"{type(text).__name__}"
            )
        body, *options = [part.strip() for part in text.strip().split(";")]
        built: list[Method] = []
        if body.lower() not in ("", "none"):
            for part in body.split("+"):
                name, _, rest = part.strip().partition(":")
                if not name:
                    raise PlanError(f"plan {text!r}: an empty part between '+' signs")
                built.append(registry.get(name).from_settings(_pairs(rest, name)))
        values = {}
        for option in options:
            values.update(_pairs(option, "plan"))
        return Plan(tuple(built), **_options(values))

    def __str__(self) -> str:
        parts = []
        for m in self.methods:
            inner = ",".join(f"{k}={_text(v)}" for k, v in m.settings.items())
            parts.append(m.name + (":" + inner if inner else ""))
        options = [f"{k}={v}" for k, v in self._options().items()]
        return ";".join(["+".join(parts) or "none", *options])

    # --- mappings: TOML and JSON ----------------------------------------------------------------
    def to_dict(self) -> dict[str, Any]:
        steps = [
            {"method": m.name, **{k: _plain(v) for k, v in m.settings.items()}}
            for m in self.methods
        ]
        return {"methods": steps, **self._options()}

    @staticmethod
    def from_dict(data: Mapping[str, Any]) -> Plan:
        unknown = set(data) - {"methods", *_OPTIONS}
        if unknown:
            key = sorted(unknown)[0]
            raise SettingError(f"plan has no field {key!r}; {nearest(key, ('methods', *_OPTIONS))}")
        steps = data.get("methods", [])
        if not isinstance(steps, list) or not all(isinstance(s, Mapping) for s in steps):
            raise PlanError("plan: methods must be a list of tables, each with a key 'method'")
        built = []
        for step in steps:
            if "method" not in step:
                raise PlanError(f"plan: a step without a 'method' key: {dict(step)}")
            settings = {k: v for k, v in step.items() if k != "method"}
            built.append(registry.get(str(step["method"])).from_settings(settings))
        return Plan(tuple(built), **_options({k: data[k] for k in _OPTIONS if k in data}))

    def to_json(self) -> str:
        return json.dumps(self.to_dict(), sort_keys=True)

    def to_toml(self) -> str:
        lines = [f"{k} = {json.dumps(v)}" for k, v in self._options().items()]
        for step in self.to_dict()["methods"]:
            lines += ["", "[[methods]]"] + [f"{k} = {json.dumps(v)}" for k, v in step.items()]
        return "\n".join(lines) + "\n"

    @staticmethod
    def from_json(text: str) -> Plan:
        try:
            data = json.loads(text)
        except json.JSONDecodeError as error:
            raise PlanError(f"plan is not valid JSON: {error}") from None
        if not isinstance(data, Mapping):
            raise PlanError("plan: JSON must be an object with a list 'methods'")
        return Plan.from_dict(data)

    @staticmethod
    def from_toml(text: str) -> Plan:
        try:
            return Plan.from_dict(tomllib.loads(text))
        except tomllib.TOMLDecodeError as error:
            raise PlanError(f"plan is not valid TOML: {error}") from None

    @staticmethod
    def load(source: str) -> Plan:
        """A plan from its text form or from a .toml or .json file; "" is an error, unlike "none"."""
        if not source.strip():
            raise PlanError("the plan is empty; say none for all tokens")
        path = Path(source)
        # The last setting of a text may itself name a file: sparsemm:keep=1/4,heads=heads.json
        if path.suffix in (".toml", ".json") and (path.is_file() or "=" not in source):
            if not path.is_file():
                raise PlanError(f"no plan file at {path}")
            text = path.read_text(encoding="utf-8")
            return Plan.from_toml(text) if path.suffix == ".toml" else Plan.from_json(text)
        return Plan.parse(source)

    @property
    def hash(self) -> str:
        """16 hex digits over every setting, defaults included: equal runs, equal hash, on any
        machine.
        """
        steps = [
            {"method": m.name, **{f.name: _plain(getattr(m, f.name)) for f in fields(m)}}
            for m in self.methods
        ]
        # "auto" is left out: the option came later, and hashes that were written down stay.
        options = {k: getattr(self, k) for k in _OPTIONS if (k, getattr(self, k)) != _LATER}
        full = {"methods": steps, **options}
        return hashlib.sha256(json.dumps(full, sort_keys=True).encode()).hexdigest()[:16]

    def _options(self) -> dict[str, Any]:
        defaults = Plan.__dataclass_fields__
        return {k: getattr(self, k) for k in _OPTIONS if getattr(self, k) != defaults[k].default}


def _pairs(text: str, owner: str) -> dict[str, str]:
    out: dict[str, str] = {}
    for pair in filter(None, (p.strip() for p in text.split(","))):
        key, eq, value = pair.partition("=")
        if not eq or not key.strip() or not value.strip():
            raise PlanError(f"{owner}: {pair!r} is not of the form setting=value")
        if key.strip() in out:
            raise PlanError(f"{owner}: setting {key.strip()!r} is given twice")
        out[key.strip()] = value.strip()
    return out


def _options(values: Mapping[str, Any]) -> dict[str, Any]:
    kinds = {"positions": str, "seed": int, "question_turn": int, "newlines": str}
    for key in values:
        if key not in kinds:
            raise SettingError(f"plan has no option {key!r}; {nearest(key, kinds)}")
    return {k: parse_value(v, kinds[k], f"plan: {k}") for k, v in values.items()}


def _plain(value: Any) -> Any:
    return str(value) if isinstance(value, Fraction) else value


def _text(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
