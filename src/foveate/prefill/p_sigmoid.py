"""P-Sigmoid: keep ratios that fall along a sigmoid, for a given mean over the layers.

S. Zhao, Z. Wang, F. Juefei-Xu, X. Xia, M. Liu, X. Wang, M. Liang, N. Zhang, D. N. Metaxas, L. Yu,
"Accelerating Multimodal Large Language Models by Searching Optimal Vision Token Reduction", CVPR
2025, arXiv 2412.00556: r(i) = 1 / (1 + exp(k (i - α))) is the share of the N entered visual tokens
that layer i keeps, ranked by attention in layer i - 1; for a steepness k, α is what makes the mean of
r over all layers the budget b. It is found by bisection: the mean rises with α.

Reconstructed: the sign of k, read so that ratios fall; and which queries rank (here the last token,
mean over heads). k is given here; the paper chooses it on a calibration set: score a few values.
Layers before the first of `at` keep all tokens, because no attention ranks them before layer 1.
They count in the mean, and so does the length of each stretch: the schedule that is run has the
mean b exactly, as fractions. A stretch keeps the ratio of its first layer. At least one token stays.

Cost: O(H S a) at each layer of `at`.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, ClassVar

from foveate.core import Paper, register, setting
from foveate.core.errors import SettingError
from foveate.core.language import LayerView, PrefillMethod, Route
from foveate.core.method import Evidence
from foveate.core.schedule import Schedule
from foveate.prefill import _schedules, _stairs

ROUNDS = 200  # halvings: more than a double has bits
GRID = 2**30  # ratios are multiples of its inverse, but for those that make the mean exact


def rate(layer: int, k: float, alpha: float) -> float:
    """r(layer); far from alpha it is 1 or tiny, without overflow."""
    x = k * (layer - alpha)
    return 1.0 / (1.0 + math.exp(x)) if x < 700 else math.exp(-x)


def solve_alpha(budget: float, k: float, stretches: list[tuple[int, int]], count: int) -> float:
    """alpha at which the ratios' sum over the stretches (first layer, length) is budget · count.

    Layers outside the stretches keep all. The budget must lie between their share and 1.
    """
    whole = count - sum(length for _, length in stretches)
    # At these ends every ratio is 0 or 1 within a double, however small k is.
    low, high = -800.0 / k, count + 800.0 / k
    for _ in range(ROUNDS):
        middle = (low + high) / 2
        mean = (whole + sum(n * rate(first, k, middle) for first, n in stretches)) / count
        low, high = (middle, high) if mean < budget else (low, middle)
    return (low + high) / 2


def exact_sum(
    ratios: list[Fraction], lengths: list[int], target: Fraction, least: Fraction
) -> list[Fraction]:
    """Ratios, none above the one before or below `least`, moved until they sum up to the target.

    What rounding left over is given from the first on, or taken from the last on.
    """
    out = list(ratios)
    rest = target - sum((r * n for r, n in zip(out, lengths, strict=True)), Fraction(0))
    for i in range(len(out)):
        if rest > 0:
            step = min(rest / lengths[i], (out[i - 1] if i else Fraction(1)) - out[i])
            out[i] += step
            rest -= step * lengths[i]
    for i in reversed(range(len(out))):
        if rest < 0:
            step = min(-rest / lengths[i], out[i] - (out[i + 1] if i + 1 < len(out) else least))
            out[i] -= step
            rest += step * lengths[i]
    return out


@functools.lru_cache(maxsize=64)
def p_sigmoid(budget: Fraction, k: float, at: tuple[int, ...], count: int) -> Schedule:
    """The schedule of `count` layers that changes at the layers `at` and has the mean `budget`.

    Errors: SettingError for a budget that the layers before the first of `at` use up alone.
    """
    first = at[0] if at else count
    if budget < 1 and budget * count <= first:
        raise SettingError(
            f"p-sigmoid: a mean of {budget} leaves no token behind layer {first}, before which all "
            f"{count} layers' tokens are kept; raise mean_keep, or name a lower layer in at"
        )
    if budget == 1:
        return Schedule((Fraction(1),) * count)
    ends = (*at[1:], count)
    stretches = [(a, b - a) for a, b in zip(at, ends, strict=True)]
    alpha = solve_alpha(float(budget), k, stretches, count)
    lengths = [n for _, n in stretches]
    target = budget * count - first
    least = min(Fraction(1, GRID), target / (count - first))
    ratios = [max(least, Fraction(round(rate(a, k, alpha) * GRID), GRID)) for a in at]
    ratios = exact_sum(ratios, lengths, target, least)
    keep = [Fraction(1)] * first
    for ratio, (_, length) in zip(ratios, stretches, strict=True):
        keep += [ratio] * length
    return Schedule(tuple(keep))


@register
@dataclass(frozen=True)
class PSigmoid(PrefillMethod):
    """A sigmoid over depth with a given mean, ranked by attention in the layer before."""

    name: ClassVar[str] = "p-sigmoid"
    summary: ClassVar[str] = (
        "drops visual tokens along a sigmoid over depth, whose mean is the budget, by attention"
    )
    paper: ClassVar[Paper | None] = Paper(
        "Accelerating Multimodal Large Language Models by Searching Optimal Vision Token Reduction",
        "Zhao, Wang, Juefei-Xu, Xia, Liu, Wang, Liang, Zhang, Metaxas, Yu",
        2025,
        "2412.00556",
    )
    evidence: ClassVar[Evidence] = "reconstructed"
    reads: ClassVar[frozenset[Any]] = frozenset({"previous"})

    mean_keep: Fraction = setting(
        Fraction(1, 2), "share of visual tokens kept, mean over all layers, 0 < mean_keep <= 1"
    )
    k: float = setting(0.5, "steepness, per layer; above 0")
    at: str | None = setting(
        None,
        "layers, or shares of the depth, at which the ratio changes; none = every layer from 1",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.mean_keep <= 1:
            raise SettingError(
                f"p-sigmoid: mean_keep = {self.mean_keep} is out of range: 0 < mean_keep <= 1"
            )
        if not 1e-6 <= self.k <= 100:
            raise SettingError(f"p-sigmoid: k = {self.k} is out of range: 1e-6 to 100")
        if self.at is not None:
            places = _stairs.fractions(self.at, "p-sigmoid: at")
            _stairs.check_places(places, "p-sigmoid: at")

    def schedule(self, count: int) -> Schedule:
        """The keep ratio of each of `count` layers; their mean is exactly `mean_keep`."""
        at = tuple(range(1, count))
        if self.at is not None:
            places = _stairs.fractions(self.at, "p-sigmoid: at")
            at = _stairs.layers_of(places, count, "p-sigmoid: at")
        return p_sigmoid(self.mean_keep, self.k, at, count)

    def layers(self, count: int) -> tuple[int, ...]:
        return _schedules.falls(self.schedule(count), self.name)

    def decide(self, layer: int, view: LayerView, state: Any) -> tuple[Route, Any]:
        return _schedules.follow(self.schedule(view.layers), layer, view), state
