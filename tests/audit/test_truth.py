"""A1: intervals cover what was planted, an arm is not refused against itself, a drop is found.

The audits run through the real load generator on a virtual clock. The truth holds a drift that hits
both arms (latencies double over the run and swing), skewed latencies, and errors that get more
frequent; see planted_clock.py.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest

from foveate.audit.bounds import Bounds, Speedup
from foveate.audit.figures import figures
from foveate.audit.verdict import judge_arms
from tests.audit.planted_clock import (
    Arm,
    run_planted,
    true_error_rate,
    true_quantile_ms,
    true_score,
)
from tests.audit.planted_rows import binary_scores, figures_of, row

pytest.importorskip("scipy")

SEEDS = 200
LOADS = {"closed:8": 35.0, "open:40": 42.0}  # with about how long an audit under each takes
ARMS = (
    Arm("baseline"),
    Arm("same"),
    Arm("small", median_s=0.08, errors=0.02, lost=0.045, won=0.015,
        words=(0.08, 0.12, 0.15, 0.20, 0.45)),
)  # fmt: skip
NOT_WORSE = Bounds(
    max_quality_drop=0.01,
    max_error_rate=0.05,
    min_speedup=tuple(Speedup(m, None, 1.0) for m in ("ttft", "e2e", "e2e_p95", "throughput")),
)
POINT = Bounds(max_quality_drop=0.01)


def audit(seed: int, **more: Any) -> tuple[str, list[Any], dict[str, Any]]:
    """One audit of 500 requests an arm; its load turns with the seed."""
    load = list(LOADS)[seed % 2]
    rows, blocks = run_planted(
        ARMS, load, blocks=10, requests=50, seed=seed, length_s=LOADS[load], **more
    )
    return load, rows, figures(rows, blocks, seed=seed)


@dataclass
class Seen:
    covered: dict[str, list[bool]] = field(default_factory=lambda: defaultdict(list))
    open_ends: Counter[str] = field(default_factory=Counter)
    decisions: Counter[str] = field(default_factory=Counter)
    reasons: list[str] = field(default_factory=list)

    def note(self, name: str, interval: Mapping[str, float | None], truth: float) -> None:
        low, high = interval["low"], interval["high"]
        # An end that a sample is too small to give is open; only a p99 may lack one here.
        assert name == "latency p99" or None not in (low, high), name
        self.open_ends[name] += None in (low, high)
        self.covered[name].append((low is None or low <= truth) and (high is None or truth <= high))


@pytest.fixture(scope="module")
def seen() -> Iterator[Seen]:
    found = Seen()
    for seed in range(SEEDS):
        load, rows, figure = audit(seed)
        _note(found, load, rows, figure)
        itself = {**figure, "pairs": {"same": figure["pairs"]["same"]}}
        verdict = judge_arms(itself, NOT_WORSE)["same"]
        found.decisions[verdict.decision] += 1
        if verdict.decision == "refused":
            found.reasons += verdict.reasons
    yield found


def _note(seen: Seen, load: str, rows: list[Any], figure: dict[str, Any]) -> None:
    length_s = LOADS[load]
    of = {a.name: [r for r in rows if r.arm == a.name] for a in ARMS}
    rates = {a.name: true_error_rate(of[a.name], a, length_s) for a in ARMS}
    for arm in ARMS:
        found = figure["arms"][arm.name]["loads"][load]
        for name, q in (("p50", 0.5), ("p95", 0.95), ("p99", 0.99)):
            truth = true_quantile_ms(of[arm.name], arm.median_s, q, length_s)
            seen.note(f"latency {name}", found["e2e_ms"][name], truth)
        seen.note("error rate", found["error_rate"], rates[arm.name])
    for arm in ARMS[1:]:
        pair = figure["pairs"][arm.name]
        gap = rates[arm.name] - rates["baseline"]
        seen.note("difference of error rates", pair["errors"][load], gap)
        for metric in ("ttft", "e2e", "e2e_p95"):
            truth = ARMS[0].median_s / arm.median_s
            seen.note(f"ratio {metric}", pair["speed"][load][metric]["ratio"], truth)
        drops = []
        for category, name in (("exact", "binary"), ("words", "graded")):
            kept = [
                (
                    1
                    - true_error_rate(
                        [r for r in of[a.name] if r.category == category], a, length_s
                    )
                )
                * true_score(a, category)
                for a in (ARMS[0], arm)
            ]
            drops.append(kept[0] - kept[1])
            seen.note(f"quality drop, {name}", pair["quality"][category]["drop"], drops[-1])
        seen.note("quality drop, all", pair["quality"]["all"]["drop"], sum(drops) / 2)


@pytest.mark.claim("A1")
@pytest.mark.parametrize(
    "name",
    [
        "latency p50", "latency p95", "latency p99", "error rate", "difference of error rates",
        "ratio ttft", "ratio e2e", "ratio e2e_p95",
        "quality drop, binary", "quality drop, graded", "quality drop, all",
    ],
)  # fmt: skip
def test_intervals_cover_the_planted_truth(seen: Seen, name: str, record_property: Any) -> None:
    share = float(np.mean(seen.covered[name]))
    n, open_ends = len(seen.covered[name]), seen.open_ends[name]
    more = f", {open_ends} of them open above" if open_ends else ""
    record_property("figure", f"{name}: {100 * share:.1f} % of {n} intervals{more}")
    record_property("bound", "91 to 98.5 %")
    assert 0.91 <= share <= 0.985


@pytest.mark.claim("A1")
def test_an_arm_is_not_refused_against_itself(seen: Seen, record_property: Any) -> None:
    refused = seen.decisions["refused"]
    record_property("figure", f"{refused} of {SEEDS} whole audits against itself refused")
    record_property("bound", "at most 2.5 %")
    assert seen.decisions.total() == SEEDS
    assert refused <= 0.025 * SEEDS, seen.reasons


@pytest.mark.claim("A1")
@pytest.mark.parametrize("discordant", [0.02, 0.06, 0.2, 0.5])
def test_few_pairs_do_not_refuse_an_arm_against_itself(
    discordant: float, record_property: Any
) -> None:
    rng = np.random.default_rng(11)
    shares = {}
    for n in (5, 20, 60, 200, 600, 2000):
        drawn = rng.multinomial(n, [discordant / 2, discordant / 2, 1 - discordant], size=1000)
        decisions = _decisions(drawn, n)
        shares[n] = decisions["refused"] / 1000
    record_property(
        "figure", f"{100 * discordant:g} % discordant: at most {100 * max(shares.values()):.1f} %"
    )
    record_property("bound", "at most 2.5 % refused")
    assert max(shares.values()) <= 0.025, shares


@pytest.mark.claim("A1")
@pytest.mark.parametrize(("discordant", "n"), [(0.02, 4000), (0.06, 9000)])
def test_enough_pairs_find_an_arm_equivalent_to_itself(
    discordant: float, n: int, record_property: Any
) -> None:
    rng = np.random.default_rng(12)
    drawn = rng.multinomial(n, [discordant / 2, discordant / 2, 1 - discordant], size=SEEDS)
    equivalent, accepted = 0, 0
    for lost, won, _ in drawn:
        figure = figures_of({"same": {"all": binary_scores(n, int(lost), int(won))}})
        equivalent += figure["pairs"]["same"]["quality"]["all"]["equivalent_at_1pt"]
        accepted += judge_arms(figure, POINT)["same"].decision == "accepted"
    record_property("figure", f"{100 * equivalent / SEEDS:.1f} % equivalent with {n} pairs")
    record_property("bound", "at least 95 %")
    assert equivalent >= 0.95 * SEEDS and accepted >= 0.95 * SEEDS


@pytest.mark.claim("A1")
def test_a_planted_drop_of_three_points_is_refused(record_property: Any) -> None:
    refused = 0
    for seed in range(SEEDS):
        u = np.random.default_rng([seed, 13]).random(2000).tolist()
        rows = []
        for i, x in enumerate(u):
            # 4.5 % right only on the baseline, 1.5 % only here.
            old, new = x < 0.8, 0.045 <= x < 0.815
            rows.append(row("baseline", str(i), sequence=i, text="yes" if old else "no"))
            rows.append(row("small", str(i), sequence=i, text="yes" if new else "no"))
        verdict = judge_arms(figures(rows, [], seed=seed), POINT)["small"]
        refused += verdict.decision == "refused"
    record_property("figure", f"{100 * refused / SEEDS:.1f} % of {SEEDS} refused")
    record_property("bound", "at least 95 %")
    assert refused >= 0.95 * SEEDS


def test_on_the_bound_neither_error_is_made_more_often_than_allowed() -> None:
    """A true drop of exactly the bound: refused or accepted in at most 5 % each, and noise."""
    rng = np.random.default_rng(14)
    for n, discordant in ((300, 0.06), (2000, 0.06), (2000, 0.3)):
        lost = (discordant + 0.01) / 2
        drawn = rng.multinomial(n, [lost, discordant - lost, 1 - discordant], size=2000)
        decisions = _decisions(drawn, n)
        assert decisions["refused"] <= 0.065 * 2000 and decisions["accepted"] <= 0.065 * 2000


def test_without_interleaving_the_drift_would_be_taken_for_a_difference() -> None:
    """The control of the truth tests: the same arms one after the other mislead."""
    hits = []
    for seed in range(10):
        load, _, figure = audit(seed, interleaved=False)
        found = figure["pairs"]["same"]["speed"][load]["e2e"]["ratio"]
        hits.append(found["low"] <= 1.0 <= found["high"])
    assert sum(hits) <= 2


def _decisions(drawn: Any, n: int) -> Counter[str]:
    """Decisions by counts of discordant pairs; equal counts are judged once."""
    found: Counter[str] = Counter()
    for (lost, won), times in Counter((int(b), int(c)) for b, c, _ in drawn).items():
        figure = figures_of({"a": {"all": binary_scores(n, lost, won)}})
        found[judge_arms(figure, POINT)["a"].decision] += times
    return found


def test_the_planted_drift_is_not_small() -> None:
    _, rows, _ = audit(0)
    taken = [(r.block, r.observed.done_s - r.observed.sent_s) for r in rows if r.arm == "baseline"]
    first = np.median([s for b, s in taken if b == 0])
    last = np.median([s for b, s in taken if b == 9])
    assert 1.4 < last / first < 2.8
