"""The single tests of a verdict: one for each bound, arm and category or load.

Each is two one-sided tests of the same number against its bound: p_refuse is small when the data
show that the bound is broken, p_accept when they show that it holds. In between, neither is shown.

    quality   Tango's score test (scores 0 or 1) or t with two pseudo-pairs (graded): measure/paired.py
    speed     Student's t on the log ratios of paired blocks: measure/ratio.py
    errors    the exact binomial test of the candidate's error rate, counts over the design effect
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from foveate.audit.bounds import Bounds
from foveate.audit.figures_quality import ALL, p_of, pairs_of
from foveate.audit.figures_speed import ratio_of
from foveate.measure.power import blocks_needed, pairs_needed, trials_needed

Family = Literal["quality", "speed", "errors"]
FAMILIES: tuple[Family, ...] = ("quality", "speed", "errors")

UNITS: dict[Family, str] = {"quality": "pairs", "speed": "blocks", "errors": "requests"}
"""What a family needs more of."""

NO_DROP_ALPHA = 0.005
"""A drop must also differ from none at all, at this one-sided level of an exact test: with few pairs
a margin of a point protects nobody, and an arm compared with itself must not be refused."""

LEAST_BLOCKS = 6
"""What is asked for where a single block tells nothing about the spread between blocks."""


@dataclass(frozen=True)
class BoundTest:
    """One bound on one arm. subject: a category, "metric at load", or a load. estimate, low, high
    and n (pairs, blocks or requests): from the figures, None and 0 where nothing was measured.

    p_none: one-sided p of "there is no drop at all", for quality only. required: must be shown to
    hold before the arm is accepted; a category without a bound of its own can only refuse.
    spread: standard deviation of one sample, for plans; of errors, the design effect.
    """

    arm: str
    family: Family
    subject: str
    bound: float
    n: int = 0
    estimate: float | None = None
    low: float | None = None
    high: float | None = None
    p_refuse: float = 1.0
    p_accept: float = 1.0
    p_none: float = 0.0
    required: bool = True
    spread: float = 0.0
    note: str = ""

    @property
    def holds_as_observed(self) -> bool:
        """Whether the estimate itself is on the good side of the bound."""
        if self.estimate is None:
            return False
        better = (
            self.estimate - self.bound if self.family == "speed" else self.bound - self.estimate
        )
        return better > 0

    def needed(self, accept_alpha: float, refuse_alpha: float) -> int | None:
        """Samples that decide the test with probability .8 if the estimate is the truth; None if no
        number would, or nothing was measured. Never fewer than a quarter more than there are.
        """
        if self.estimate is None or self.n < 1:
            return None
        alpha = accept_alpha if self.holds_as_observed else refuse_alpha
        n: int | None
        if self.family == "quality":
            n = pairs_needed(self.bound - self.estimate, self.spread, alpha)
            if n is not None and not self.holds_as_observed:
                other = pairs_needed(self.estimate, self.spread, min(alpha, NO_DROP_ALPHA))
                n = None if other is None else max(n, other)
        elif self.family == "speed":
            if self.n < 2:
                return LEAST_BLOCKS
            gap = math.log(self.estimate) - math.log(self.bound)
            n = blocks_needed(gap, self.spread, alpha)
        else:
            n = trials_needed(self.estimate, self.bound, alpha) if self.bound > 0 else None
            n = None if n is None else math.ceil(n * self.spread)
        return None if n is None else max(n, math.ceil(1.25 * self.n))


def collect(figures: Mapping[str, Any], bounds: Bounds) -> dict[str, list[BoundTest]]:
    """Every test of every candidate, in the order quality, speed, errors."""
    return {
        arm: [
            *_quality(arm, figures, bounds),
            *_speed(arm, figures, bounds),
            *_errors(arm, figures, bounds),
        ]
        for arm in figures["pairs"]
    }


def _quality(arm: str, figures: Mapping[str, Any], bounds: Bounds) -> list[BoundTest]:
    found: Mapping[str, Any] = figures["pairs"][arm]["quality"]
    tests = []
    for category in dict.fromkeys([ALL, *found, *bounds.max_quality_drop_by_category]):
        bound = bounds.drop_bound(category)
        if bound is None:
            continue
        required = category == ALL or category in bounds.max_quality_drop_by_category
        figure = found.get(category)
        if figure is None:
            if required:
                tests.append(BoundTest(arm, "quality", category, bound))
            continue
        pairs = pairs_of(figure)
        half = p_of(figure) / 2
        failed = figures["arms"][arm]["quality"].get(category, {}).get("failed", 0)
        tests.append(
            BoundTest(
                arm, "quality", category, bound, pairs.n, **figure["drop"],
                p_refuse=pairs.p_above(bound),
                p_accept=pairs.p_below(bound),
                p_none=half if pairs.drop > 0 else 1 - half,
                required=required,
                spread=pairs.planning_sd,
                note=_discordant(figure, failed),
            )
        )  # fmt: skip
    return tests


def _discordant(figure: Mapping[str, Any], failed: int) -> str:
    if figure["kind"] == "binary":
        text = (
            f"{figure['only_baseline']:,} right only on the baseline, "
            f"{figure['only_candidate']:,} only here"
        )
    else:
        text = f"{figure['discordant']:,} with another score"
    return f"{text}, {failed:,} failed requests count as wrong" if failed else text


def _speed(arm: str, figures: Mapping[str, Any], bounds: Bounds) -> list[BoundTest]:
    found: Mapping[str, Any] = figures["pairs"][arm]["speed"]
    tests = []
    for asked, load in bounds.speedups(all_loads(figures)):
        subject = f"{asked.metric} at {load}"
        figure = found.get(load, {}).get(asked.metric)
        if figure is None:
            tests.append(BoundTest(arm, "speed", subject, asked.min))
            continue
        ratio = ratio_of(figure)
        tests.append(
            BoundTest(
                arm, "speed", subject, asked.min, ratio.n, **figure["ratio"],
                p_refuse=ratio.p_below(asked.min),
                p_accept=ratio.p_above(asked.min),
                spread=ratio.log_sd,
            )
        )  # fmt: skip
    return tests


def _errors(arm: str, figures: Mapping[str, Any], bounds: Bounds) -> list[BoundTest]:
    bound = bounds.max_error_rate
    if bound is None:
        return []
    tests = []
    beta = importlib.import_module("scipy.stats").beta
    for load in all_loads(figures):
        figure = figures["arms"][arm]["loads"].get(load)
        if figure is None or not figure["requests"]:
            tests.append(BoundTest(arm, "errors", load, bound))
            continue
        n, failed = figure["requests"], sum(figure["errors"].values())
        kinds = ", ".join(f"{count:,} {kind}" for kind, count in figure["errors"].items())
        if bound == 0:
            # No sample shows a rate of exactly zero: here the bound is on what was seen.
            refuse, accept = float(failed == 0), float(failed > 0)
        else:
            # Tails of the binomial as the beta distribution's, which takes the fractions of a count
            # that a design effect leaves.
            few, of = failed / figure["error_design_effect"], n / figure["error_design_effect"]
            refuse = float(beta.cdf(bound, few, of - few + 1)) if failed else 1.0
            accept = float(beta.sf(bound, few + 1, of - few)) if failed < n else 1.0
        tests.append(
            BoundTest(
                arm, "errors", load, bound, n, **figure["error_rate"],
                p_refuse=refuse,
                p_accept=accept,
                spread=figure["error_design_effect"],
                note=kinds,
            )
        )  # fmt: skip
    return tests


def all_loads(figures: Mapping[str, Any]) -> list[str]:
    """Every load that some arm ran under."""
    return sorted({load for arm in figures["arms"].values() for load in arm["loads"]})
