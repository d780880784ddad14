"""G-Search: the smallest keep ratio of each layer that a calibration score allows.

S. Zhao, Z. Wang, F. Juefei-Xu, X. Xia, M. Liu, X. Wang, M. Liang, N. Zhang, D. N. Metaxas, L. Yu,
"Accelerating Multimodal Large Language Models by Searching Optimal Vision Token Reduction", CVPR
2025, arXiv 2412.00556: from shallow to deep, with the ratios of earlier layers fixed, the ratio of
layer i is made as small as the score stays within a tolerance of the dense model's.

Reconstructed: deeper layers, not searched yet, keep as much as layer i while it is searched, the most
that they still can. The paper weighs the score against the saving in a Bayesian optimisation; here
each ratio is found by bisection over given candidates, which is exact where the score never falls
when more is kept, and draws nothing at random. Where a score is noisy, the schedule returned is still
one that was scored within the tolerance.

Cost: at most 1 + layers · ceil(log2(candidates)) calls of the score.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction

from foveate.core.errors import InputError, SettingError
from foveate.core.schedule import Schedule

EIGHTHS = tuple(Fraction(i, 8) for i in range(1, 9))
ROUNDING = 1e-9  # shares of questions are no exact doubles: 0.8 - 0.1 is above 0.7


@dataclass(frozen=True)
class Searched:
    """What a search found: the schedule, its score, that of the dense model, and calls made."""

    schedule: Schedule
    score: float
    dense: float
    calls: int


def g_search(
    score: Callable[[Schedule], float],
    layers: int,
    *,
    tolerance: float,
    at: Sequence[int] | None = None,
    ratios: Sequence[Fraction] = EIGHTHS,
) -> Searched:
    """Search the keep ratios of a model with `layers` layers.

    score: of a schedule on a calibration set, higher is better, such as an accuracy with
    `ScheduleDrop.of(schedule)` in the plan. tolerance: how far below the dense score the result may
    lie. at: layers at which the ratio may change, by default 1 to layers - 1. ratios: candidates in
    (0, 1]; 1 is always one.

    Errors: SettingError for an argument out of range, InputError for a score that is not finite.
    """
    places = _places(layers, at)
    candidates = sorted({Fraction(r) for r in ratios} | {Fraction(1)})
    if candidates[0] <= 0 or candidates[-1] > 1:
        raise SettingError("g_search: ratios must lie above 0 and be at most 1")
    if not (math.isfinite(tolerance) and tolerance >= 0):
        raise SettingError(f"g_search: tolerance = {tolerance} is out of range: at least 0")
    known: dict[Schedule, float] = {}

    def scored(schedule: Schedule) -> float:
        if schedule not in known:
            value = float(score(schedule))
            if not math.isfinite(value):
                raise InputError(f"g_search: the score of {schedule} is {value}, which is no score")
            known[schedule] = value
        return known[schedule]

    found = Schedule((Fraction(1),) * layers)
    dense = scored(found)
    for place in places:
        allowed = [r for r in candidates if r <= found.keep[place]]
        low, high = 0, len(allowed) - 1  # allowed[high] is known to be good enough
        while low < high:
            middle = (low + high) // 2
            tried = _from(found, place, allowed[middle])
            if scored(tried) >= dense - tolerance - ROUNDING:
                high = middle
            else:
                low = middle + 1
        found = _from(found, place, allowed[high])
    return Searched(found, scored(found), dense, len(known))


def _places(layers: int, at: Sequence[int] | None) -> list[int]:
    if layers < 2:
        raise SettingError(f"g_search: layers = {layers} is out of range: at least 2")
    places = list(range(1, layers)) if at is None else list(at)
    if places != sorted(set(places)) or not places or not 1 <= places[0] <= places[-1] < layers:
        raise SettingError(f"g_search: at = {places} must ascend within 1 to {layers - 1}")
    return places


def _from(schedule: Schedule, layer: int, ratio: Fraction) -> Schedule:
    """The schedule with `ratio` from a layer on."""
    rest = len(schedule.keep) - layer
    return Schedule(schedule.keep[:layer] + (ratio,) * rest)
