"""PyramidDrop: visual tokens leave in stages, fewer the deeper the layer.

Paper: L. Xing, Q. Huang, X. Dong, J. Lu, P. Zhang, Y. Zang, Y. Cao, C. He, J. Wang, F. Wu, D. Lin,
"PyramidDrop: Accelerating Your Large Vision-Language Models via Pyramid Visual Redundancy
Reduction", CVPR 2025, arXiv 2410.17247. The layers are split into stages; before the first layer
of each next stage, visual tokens are ranked by that layer's own attention of the last instruction
token, softmax over the whole row and mean over heads, and a fixed share of the tokens that entered
goes on: 1/2, 1/4 and 1/8 from layers 8, 16 and 24 of 32.

Differs from the authors' code: kept tokens keep their positions, where theirs are numbered anew in
each stage; shares are rounded half up, where theirs are cut off, and one token stays at least; any
padding and any number of pictures, ranked together. `at` gives layers or shares of the depth, so
that 1/4 1/2 3/4 is the paper's staircase on a model of any depth. Only the projections of the
ranking layers run twice.

Cost: at each of the stages O(S d²) for queries and keys, O(H S a) for one row of attention.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from foveate.core import Paper, register, setting
from foveate.core.language import LayerView, PrefillMethod, Route
from foveate.core.method import Evidence
from foveate.prefill import _stairs
from foveate.prefill._scores import best, last_token


@register
@dataclass(frozen=True)
class PyramidDrop(PrefillMethod):
    """A staircase of stages; each ranks by its own first layer."""

    name: ClassVar[str] = "pyramiddrop"
    summary: ClassVar[str] = (
        "drops visual tokens in stages, by the last token's attention at each stage's first layer"
    )
    paper: ClassVar[Paper | None] = Paper(
        "PyramidDrop: Accelerating Your Large Vision-Language Models via Pyramid Visual Redundancy "
        "Reduction",
        "Xing, Huang, Dong, Lu, Zhang, Zang, Cao, He, Wang, Wu, Lin",
        2025,
        "2410.17247",
    )
    evidence: ClassVar[Evidence] = "reference"
    reads: ClassVar[frozenset[Any]] = frozenset({"next"})

    at: str = setting(
        "1/4 1/2 3/4", "first layers of the later stages: layers, or shares of the depth"
    )
    ratios: str = setting(
        "1/2 1/4 1/8", "share of the entered visual tokens that goes on from each of them"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        places = _stairs.fractions(self.at, "pyramiddrop: at")
        _stairs.check_places(places, "pyramiddrop: at")
        shares = _stairs.fractions(self.ratios, "pyramiddrop: ratios")
        _stairs.check_shares(shares, len(places), "pyramiddrop: ratios")

    def layers(self, count: int) -> tuple[int, ...]:
        places = _stairs.fractions(self.at, "pyramiddrop: at")
        return _stairs.layers_of(places, count, "pyramiddrop: at")

    def decide(self, layer: int, view: LayerView, state: Any) -> tuple[Route, Any]:
        shares = _stairs.fractions(self.ratios, "pyramiddrop: ratios")
        share = shares[self.layers(view.layers).index(layer)]
        k = min(_stairs.count_of(share, view.entered), len(view.visual))
        return Route(keep=best(last_token(view, "next"), k)), state
