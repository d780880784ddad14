"""FastV: at one layer keep the visual tokens that the last token attends to most.

Paper: L. Chen, H. Zhao, T. Liu, S. Bai, J. Lin, C. Zhou, B. Chang, "An Image is Worth 1/2 Tokens
After Layer 2: Plug-and-Play Inference Acceleration for Large Vision-Language Models", ECCV 2024,
arXiv 2403.06764, section 4. Tokens are ranked by the attention they receive in layer K - 1, averaged
over heads, and the share R with the least attention leaves before layer K.

What the authors' code does: only the last query counts, as here, where the text averages over the
following queries; in its cached path kept tokens take new positions, here they keep theirs; a half
token rounds to the even count there, up here. All pictures of a request are ranked together.

Cost: O(H S a + V log V) for one row of attention.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from typing import Any, ClassVar

from foveate.core import Paper, register, setting
from foveate.core.budget import Budget, image_count
from foveate.core.errors import SettingError
from foveate.core.language import LayerView, PrefillMethod, Route
from foveate.core.method import Evidence
from foveate.prefill._scores import best, last_token


@register
@dataclass(frozen=True)
class FastV(PrefillMethod):
    """Rank visual tokens by the last token's attention in the layer before; drop the rest for good."""

    name: ClassVar[str] = "fastv"
    summary: ClassVar[str] = (
        "drops the visual tokens that the last token attends to least, at one layer"
    )
    paper: ClassVar[Paper | None] = Paper(
        "An Image is Worth 1/2 Tokens After Layer 2: Plug-and-Play Inference Acceleration for "
        "Large Vision-Language Models",
        "Chen, Zhao, Liu, Bai, Lin, Zhou, Chang",
        2024,
        "2403.06764",
    )
    evidence: ClassVar[Evidence] = "golden"
    reads: ClassVar[frozenset[Any]] = frozenset({"previous"})

    layer: int = setting(2, "decoder layer before which tokens leave", low=1)
    keep: Fraction = setting(Fraction(1, 2), "share of the visual tokens kept, 0 < keep <= 1")

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.keep <= 1:
            raise SettingError(f"fastv: keep = {self.keep} is out of range: 0 < keep <= 1")

    def layers(self, count: int) -> tuple[int, ...]:
        if self.layer >= count:
            raise SettingError(
                f"fastv: layer = {self.layer} is outside the model, whose layers are 0 to {count - 1}"
            )
        return (self.layer,)

    def decide(self, layer: int, view: LayerView, state: Any) -> tuple[Route, Any]:
        k = image_count(Budget(keep=self.keep), len(view.visual))
        return Route(keep=best(last_token(view, "previous"), k)), state
