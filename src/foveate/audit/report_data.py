"""What the report reads: the receipt's figures under their names, and the rows behind them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from foveate.audit.records import Row
from foveate.audit.report_html import Estimate, estimate
from foveate.audit.target import BASELINE

TIMES = {
    "ttft_ms": "time to the first token",
    "tpot_ms": "time per output token",
    "itl_ms": "time between two tokens",
    "e2e_ms": "whole answer",
}
QUANTILES = ("p50", "p95", "p99")


@dataclass(frozen=True)
class Audit:
    """A finished audit: receipt.json and the raw rows."""

    receipt: Mapping[str, Any]
    rows: Sequence[Row]

    @cached_property
    def arms(self) -> tuple[str, ...]:
        """The baseline, then the candidates as the spec orders them."""
        names = [str(a.get("name")) for a in self.receipt.get("spec", {}).get("arms", ())]
        known = list(self._figures("arms"))
        order = [n for n in names if n in known] + [n for n in known if n not in names]
        return tuple(sorted(order, key=lambda n: n != BASELINE))

    @property
    def candidates(self) -> tuple[str, ...]:
        return tuple(a for a in self.arms if a != BASELINE)

    @cached_property
    def loads(self) -> tuple[str, ...]:
        """Every load that some arm ran under, lighter ones first."""
        found = {load for arm in self._figures("arms").values() for load in arm.get("loads", {})}
        return tuple(sorted(found, key=_weight))

    @cached_property
    def categories(self) -> tuple[str, ...]:
        """Categories by name, without "all"."""
        arms = self._figures("arms").values()
        return tuple(sorted({c for arm in arms for c in arm.get("quality", {})} - {"all"}))

    @property
    def measured(self) -> list[Row]:
        """Rows that count."""
        return [r for r in self.rows if not r.warmup]

    def number_of(self, arm: str) -> int:
        """The arm's number in charts and tables; the baseline is 0."""
        return self.arms.index(arm)

    def label(self, arm: str) -> str:
        return f"{self.number_of(arm)} {arm}"

    def at(self, arm: str, load: str) -> Mapping[str, Any]:
        """The figures of an arm under a load; empty where it did not run."""
        found: Mapping[str, Any] = self._figures("arms").get(arm, {}).get("loads", {}).get(load, {})
        return found

    def figure(self, arm: str, load: str, *names: str) -> Estimate | None:
        """One figure by its path below arm and load; None where it was not measured."""
        return estimate(_walk(self.at(arm, load), names))

    def quality(self, arm: str, category: str = "all") -> Mapping[str, Any]:
        found = self._figures("arms").get(arm, {}).get("quality", {}).get(category)
        return found or {}

    def score(self, arm: str, category: str = "all") -> Estimate | None:
        """An arm's mean score and its interval."""
        given = self.quality(arm, category)
        score = given.get("score")
        if score is None:
            return None
        return Estimate(float(score), given.get("low"), given.get("high"))

    def ratio(self, arm: str, load: str, metric: str) -> Estimate | None:
        """How many times better an arm is than the baseline under a load."""
        return estimate(_walk(self.pair(arm), ("speed", load, metric, "ratio")))

    def drop(self, arm: str, category: str = "all") -> Estimate | None:
        """How far an arm's score lies below the baseline's, as a fraction."""
        return estimate(_walk(self.pair(arm), ("quality", category, "drop")))

    def pair(self, arm: str) -> Mapping[str, Any]:
        """An arm against the baseline."""
        found: Mapping[str, Any] = self._figures("pairs").get(arm, {})
        return found

    def _figures(self, name: str) -> Mapping[str, Any]:
        found: Mapping[str, Any] = self.receipt.get("figures", {}).get(name, {})
        return found


def _walk(value: Any, names: Iterable[str]) -> Any:
    for name in names:
        if not isinstance(value, Mapping):
            return None
        value = value.get(name)
    return value


def _weight(load: str) -> tuple[str, float, str]:
    kind, _, rest = load.partition(":")
    try:
        return (kind, float(rest), "")
    except ValueError:
        return (kind, 0.0, rest)


def load_words(load: str) -> str:
    """A load in words: `8 at a time`, `5 requests a second`."""
    kind, _, rest = load.partition(":")
    if kind == "closed":
        return f"{load}: {rest} at a time"
    if kind == "open":
        return f"{load}: {rest} requests a second"
    return load
