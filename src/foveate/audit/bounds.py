"""Bounds of a verdict: how much quality may be lost, how much faster it must be. From a TOML file:

    max_quality_drop = 0.01            # one point of the mean score, over all items
    max_error_rate = 0.02              # of requests, under every load

    [max_quality_drop_by_category]     # instead of the general bound, for these categories
    charts = 0.03

    [[min_speedup]]
    metric = "ttft"                    # a latency's median; also "ttft_p95", "throughput", "cpu" …
    at = "closed:8"                    # one load; without it, every load
    min = 1.2

    [slo]                              # what "goodput" counts
    ttft_ms = 500

    [confidence]                       # one-sided, of every decision
    quality = 0.95
    speed = 0.99
    errors = 0.99

Bounds are checked before anything runs; what contradicts itself is an InputError.
"""

from __future__ import annotations

import math
import re
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from foveate.audit.figures_speed import SPEED_METRICS
from foveate.core.errors import InputError, nearest

DEFAULT_DROP = 0.01
"""The bound on quality where none is given: one point."""

SLO_NAMES = ("ttft_ms", "tpot_ms", "e2e_ms")
_KEYS = (
    "max_quality_drop",
    "max_quality_drop_by_category",
    "max_error_rate",
    "min_speedup",
    "slo",
    "confidence",
)


@dataclass(frozen=True)
class Speedup:
    """`metric` must be at least `min` times better than the baseline's under the load `at`, or under
    every load if that is None. min = 1: not slower.
    """

    metric: str
    at: str | None
    min: float


@dataclass(frozen=True)
class Confidence:
    """One-sided confidence of decisions in each family of tests, above one half."""

    quality: float = 0.95
    speed: float = 0.99
    errors: float = 0.99

    def __post_init__(self) -> None:
        for name in ("quality", "speed", "errors"):
            _within(f"confidence.{name}", getattr(self, name), 0.5, 1.0, open_ends=True)


@dataclass(frozen=True)
class Bounds:
    """What a candidate must hold; None means that it is not asked for. Drops and rates are
    fractions: 0.01 is one point, or one request in a hundred.

    InputError where bounds are out of range or contradict each other.
    """

    max_quality_drop: float | None = None
    max_quality_drop_by_category: Mapping[str, float] = field(default_factory=dict)
    max_error_rate: float | None = None
    min_speedup: tuple[Speedup, ...] = ()
    slo: Mapping[str, float] = field(default_factory=dict)
    confidence: Confidence = field(default_factory=Confidence)

    def __post_init__(self) -> None:
        if self.max_quality_drop is not None:
            _drop("max_quality_drop", self.max_quality_drop)
        for name, value in self.max_quality_drop_by_category.items():
            _drop(f"max_quality_drop_by_category.{name}", value)
            if name == "all":
                raise InputError(
                    "max_quality_drop_by_category.all: the bound on all items is max_quality_drop"
                )
        if self.max_error_rate is not None:
            _within("max_error_rate", self.max_error_rate, 0.0, 1.0)
            if self.max_error_rate == 1:
                raise InputError("max_error_rate = 1 bounds nothing: leave it out or set it lower")
        self._check_slo()
        self._check_speedups()
        if not (
            self.max_quality_drop is not None
            or self.max_quality_drop_by_category
            or self.max_error_rate is not None
            or self.min_speedup
        ):
            raise InputError(
                "the bounds ask for nothing: give max_quality_drop, max_error_rate or min_speedup"
            )

    def _check_slo(self) -> None:
        for name, value in self.slo.items():
            if name not in SLO_NAMES:
                raise InputError(f"unknown slo.{name}: {nearest(name, SLO_NAMES)}")
            _number(f"slo.{name}", value)
            if not value > 0:
                raise InputError(f"slo.{name} = {value} is out of range: above 0 milliseconds")
        ttft_ms, e2e_ms = self.slo.get("ttft_ms"), self.slo.get("e2e_ms")
        if ttft_ms is not None and e2e_ms is not None and ttft_ms > e2e_ms:
            raise InputError(
                f"slo.ttft_ms = {ttft_ms:g} is above slo.e2e_ms = {e2e_ms:g}: an answer cannot end "
                "before its first token"
            )

    def _check_speedups(self) -> None:
        seen: dict[tuple[str, str | None], float] = {}
        for asked in self.min_speedup:
            where = _where(asked.metric, asked.at)
            if asked.metric not in SPEED_METRICS:
                raise InputError(
                    f"min_speedup: unknown metric {asked.metric!r}: "
                    f"{nearest(asked.metric, SPEED_METRICS)}"
                )
            _number(f"min_speedup of {where}", asked.min)
            if not asked.min > 0:
                raise InputError(
                    f"min_speedup of {where} = {asked.min} is out of range: above 0, and 1 means "
                    "not slower"
                )
            if asked.metric == "goodput" and not self.slo:
                raise InputError(
                    "min_speedup of goodput needs an [slo] table: goodput counts the requests "
                    "within it"
                )
            key = (asked.metric, asked.at)
            if seen.setdefault(key, asked.min) != asked.min:
                raise InputError(
                    f"min_speedup of {where} is given as {seen[key]:g} and as {asked.min:g}: keep one"
                )

    def drop_bound(self, category: str) -> float | None:
        """The bound on the drop in a category (or "all"); None if there is none."""
        return self.max_quality_drop_by_category.get(category, self.max_quality_drop)

    def speedups(self, loads: Iterable[str]) -> list[tuple[Speedup, str]]:
        """Every bound on speed with each load that it is for; the same bound once."""
        found: dict[tuple[Speedup, str], None] = {}
        for asked in self.min_speedup:
            for load in loads:
                if asked.at in (None, load):
                    found[Speedup(asked.metric, load, asked.min), load] = None
        return list(found)

    def check(self, loads: Iterable[str], categories: Iterable[str] | None = None) -> None:
        """InputError for a bound on a load that is not run or a category that no item has. Call it
        before the run. categories: None if they are not known yet.
        """
        run = [canonical_load(load) for load in loads]
        for asked in self.min_speedup:
            if asked.at is not None and asked.at not in run:
                raise InputError(
                    f"min_speedup of {_where(asked.metric, asked.at)}: that load is not run; "
                    f"{nearest(asked.at, run)}"
                )
        if categories is None:
            return
        known = set(categories)
        for name in self.max_quality_drop_by_category:
            if name not in known:
                raise InputError(
                    f"max_quality_drop_by_category.{name}: no item has this category; "
                    f"{nearest(name, known)}"
                )

    def as_dict(self) -> dict[str, Any]:
        """For JSON; `from_dict` reads it back to equal bounds."""
        found: dict[str, Any] = {
            "max_quality_drop": self.max_quality_drop,
            "max_quality_drop_by_category": dict(self.max_quality_drop_by_category),
            "max_error_rate": self.max_error_rate,
            "min_speedup": [
                {"metric": s.metric, "at": s.at, "min": s.min} for s in self.min_speedup
            ],
            "slo": dict(self.slo),
            "confidence": {
                "quality": self.confidence.quality,
                "speed": self.confidence.speed,
                "errors": self.confidence.errors,
            },
        }
        return found

    @classmethod
    def from_dict(cls, given: Mapping[str, Any]) -> Bounds:
        """From a table as in a bounds file; an empty one gives the default bounds. InputError with
        the nearest name for an unknown key.
        """
        if not given:
            return cls(max_quality_drop=DEFAULT_DROP)
        _known_keys(given, _KEYS, "the bounds")
        confidence = _table(given, "confidence")
        _known_keys(confidence, ("quality", "speed", "errors"), "confidence")
        return cls(
            max_quality_drop=given.get("max_quality_drop"),
            max_quality_drop_by_category=dict(_table(given, "max_quality_drop_by_category")),
            max_error_rate=given.get("max_error_rate"),
            min_speedup=_speedups(given.get("min_speedup")),
            slo=dict(_table(given, "slo")),
            confidence=Confidence(**confidence),
        )


def load_bounds(path: Path | None) -> Bounds:
    """The bounds of a TOML file; of None, the default: at most one point of quality lost.

    InputError if the file cannot be read, is no TOML, is empty or contradicts itself.
    """
    if path is None:
        return Bounds.from_dict({})
    try:
        given = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"the bounds {path} cannot be read: {error}") from None
    except tomllib.TOMLDecodeError as error:
        # TOML itself refuses a key that is given twice.
        raise InputError(f"the bounds {path} are no valid TOML: {error}") from None
    if not given:
        raise InputError(f"the bounds {path} are empty: give max_quality_drop or min_speedup")
    try:
        return Bounds.from_dict(given)
    except InputError as error:
        raise InputError(f"{path}: {error}") from None


def canonical_load(text: str) -> str:
    """A load as rows name it: "open:5.0" is "open:5". Other texts unchanged."""
    kind, _, value = text.strip().partition(":")
    if kind == "closed" and re.fullmatch(r"\d+", value):
        return f"closed:{int(value)}"
    if kind == "open":
        try:
            return f"open:{float(value):g}"
        except ValueError:
            return text
    return text.strip()


def canonical_metric(text: str) -> str:
    """A speed metric as the figures name it: "e2e_ms" and "e2e_p50" are "e2e"."""
    plain = text.strip().lower().replace("_ms", "").replace("_rps", "")
    return plain.removesuffix("_p50")


def _speedups(given: Any) -> tuple[Speedup, ...]:
    if given is None:
        return ()
    if not isinstance(given, (list, tuple)) or not all(isinstance(x, Mapping) for x in given):
        raise InputError("min_speedup is a list of tables: write [[min_speedup]] above each")
    found = []
    for entry in given:
        _known_keys(entry, ("metric", "at", "min"), "min_speedup")
        metric, at = entry.get("metric"), entry.get("at")
        if not isinstance(metric, str) or "min" not in entry:
            raise InputError('each [[min_speedup]] needs metric, such as "ttft", and min')
        if at is not None and not isinstance(at, str):
            raise InputError(f"min_speedup of {metric}: at = {at!r} is no load such as closed:8")
        at = None if at is None else canonical_load(at)
        found.append(Speedup(canonical_metric(metric), at, entry["min"]))
    return tuple(found)


def _table(given: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    found = given.get(name)
    if found is None:
        return {}
    if not isinstance(found, Mapping):
        raise InputError(f"{name} is a table: write [{name}] above its lines")
    return found


def _known_keys(given: Mapping[str, Any], known: tuple[str, ...], where: str) -> None:
    for key in given:
        if key not in known:
            raise InputError(f"{where}: unknown key {key!r}; {nearest(str(key), known)}")


def _where(metric: str, at: str | None) -> str:
    return f"{metric} at {at}" if at else f"{metric} at every load"


def _drop(name: str, value: Any) -> None:
    _number(name, value)
    if value > 1 or value < 0:
        hint = f"; {value:g} points are {value / 100:g}" if value > 1 else ""
        raise InputError(f"{name} = {value:g} is out of range: a fraction, 0 to below 1{hint}")
    if value == 1:
        raise InputError(f"{name} = 1 bounds nothing: leave it out or set it lower")


def _within(name: str, value: Any, low: float, high: float, open_ends: bool = False) -> None:
    _number(name, value)
    if not low <= value <= high or (open_ends and value in (low, high)):
        between = f"above {low:g} and below {high:g}" if open_ends else f"{low:g} to {high:g}"
        raise InputError(f"{name} = {value:g} is out of range: {between}")


def _number(name: str, value: Any) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise InputError(f"{name} = {value!r} is not a finite number")
