"""VScan, the half inside the language model: at a middle layer the least attended tokens leave.

Paper: C. Zhang, K. Ma, T. Fang, W. Yu, H. Zhang, Z. Zhang, Y. Xie, K. Sycara, H. Mi, D. Yu, "VScan:
Rethinking Visual Token Reduction for Efficient Large Vision-Language Models", 2025, arXiv
2505.22654, its second stage. Before layer k, in the middle of the model (16 of 32, 14 of 28), visual
tokens are ranked by the attention that they receive from the last instruction token in that layer,
mean over heads; the best third goes on, so that 96 tokens that entered are 64 on average.

VScan as a whole is this method behind its encoder half, in one plan:
`vscan:keep=1/6+vscan-lm:keep=1/3`.

Reconstructed: the shares are the paper's; that the ranking layer's own attention counts, and not
that of the layer before, is our reading of it. Kept tokens keep their positions.

Cost: O(S d²) for one layer's queries and keys once more, O(H S a) for one row of attention.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from typing import Any, ClassVar

from foveate.core import Paper, register, setting
from foveate.core.errors import SettingError
from foveate.core.language import LayerView, PrefillMethod, Route
from foveate.core.method import Evidence
from foveate.prefill import _stairs
from foveate.prefill._scores import best, last_token


@register
@dataclass(frozen=True)
class VScanLM(PrefillMethod):
    """One drop at a middle layer by the last token's attention."""

    name: ClassVar[str] = "vscan-lm"
    summary: ClassVar[str] = (
        "drops the visual tokens that the last token attends to least, at a middle layer"
    )
    paper: ClassVar[Paper | None] = Paper(
        "VScan: Rethinking Visual Token Reduction for Efficient Large Vision-Language Models",
        "Zhang, Ma, Fang, Yu, Zhang, Zhang, Xie, Sycara, Mi, Yu",
        2025,
        "2505.22654",
        "MIT",
    )
    evidence: ClassVar[Evidence] = "reconstructed"
    reads: ClassVar[frozenset[Any]] = frozenset({"next"})

    layer: Fraction = setting(
        Fraction(1, 2), "decoder layer before which tokens leave, or a share of the depth"
    )
    keep: Fraction = setting(
        Fraction(1, 3), "share of the entered visual tokens kept, 0 < keep <= 1"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        _stairs.check_places((self.layer,), "vscan-lm: layer")
        if not 0 < self.keep <= 1:
            raise SettingError(f"vscan-lm: keep = {self.keep} is out of range: 0 < keep <= 1")

    def layers(self, count: int) -> tuple[int, ...]:
        return _stairs.layers_of((self.layer,), count, "vscan-lm: layer")

    def decide(self, layer: int, view: LayerView, state: Any) -> tuple[Route, Any]:
        k = min(_stairs.count_of(self.keep, view.entered), len(view.visual))
        return Route(keep=best(last_token(view, "next"), k)), state
