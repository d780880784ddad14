"""Quality: one score an item and arm, and how far a candidate's scores fall below the baseline's.

The item is the unit, however often it was asked: its score is the mean over its requests. A request
that failed scores 0, because its user got no answer; `failed` says how many did. An item whose
score is unknown (a judge that gave none) is left out and counted in `unscored`.

Items without references have the metric "loyalty". A candidate's score is then its agreement with
the baseline's answers, and the baseline's score is the agreement of its answers with each other, 1
if there is only one: a baseline that does not repeat itself is not held against the candidate.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from foveate.audit.figures_load import CONFIDENCE, span
from foveate.audit.metrics import JUDGED, LOYALTY, agree, score
from foveate.audit.records import Row
from foveate.audit.target import BASELINE
from foveate.core.errors import InputError
from foveate.measure.paired import BinaryPairs, GradedPairs, pair_up, sign_flip, tost
from foveate.measure.stats import holm, mcnemar_exact, wilson

ALL = "all"
"""All items together; a category of this name stands under "category all"."""

EQUIVALENCE = 0.01
"""Margin of the equivalence test: one point."""

_ALPHA = 0.05


@dataclass
class Answers:
    """What one arm answered to one item. `scores` leaves out requests whose score is unknown."""

    category: str
    metric: str
    texts: list[str | None] = field(default_factory=list)  # None: the request failed
    scores: list[float] = field(default_factory=list)
    failed: int = 0


ByItem = dict[str, Answers]


def answers(rows: Iterable[Row]) -> dict[str, ByItem]:
    """What every arm answered, arm -> item -> answers, warm-up left out."""
    found: dict[str, ByItem] = defaultdict(dict)
    known: dict[tuple[str, str, tuple[str, ...]], float] = {}
    for row in sorted((r for r in rows if not r.warmup), key=lambda r: r.key):
        of = found[row.arm].get(row.item)
        if of is None:
            of = found[row.arm][row.item] = Answers(row.category, row.metric)
        elif (of.category, of.metric) != (row.category, row.metric):
            raise InputError(
                f"item {row.item!r} has two categories or metrics in the rows "
                f"({of.category}/{of.metric} and {row.category}/{row.metric})"
            )
        seen = row.observed
        if seen.error is not None:
            of.failed += 1
            of.scores.append(0.0)
            of.texts.append(None)
            continue
        of.texts.append(seen.text)
        if row.judged is not None:
            of.scores.append(row.judged)
        elif row.metric not in (LOYALTY, JUDGED):
            key = (row.metric, seen.text, row.references)
            if key not in known:
                known[key] = score(*key)
            of.scores.append(known[key])
    return found


class Agreement:
    """Mean agreement of two collections of answers over all their pairs; a failure agrees with
    nothing, not even with another failure.
    """

    def __init__(self) -> None:
        self._known: dict[tuple[str, str], float] = {}

    def across(self, first: Sequence[str | None], second: Sequence[str | None]) -> float:
        if len(first) == len(second) == 1:
            return self._one(first[0], second[0])
        ones, others = Counter(first), Counter(second)
        total = sum(m * n * self._one(a, b) for a, m in ones.items() for b, n in others.items())
        return total / (len(first) * len(second))

    def within(self, texts: Sequence[str | None]) -> float:
        """Over pairs of different requests; of one request, 1, or 0 if it failed."""
        n = len(texts)
        if n == 1:
            return 0.0 if texts[0] is None else 1.0
        counts = Counter(texts).items()
        every = sum(m * k * self._one(a, b) for a, m in counts for b, k in counts)
        itself = sum(m for a, m in counts if a is not None)
        return (every - itself) / (n * (n - 1))

    def _one(self, a: str | None, b: str | None) -> float:
        if a is None or b is None:
            return 0.0
        if a == b:
            return 1.0
        key = (a, b) if a < b else (b, a)
        if key not in self._known:
            self._known[key] = agree(*key)
        return self._known[key]


def item_scores(found: Mapping[str, ByItem], agreement: Agreement) -> dict[str, dict[str, float]]:
    """arm -> item -> score in 0..1, without items whose score is unknown."""
    base = found.get(BASELINE, {})
    scores: dict[str, dict[str, float]] = {}
    for arm, items in found.items():
        mine = scores[arm] = {}
        for item, given in items.items():
            if given.metric == LOYALTY and not _judged(given):
                if arm == BASELINE:
                    mine[item] = agreement.within(given.texts)
                elif item in base:
                    mine[item] = agreement.across(given.texts, base[item].texts)
            elif given.scores and (
                given.metric != JUDGED or _judged(given) or given.failed == len(given.texts)
            ):
                mine[item] = sum(given.scores) / len(given.scores)
    return scores


def _judged(given: Answers) -> bool:
    """Whether some request has a score of its own, not only a failure's 0."""
    return len(given.scores) > given.failed


def quality_figures(
    found: Mapping[str, ByItem], scores: Mapping[str, Mapping[str, float]]
) -> dict[str, dict[str, Any]]:
    """arm -> "all" and every category -> n, score with its interval, metrics, failed, unscored."""
    figures: dict[str, dict[str, Any]] = {}
    for arm, items in found.items():
        figures[arm] = {}
        for name, chosen in groups(items).items():
            kept = [scores[arm][i] for i in chosen if i in scores[arm]]
            figures[arm][name] = {
                "n": len(kept),
                **_mean(kept),
                "metrics": sorted({items[i].metric for i in chosen}),
                "failed": sum(items[i].failed for i in chosen),
                "unscored": len(chosen) - len(kept),
            }
    return figures


def _mean(scores: Sequence[float]) -> dict[str, float | None]:
    """Mean score: Wilson where every score is 0 or 1, else t with pseudo-pairs (paired.py)."""
    if not scores:
        return {"score": None, "low": None, "high": None}
    mean = float(np.mean(scores))
    if all(s in (0, 1) for s in scores):
        interval = wilson(int(sum(scores)), len(scores), CONFIDENCE)
    else:
        sd = float(np.std(scores, ddof=1)) if len(scores) > 1 else 0.0
        interval = GradedPairs(len(scores), mean, sd).interval(CONFIDENCE)
    return {"score": mean, "low": max(0.0, interval.low), "high": min(1.0, interval.high)}


def groups(
    items: Mapping[str, Answers], only: Callable[[str], bool] | None = None
) -> dict[str, list[str]]:
    """ "all" and every category with the ids of its items, in order."""
    found: dict[str, list[str]] = {ALL: []}
    for item in sorted(items):
        if only is None or only(item):
            found[ALL].append(item)
            category = items[item].category
            if category:
                found.setdefault("category all" if category == ALL else category, []).append(item)
    return {ALL: found.pop(ALL), **{name: found[name] for name in sorted(found)}}


def drop_figures(
    found: Mapping[str, ByItem],
    scores: Mapping[str, Mapping[str, float]],
    agreement: Agreement,
    *,
    seed: int,
) -> dict[str, dict[str, Any]]:
    """candidate -> "all" and every category -> the paired comparison with the baseline.

    drop is the baseline's score less the candidate's, over items that both have. p is exact McNemar
    for scores of 0 and 1, a sign-flip permutation for graded ones; p_holm is adjusted over all
    candidates and categories of this table.
    """
    base = found.get(BASELINE, {})
    figures: dict[str, dict[str, Any]] = {}
    for arm, items in found.items():
        if arm == BASELINE:
            continue
        both = set(scores[arm]) & set(scores.get(BASELINE, {}))
        asked = groups({**base, **items})
        figures[arm] = {}
        for name, chosen in groups(items, both.__contains__).items():
            if not chosen:
                continue
            old = [scores[BASELINE][i] for i in chosen]
            new = [scores[arm][i] for i in chosen]
            loyal = [agreement.across(items[i].texts, base[i].texts) for i in chosen]
            figures[arm][name] = drop_figure(old, new, seed=seed) | {
                "loyalty": float(np.mean(loyal)),
                "unpaired": len(asked[name]) - len(chosen),
            }
    _adjust(figures)
    return figures


def drop_figure(old: Sequence[float], new: Sequence[float], *, seed: int) -> dict[str, Any]:
    """The paired comparison of two lists of item scores: drop, evidence, equivalence."""
    pairs = pair_up(old, new)
    figure: dict[str, Any] = {"n": pairs.n, "drop": span(pairs.interval(CONFIDENCE))}
    if isinstance(pairs, BinaryPairs):
        figure["kind"] = "binary"
        figure["discordant"] = pairs.only_first + pairs.only_second
        figure["only_baseline"], figure["only_candidate"] = pairs.only_first, pairs.only_second
        figure["mcnemar_p"] = mcnemar_exact(pairs.only_first, pairs.only_second)
    else:
        d = np.asarray(old) - np.asarray(new)
        figure["kind"] = "graded"
        figure["discordant"] = int((d != 0).sum())
        figure["sd"] = pairs.sd
        figure["permutation_p"] = sign_flip(d, seed=seed)
    figure["tost_p"] = tost(pairs, EQUIVALENCE)
    figure["equivalent_at_1pt"] = figure["tost_p"] <= _ALPHA
    return figure


def pairs_of(figure: Mapping[str, Any]) -> BinaryPairs | GradedPairs:
    """The pairs behind a figure, for tests at other margins than those in it."""
    if figure["kind"] == "binary":
        return BinaryPairs(figure["n"], figure["only_baseline"], figure["only_candidate"])
    return GradedPairs(figure["n"], figure["drop"]["estimate"], figure["sd"])


def p_of(figure: Mapping[str, Any]) -> float:
    """The two-sided p of "there is no difference"."""
    return float(figure["mcnemar_p" if figure["kind"] == "binary" else "permutation_p"])


def _adjust(figures: dict[str, dict[str, Any]]) -> None:
    every = [figure for arm in figures.values() for figure in arm.values()]
    for figure, p in zip(every, holm([p_of(f) for f in every]), strict=True):
        figure["p_holm"] = p
