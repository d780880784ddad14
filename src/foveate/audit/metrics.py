"""How an answer is scored: a registry of metrics, each a number in 0 to 1 against references.

A score is the best over the references. Metrics need nothing but text, so that every score of an
audit can be computed again from its rows. Two names stand for what text alone does not tell:
"loyalty", agreement with the uncompressed answer (`agree`), and "judge", a judge's own score.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from foveate.audit.metric_values import box, box_overlap, lab_box, relaxed
from foveate.audit.metric_words import anls, holds, normalise, word_f1
from foveate.core.errors import SettingError, nearest

LOYALTY = "loyalty"
"""Metric of an item without references: agreement with the uncompressed answer."""

JUDGED = "judge"
"""Metric of an item that only a judge scores (`foveate.audit.judge`)."""


@dataclass(frozen=True)
class Metric:
    """One way to score an answer. `rule(answer, reference)` gives 0 to 1; `binary`: 0 or 1 only.

    `source` is where the definition stands; `fault(reference)` says what is wrong with a reference,
    None if nothing is.
    """

    name: str
    rule: Callable[[str, str], float]
    binary: bool
    summary: str
    source: str
    fault: Callable[[str], str | None] = lambda reference: None


def _exact(answer: str, reference: str) -> float:
    return float(normalise(answer) == normalise(reference))


def _verbatim(answer: str, reference: str) -> float:
    return float(answer.strip() == reference.strip())


def _contains(answer: str, reference: str) -> float:
    return float(holds(normalise(answer), normalise(reference)))


def _no_box(reference: str) -> str | None:
    return (
        None if box(reference) else 'no box "left,top,right,bottom" with left < right, top < bottom'
    )


METRICS: dict[str, Metric] = {
    m.name: m
    for m in (
        Metric(
            "exact", _exact, True,
            "equal, but for case, signs, articles and number words",
            "VQA, arXiv:1505.00468",
        ),
        Metric(
            "verbatim", _verbatim, True,
            "equal, but for blanks at the ends; the rule of `foveate lab eval`",
            "foveate.lab.score",
        ),
        Metric(
            "contains", _contains, True,
            "the reference stands in the answer as whole words; rewards answers that list much",
            "own",
        ),
        Metric(
            "relaxed", relaxed, True,
            "numbers within 5 % of the reference, other answers as in exact",
            "ChartQA, arXiv:2203.10244",
        ),
        Metric(
            "anls", anls, False,
            "1 - edit distance / longer length, 0 from a half on",
            "ST-VQA, arXiv:1905.13648",
        ),
        Metric("f1", word_f1, False, "F1 of the words", "SQuAD, arXiv:1606.05250"),
        Metric(
            "iou", box_overlap, False,
            "intersection over union of the first box named, units as in the reference",
            "PASCAL VOC, IJCV 88 (2010)", _no_box,
        ),
        Metric(
            "lab-box", lab_box, True,
            "the lab's grounding: eight digits, overlap of at least one half",
            "foveate.lab.score", _no_box,
        ),
    )
}  # fmt: skip
"""Every metric that is computed from text alone, by name."""


def score(metric: str, answer: str, references: Sequence[str]) -> float:
    """The best score of an answer over its references, in 0 to 1.

    Errors: SettingError for an unknown metric, for one that needs more than text, and for no
    references.
    """
    known = check_metric(metric)
    if known is None:
        raise SettingError(f"metric {metric!r} cannot be computed from an answer and references")
    if not references:
        raise SettingError(f"metric {metric!r} needs at least one reference")
    return max(known.rule(answer, reference) for reference in references)


def check_metric(metric: str) -> Metric | None:
    """The metric of that name; None for "loyalty" and "judge"; SettingError with the nearest names
    for any other.
    """
    if metric in (LOYALTY, JUDGED):
        return None
    if metric not in METRICS:
        names = [*METRICS, LOYALTY, JUDGED]
        raise SettingError(f"unknown metric {metric!r}: {nearest(metric, names)}")
    return METRICS[metric]


def binary(metric: str) -> bool:
    """Whether a score of the metric is 0 or 1 only, so that McNemar's test applies. A judge may give
    any score in 0 to 1.
    """
    known = check_metric(metric)
    return metric == LOYALTY if known is None else known.binary


def agree(a: str, b: str) -> float:
    """Loyalty: 1 if two answers are equal in the normal form of "exact", else 0."""
    return _exact(a, b)
