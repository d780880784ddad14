"""Every figure of an audit from its raw rows and blocks: a pure function, ready for JSON.

    {"confidence": 0.95,
     "arms":  {arm: {"loads": {load: …}, "quality": {"all" or category: …}}},
     "pairs": {candidate: {"speed": {load: {metric: …}},
                           "quality": {"all" or category: …},
                           "errors": {load: …}}}}

Latencies, rates and counters: figures_load.py. Speed ratios: figures_speed.py. Scores and drops:
figures_quality.py. None means "not measured"; nothing is ever zero for that reason.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from foveate.audit.figures_load import CONFIDENCE, cells, load_figures
from foveate.audit.figures_quality import (
    Agreement,
    answers,
    drop_figures,
    item_scores,
    quality_figures,
)
from foveate.audit.figures_speed import error_figures, speed_figures
from foveate.audit.records import Block, Row
from foveate.audit.target import BASELINE


def figures(
    rows: Iterable[Row],
    blocks: Iterable[Block],
    *,
    seed: int,
    slo: Mapping[str, float] | None = None,
) -> dict[str, Any]:
    """All figures. The order of rows and blocks does not matter; the same input and seed give the
    same figures to the last bit. slo: bounds in milliseconds ("ttft_ms", "tpot_ms", "e2e_ms") that
    goodput counts; without one there is no goodput.

    InputError if a request occurs twice, or an item with two categories or metrics.
    """
    kept = list(rows)
    by_arm = cells(kept, blocks)
    given = answers(kept)
    agreement = Agreement()
    scores = item_scores(given, agreement)
    quality = quality_figures(given, scores)
    drops = drop_figures(given, scores, agreement, seed=seed)
    names = sorted(set(by_arm) | set(given), key=lambda arm: (arm != BASELINE, arm))
    base = by_arm.get(BASELINE, {})
    arms: dict[str, Any] = {}
    pairs: dict[str, Any] = {}
    for arm in names:
        loads = by_arm.get(arm, {})
        arms[arm] = {
            "loads": {load: load_figures(loads[load], slo) for load in sorted(loads)},
            "quality": quality.get(arm, {}),
        }
        if arm == BASELINE:
            continue
        shared = sorted(set(loads) & set(base))
        pairs[arm] = {
            "speed": {load: speed_figures(base[load], loads[load], slo) for load in shared},
            "quality": drops.get(arm, {}),
            "errors": {load: error_figures(base[load], loads[load]) for load in shared},
        }
    return {"confidence": CONFIDENCE, "arms": arms, "pairs": pairs}
