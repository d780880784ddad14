"""SGL: a small sibling answers first; its attention says which visual tokens the large model needs.

W. Zhao, Y. Han, J. Tang, Z. Li, Y. Song, K. Wang, Z. Wang, Y. You, "A Stitch in Time Saves Nine: Small
VLM is a Precise Guidance for Accelerating Large VLMs", CVPR 2025, arXiv 2412.03324. A visual token's
score is the attention it receives in the small model, summed over all layers and heads and over the
queries of the prompt behind the pictures and of the generated tokens. The large model keeps the best
share of all N before layer floor(L · p) of L. Kept tokens keep their positions.

Early exit (`exit`): the small model's answer of n tokens with probabilities p_i stands, and the large
model does not run, where S = (S_conf + S_cons) / 2 reaches the threshold: S_conf = (Π p_i)^(1/n) and
S_cons = Π p'_i, with p'_i of the same tokens when the small language model sees only its own best 5 %
of the visual tokens, dropped before its first layer. S_cons is not brought to the length of the
answer, as in the paper: long answers rarely exit.

Differs from the authors' code: the share is rounded half up, theirs is cut off; queries begin behind
the last visual token, theirs at it; S_cons takes n steps over the reduced cache, theirs one pass over
the answer, with the same probabilities; their code runs the large model always and looks at S later.
Both models must give each picture the same tokens. Pictures of a request are ranked together.

Cost: an answer of the small model. In the large one O(V log V), no attention is read.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, ClassVar

from foveate.core import Paper, arrays, register, setting
from foveate.core.budget import Budget, image_count
from foveate.core.errors import InputError, SettingError, UnsupportedError
from foveate.core.language import GuidedMethod, LayerView, Route
from foveate.core.method import Evidence
from foveate.prefill._scores import best

PROBE_KEEP = Fraction(1, 20)


@register
@dataclass(frozen=True)
class SGL(GuidedMethod):
    """One drop by the guide's scores."""

    name: ClassVar[str] = "sgl"
    summary: ClassVar[str] = (
        "keeps the visual tokens that a small sibling model looked at while it answered"
    )
    paper: ClassVar[Paper | None] = Paper(
        "A Stitch in Time Saves Nine: Small VLM is a Precise Guidance for Accelerating Large VLMs",
        "Zhao, Han, Tang, Li, Song, Wang, Wang, You",
        2025,
        "2412.03324",
    )
    evidence: ClassVar[Evidence] = "reference"

    layer: Fraction = setting(
        Fraction(3, 10), "layer before which tokens leave, or below 1 a share of the depth"
    )
    keep: Fraction = setting(Fraction(3, 10), "share of the visual tokens kept, 0 < keep <= 1")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.layer < 0 or (self.layer > 1 and self.layer.denominator != 1):
            raise SettingError(
                f"sgl: layer = {self.layer} is out of range: a layer from 0 on, or a share of the "
                "depth between 0 and 1"
            )
        if not 0 < self.keep <= 1:
            raise SettingError(f"sgl: keep = {self.keep} is out of range: 0 < keep <= 1")

    def layers(self, count: int) -> tuple[int, ...]:
        layer = int(count * self.layer) if self.layer < 1 else int(self.layer)
        if layer >= count:
            raise SettingError(
                f"sgl: layer = {self.layer} is outside the model, whose layers are 0 to {count - 1}"
            )
        return (layer,)

    def decide(self, layer: int, view: LayerView, state: Any) -> tuple[Route, Any]:
        if view.guidance is None:
            raise UnsupportedError(
                "sgl follows a small model: give Engine(..., guide=) an engine of it"
            )
        scores = arrays.scores_of(view.guidance, "guidance")
        if scores.size != len(view.visual):
            raise InputError(
                f"sgl: the guide scored {scores.size} visual tokens, but {len(view.visual)} are present"
            )
        return Route(keep=best(scores, image_count(Budget(keep=self.keep), scores.size))), state

    def probe(self) -> SGL:
        return SGL(layer=Fraction(0), keep=PROBE_KEEP)

    def confidence(self, first: Sequence[float], again: Sequence[float]) -> float:
        if not first or len(first) != len(again):
            raise InputError(
                f"sgl: an answer of {len(first)} tokens was gone over with {len(again)}; both need "
                "the same tokens, at least one"
            )
        return (math.exp(math.fsum(first) / len(first)) + math.exp(math.fsum(again))) / 2
