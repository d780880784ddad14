"""VisionZip: the tokens the vision encoder itself looks at, and the rest merged into a few
contextual ones.

Paper: S. Yang, Y. Chen, Z. Tian, C. Wang, J. Li, B. Yu, J. Jia, "VisionZip: Longer is Better but
Not Necessary in Vision Language Models", CVPR 2025, arXiv 2412.04467 (dominant token
selection, contextual token merging). Saliency is the CLS token's attention in the penultimate
block, or received attention where the tower has no CLS token; similarity is the cosine of that
block's keys, averaged over heads.

What the authors' code does and this file follows: a contextual token is its target plus the mean of
what was assigned to it, not the mean of all; targets are every (R // c)-th of the R tokens left
over, in spatial order. Of k tokens, 5/32 are contextual (10 of 64, 20 of 128, 30 of 192 in the
paper).

What differs: where the projector works token by token the choice is made on encoder tokens and the
CLS token goes along, counted in k, if at least one patch stays beside it; elsewhere (pixel shuffle,
patch merger) on projected tokens without CLS. A contextual token stands at its target's place, not
at the end.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from foveate.core import arrays
from foveate.core.budget import Counts
from foveate.core.method import Evidence, Paper, Rng, TokenMethod, setting
from foveate.core.registry import register
from foveate.core.views import Array, Need, Question, Reduction, Segment, Space
from foveate.encode.tokens._common import each, encoder_of, mean_keys, saliency

LAYER = -2


def zip_tokens(
    score: np.ndarray, keys: Array, k: int, contextual: int, specials: int, space: Space
) -> Reduction:
    """The reduction for saliency (n,), keys (n, a): specials, k - contextual - specials dominant,
    contextual.

    O(n log n + n c a).
    """
    n = score.shape[0]
    dominant = arrays.ascending(arrays.top_k(score, k - contextual - specials, arrays.FINE_BITS))
    rest = arrays.nonzero(~arrays.mask_of(dominant, n))
    targets = rest[:: max(1, rest.size // max(contextual, 1))][:contextual]
    assigned = rest[~np.isin(rest, targets)]
    anchor = np.concatenate([np.zeros(specials, dtype=np.int64), dominant, targets])
    own = np.concatenate([n + np.arange(specials), dominant, targets])
    rows, cols, weights = [np.arange(k)], [own], [np.ones(k)]
    if contextual and assigned.size:
        _, home = arrays.nearest(arrays.take(keys, assigned), arrays.take(keys, targets))
        size = np.bincount(home, minlength=contextual)
        rows.append(k - contextual + home)
        cols.append(assigned)
        weights.append(1.0 / size[home])
    elif not specials:
        return Reduction.pick(anchor, n, space)
    parts = (np.concatenate(rows), np.concatenate(cols), np.concatenate(weights))
    return Reduction.of(anchor, *parts, n, space)


@register
@dataclass(frozen=True)
class VisionZip(TokenMethod):
    """Dominant tokens by encoder attention, plus contextual tokens merged by key similarity."""

    name: ClassVar[str] = "visionzip"
    summary: ClassVar[str] = (
        "keeps what the encoder attends to and merges the rest into a few tokens"
    )
    paper: ClassVar[Paper | None] = Paper(
        "VisionZip: Longer is Better but Not Necessary in Vision Language Models",
        "Yang, Chen, Tian, Wang, Li, Yu, Jia",
        2025,
        "2412.04467",
        "Apache-2.0",
    )
    evidence: ClassVar[Evidence] = "golden"
    needs: ClassVar[frozenset[Need]] = frozenset(
        {Need("saliency", LAYER), Need("keys", LAYER), Need("features", LAYER)}
    )

    contextual: float = setting(
        0.15625, "share of the kept tokens that is merged from the rest", low=0.0, high=0.9
    )

    def select(
        self, segments: list[Segment], counts: Counts, question: Question | None, rng: Rng
    ) -> list[Reduction]:
        def choose(segment: Segment, k: int) -> Reduction:
            view = encoder_of(segment, self.name)
            score = saliency(segment, LAYER, self.name)
            keys = mean_keys(segment, LAYER, self.name)
            specials = 0
            if view.tokenwise and view.special is not None and k > view.special.shape[0]:
                specials = int(view.special.shape[0])
            contextual = min(int(k * self.contextual + 0.5), k - specials - 1)
            space: Space = "encoder" if view.tokenwise else "projected"
            return zip_tokens(score, keys, k, contextual, specials, space)

        return each(segments, counts, choose)
