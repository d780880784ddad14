"""AIM, the half inside the language model: tokens leave layer by layer, ranked by PageRank.

Paper: Y. Zhong, Z. Liu, Y. Li, L. Wang, "AIM: Adaptive Inference of Multi-Modal LLMs via Token
Merging and Pruning", ICCV 2025, arXiv 2412.03248, its pruning. After each layer l from l1 on, the
layer's attention is read as a graph: s = 1/S for all S tokens, then s <- s P in every head, five
times without damping, where P is the softmax of the logits / 0.1; the heads' root mean square is a
token's importance. Of the N visual tokens that entered, floor(N r) go on to layer l + 1, with
r = 1 - (l - l1 + 1) / (l2 - l1): none is left from layer l2 on. Text always stays. The paper's l1
and l2 are 14 and 22 of 28 layers (Qwen2), 13 and 21 of 32 (Vicuna).

What the authors' code does: it masks tokens in place, so dropped ones still vote in the first round;
here they are gone, and what is left votes alone. At least one token stays while r is above 0. Before
it, `aim` merges: `aim:keep=1/4+aim-pagerank` is AIM as a whole.

Cost: per pruned layer 5 times its attention matrix, O(H S² a) each, in blocks that are never held
whole.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from typing import Any, ClassVar

import numpy as np

from foveate.core import Paper, arrays, register, setting
from foveate.core.errors import SettingError
from foveate.core.language import LayerView, PrefillMethod, Route
from foveate.core.method import Evidence
from foveate.core.views import Array
from foveate.prefill import _stairs
from foveate.prefill._scores import best


def pagerank(view: LayerView, rounds: int, temperature: float) -> np.ndarray:
    """Importance (S,) of all tokens present in the layer before, float64 on the host."""
    queries: Array = view.queries("previous")
    xp = arrays.namespace(queries)
    heads, tokens = int(queries.shape[0]), len(view.modality)
    s = xp.zeros_like(xp.astype(queries[:, :, 0], xp.float32)) + 1.0 / tokens
    for _ in range(rounds):
        s = view.left_multiply(s, "previous", temperature)
    wide = xp.astype(s, arrays.wide(s))
    return arrays.scores_of(xp.sqrt(xp.sum(wide * wide, axis=0) / heads), "importance")


def rate(layer: int, l1: int, l2: int) -> Fraction:
    """Share of the entered visual tokens that stands after this layer."""
    return min(max(1 - Fraction(layer - l1 + 1, l2 - l1), Fraction(0)), Fraction(1))


@register
@dataclass(frozen=True)
class AIMPageRank(PrefillMethod):
    """A linear schedule from l1 to l2, each step ranked by PageRank on the layer's attention."""

    name: ClassVar[str] = "aim-pagerank"
    summary: ClassVar[str] = (
        "drops visual tokens layer by layer until none is left, by PageRank on attention"
    )
    paper: ClassVar[Paper | None] = Paper(
        "AIM: Adaptive Inference of Multi-Modal LLMs via Token Merging and Pruning",
        "Zhong, Liu, Li, Wang",
        2025,
        "2412.03248",
        "Apache-2.0",
    )
    evidence: ClassVar[Evidence] = "golden"
    reads: ClassVar[frozenset[Any]] = frozenset({"previous"})

    l1: Fraction = setting(
        Fraction(1, 2), "first layer that is pruned after, or share of the depth"
    )
    l2: Fraction = setting(
        Fraction(11, 14), "layer from which no visual token is left, or share of the depth"
    )
    rounds: int = setting(5, "rounds of PageRank", low=1)
    temperature: float = setting(0.1, "divisor of the logits", low=1e-6)

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("l1", "l2"):
            _stairs.check_places((getattr(self, name),), f"aim-pagerank: {name}")

    def bounds(self, count: int) -> tuple[int, int]:
        """l1 and l2 in a model with `count` layers."""
        (l1,) = _stairs.layers_of((self.l1,), count, "aim-pagerank: l1")
        (l2,) = _stairs.layers_of((self.l2,), count, "aim-pagerank: l2")
        if l1 >= l2:
            raise SettingError(
                f"aim-pagerank: l1 = {self.l1} and l2 = {self.l2} are layers {l1} and {l2} of a model "
                f"with {count} layers; l1 must come first"
            )
        return l1, l2

    def layers(self, count: int) -> tuple[int, ...]:
        l1, l2 = self.bounds(count)
        return tuple(range(l1 + 1, l2 + 1))

    def decide(self, layer: int, view: LayerView, state: Any) -> tuple[Route, Any]:
        share = rate(layer - 1, *self.bounds(view.layers))
        k = min(len(view.visual), max(1, int(share * view.entered)) if share else 0)
        if k == len(view.visual):
            return Route(), state
        scores = np.zeros(len(view.visual))  # the last step keeps none, whatever the scores are
        if k:
            scores = pagerank(view, self.rounds, self.temperature)[view.visual]
        return Route(keep=best(scores, k)), state
