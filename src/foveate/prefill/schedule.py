"""A schedule given layer by layer or as a staircase: how many visual tokens each layer keeps.

The common step of G-Search and P-Sigmoid (S. Zhao, Z. Wang, F. Juefei-Xu, X. Xia, M. Liu, X. Wang,
M. Liang, N. Zhang, D. N. Metaxas, L. Yu, "Accelerating Multimodal Large Language Models by Searching
Optimal Vision Token Reduction", CVPR 2025, arXiv 2412.00556): before layer i the best r_i · N of the
N visual tokens that entered go on, by their attention in layer i - 1. Its finding is that this
ranking hardly changes with depth, so that the r_i are what is to be searched: `foveate.prefill.g_search`
does that. Here attention is the last token's, mean over heads, as in FastV; which queries count is
not stated where we read of it. Pictures of a request are ranked together.

Cost: O(H S a) at each layer where the schedule falls, and nothing at the others.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from foveate.core import Paper, register, setting
from foveate.core.errors import SettingError
from foveate.core.language import LayerView, PrefillMethod, Route
from foveate.core.method import Evidence
from foveate.core.schedule import Schedule
from foveate.prefill import _schedules, _stairs


@register
@dataclass(frozen=True)
class ScheduleDrop(PrefillMethod):
    """Any nested schedule; the ranking is the last token's attention in the layer before."""

    name: ClassVar[str] = "schedule"
    summary: ClassVar[str] = (
        "drops visual tokens by a given schedule, by the last token's attention in the layer before"
    )
    paper: ClassVar[Paper | None] = Paper(
        "Accelerating Multimodal Large Language Models by Searching Optimal Vision Token Reduction",
        "Zhao, Wang, Juefei-Xu, Xia, Liu, Wang, Liang, Zhang, Metaxas, Yu",
        2025,
        "2412.00556",
    )
    evidence: ClassVar[Evidence] = "reference"
    reads: ClassVar[frozenset[Any]] = frozenset({"previous"})

    at: str | None = setting(
        "1/4 1/2 3/4",
        "first layer of each ratio: layers, or shares of the depth; none = one ratio a layer",
    )
    ratios: str = setting(
        "1/2 1/4 1/8", "shares of the entered visual tokens that are kept from there on"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        shares = _stairs.fractions(self.ratios, "schedule: ratios")
        places = len(shares)
        if self.at is not None:
            found = _stairs.fractions(self.at, "schedule: at")
            _stairs.check_places(found, "schedule: at")
            places = len(found)
        _stairs.check_shares(shares, places, "schedule: ratios")

    @classmethod
    def of(cls, schedule: Schedule) -> ScheduleDrop:
        """The method that follows a schedule made elsewhere; it fits models of that many layers."""
        return cls(at=None, ratios=" ".join(map(str, schedule.keep)))

    def schedule(self, count: int) -> Schedule:
        """The keep ratio of each of `count` layers; SettingError if settings and model disagree."""
        shares = _stairs.fractions(self.ratios, "schedule: ratios")
        if self.at is not None:
            places = _stairs.fractions(self.at, "schedule: at")
            layers = _stairs.layers_of(places, count, "schedule: at")
            return Schedule.steps(count, list(zip(layers, shares, strict=True)))
        if len(shares) != count:
            raise SettingError(
                f"schedule: ratios has {len(shares)} numbers, but the model has {count} layers; "
                "give one each, or say with at= where each begins"
            )
        return Schedule(shares)

    def layers(self, count: int) -> tuple[int, ...]:
        return _schedules.falls(self.schedule(count), self.name)

    def decide(self, layer: int, view: LayerView, state: Any) -> tuple[Route, Any]:
        return _schedules.follow(self.schedule(view.layers), layer, view), state
