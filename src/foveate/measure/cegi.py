"""CEGI, Carbon Efficient Gain Index: carbon a percentage of gain, a million trainable parameters.

Kumar, Pathak, Kavuru and Srinivasan, "CEGI: Measuring the trade-off between efficiency and carbon
emissions for SLMs and VLMs", 2024, arXiv 2412.02602. The paper puts it in words: carbon emission
per unit percentage gain per million trainable parameters. Our reading of these words is

    CEGI = C / (G * P)

    C  kg CO2e of the fine-tuning run
    G  gain in percent of the base score: 100 (tuned - base) / base
    P  trainable parameters in millions

and lower is better. Other readings exist: G in percentage points, 100 (tuned - base), which does
not favour a weak base and exists for a base of 0; or P as the size of the whole model. `points` is
printed beside for the first. The index rewards training more parameters for the same result, so C,
G and P always stand beside it. It is undefined for G <= 0: there is no gain to pay for.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from foveate.core.errors import InputError

READING = (
    "CEGI = C / (G x P): C kg CO2e of fine-tuning, G = 100 (tuned - base) / base in percent, P "
    "millions of trainable parameters; lower is better; undefined for G <= 0. This is our reading "
    "of the paper's words (arXiv 2412.02602); with G in percentage points the order may differ."
)


@dataclass(frozen=True)
class Cegi:
    """One fine-tuning run. value is None where it is undefined or C is missing, and reason says why.

    kg: C; gain_percent: G, None for a base of 0; points: 100 (tuned - base); millions: P.
    value_points: C / (points * P), the other reading.
    """

    base: float
    tuned: float
    kg: float | None
    gain_percent: float | None
    points: float
    millions: float
    value: float | None
    value_points: float | None
    reason: str | None

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return asdict(self)


def cegi(base: float, tuned: float, kg: float | None, trainable_parameters: int) -> Cegi:
    """The index of a run that took a score from `base` to `tuned`, both shares in 0 to 1.

    kg: CO2e of the run, None where it was not measured; the index is then missing, never 0.
    InputError for scores outside 0 to 1, no trainable parameter, or a kg that is not above 0.
    """
    for name, score in (("base", base), ("tuned", tuned)):
        if not 0 <= score <= 1:
            raise InputError(f"{name} = {score} is out of range: a share in 0 to 1")
    if trainable_parameters < 1:
        raise InputError(
            f"trainable_parameters = {trainable_parameters} is out of range: CEGI speaks of "
            "fine-tuning, where at least one parameter learns"
        )
    if kg is not None and not (kg > 0 and math.isfinite(kg)):
        raise InputError(f"kg = {kg} is out of range: above 0, or None where it was not measured")
    millions = trainable_parameters / 1e6
    points = 100 * (tuned - base)
    gain = points / base if base > 0 else None
    reason = None
    if points <= 0:
        reason = "undefined: no gain (G <= 0)"
    elif gain is None:
        reason = "undefined: the base score is 0, so no percentage of it exists"
    elif kg is None:
        reason = "missing: the carbon of the run is not known"
    return Cegi(
        base=base,
        tuned=tuned,
        kg=kg,
        gain_percent=gain,
        points=points,
        millions=millions,
        value=kg / (gain * millions) if reason is None and kg is not None and gain else None,
        value_points=kg / (points * millions) if points > 0 and kg is not None else None,
        reason=reason,
    )


def table(rows: Sequence[tuple[str, Cegi]]) -> str:
    """Named runs as a Markdown table, C, G and P beside each index."""
    lines = [
        "| run | base | tuned | points | G % | P million | C kg CO2e | CEGI | CEGI, points |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for name, row in rows:
        cells = [
            name,
            f"{row.base:.3f}",
            f"{row.tuned:.3f}",
            f"{row.points:+.1f}",
            _cell(row.gain_percent, "+.1f", "undefined"),
            f"{row.millions:.3f}",
            _cell(row.kg, ".3e", "missing"),
            _cell(row.value, ".3e", row.reason or ""),
            _cell(row.value_points, ".3e", (row.reason or "").partition(":")[0]),
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _cell(value: float | None, form: str, absent: str) -> str:
    return absent if value is None else format(value, form)
