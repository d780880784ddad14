"""SparseVLM: words that are about the picture rate its tokens; the lowest rated leave in stages.

Paper: Y. Zhang, C. Fan, J. Ma, W. Zheng, T. Huang, K. Cheng, D. Gudovskiy, T. Okuno, Y. Nakata,
K. Keutzer, S. Zhang, "SparseVLM: Visual Token Sparsification for Efficient Vision-Language Model
Inference", ICML 2025, arXiv 2410.04417. Raters are chosen once, on the input embeddings: with V
visual tokens and T words, R = softmax over words of V Tᵀ, mean over visual tokens, a word above the
mean of R rates. After three layers (2, 6 and 15 of 32) a visual token's score is the raters' mean
attention to it in that layer, and the best go on to the next one. Version 2 averages the 14 heads
that look at the picture most, and divides each rater's attention by what positions alone would give:
its row if all queries and keys were ones before they are rotated (`debias`). Version 1 (`recycle`)
averages all heads, undivided, and of the dropped tokens clusters the best int(0.3 · dropped) + 1 by
density peaks into int(that / 10) + 1 means, which go on too. The default ratios are the 300, 200 and
110 of 576 released for version 1, whose clusters come on top; for smaller budgets it has 303, 110, 36
and 66, 30, 17. Version 2 has 300, 200, 118 and 66, 34, 20.

Reconstructed in version 2: heads are chosen by undivided attention; the row of ones is the softmax over
the tokens that the rater sees, and a token that it does not see scores 0.

Differs from the authors' code: words are the text behind the last picture without special tokens,
where theirs are all of it, and without any the last token rates; a merged token takes the place of
its cluster's centre, where theirs stand behind the others; ties go to the lowest index, not to noise;
where no word is above the mean, all rate; shares count the tokens that entered. The authors' vectors
that this agrees with leave the division out.

Cost: O(H r S a) a stage for r raters, O(V T D) once; recycling of x tokens O(x² D). The division runs
one layer's norm and rotary step once more a stage, without its projections.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from foveate.core import Paper, arrays, register, setting
from foveate.core.density import density_peaks
from foveate.core.errors import SettingError, UnsupportedError
from foveate.core.language import LayerView, PrefillMethod, Route
from foveate.core.method import Evidence
from foveate.core.views import Array, Reduction
from foveate.prefill import _stairs
from foveate.prefill._scores import attended, best


def raters(hidden: Array, visual: np.ndarray, words: np.ndarray) -> np.ndarray:
    """Which of the words (T,), places in hidden (S, D), are more than averagely about the picture."""
    xp = arrays.namespace(hidden)
    wide = arrays.wide(hidden)
    v = xp.astype(arrays.take(hidden, visual), wide)
    t = xp.astype(arrays.take(hidden, words), wide)
    logits = v @ t.T
    mass = xp.exp(logits - xp.max(logits, axis=1, keepdims=True))
    mass = mass / xp.sum(mass, axis=1, keepdims=True)
    score = arrays.scores_of(xp.mean(mass, axis=0), "rater scores")
    above = arrays.quantum(score) > arrays.quantum(np.asarray(1.0 / words.size))
    return words[above] if above.any() else words


def looking(rows: Array, visual: np.ndarray, heads: int) -> np.ndarray:
    """The heads of rows (H, r, S) with the most attention to the visual tokens, best first."""
    xp = arrays.namespace(rows)
    seen = xp.astype(arrays.take(xp.permute_dims(rows, (2, 0, 1)), visual), arrays.wide(rows))
    mass = xp.sum(xp.sum(seen, axis=0), axis=1)
    return arrays.top_k(mass, heads)


def unbiased(rows: Array, alone: Array) -> Array:
    """Attention rows (H, r, S) over what positions alone would give, (r, S); 0 where these give 0."""
    xp = arrays.namespace(rows)
    share = xp.astype(alone, arrays.wide(rows))[None, :, :]
    seen = share > 0
    return xp.where(seen, xp.astype(rows, share.dtype), 0.0) / xp.where(seen, share, 1.0)


def recycled(hidden: Array, kept: np.ndarray, scores: np.ndarray) -> Reduction:
    """Keep `kept` of V tokens (V, D); of the others, cluster the best into means at their centres."""
    n = scores.size
    rest = arrays.nonzero(~arrays.mask_of(kept, n))
    if not rest.size:
        return Reduction.pick(kept, n, "hidden")
    again = rest[best(scores[rest], int(0.3 * rest.size) + 1).anchor]
    count = again.size // 10 + 1
    x = arrays.take(hidden, again)
    centres = density_peaks(x, count, neighbours=count)
    home = nearest_centre(x, centres)
    rows = np.concatenate([np.arange(kept.size), kept.size + home])
    weights = 1.0 / np.bincount(rows)[rows]
    anchor = np.concatenate([kept, again[centres]])
    return Reduction.of(anchor, rows, np.concatenate([kept, again]), weights, n, "hidden")


def nearest_centre(x: Array, centres: np.ndarray) -> np.ndarray:
    """(m,): the nearest of the centres, places in x (m, D), of each; a centre is its own."""
    xp = arrays.namespace(x)
    points = xp.astype(x, arrays.wide(x))
    points = points - xp.mean(points, axis=0)
    to = arrays.take(points, centres)
    squared = xp.sum(points * points, axis=1)[:, None] + xp.sum(to * to, axis=1)[None, :]
    squared = arrays.to_numpy(squared - 2.0 * (points @ to.T)).astype(np.float64)
    size = float(squared.max(initial=0.0)) or 1.0
    home = arrays.quantum(squared / size, arrays.ORDER_BITS).argmin(axis=1)
    home[centres] = np.arange(centres.size)
    return home


@register
@dataclass(frozen=True)
class SparseVLM(PrefillMethod):
    """Rated by chosen words in stages; the state is the raters' places in the prompt."""

    name: ClassVar[str] = "sparsevlm"
    summary: ClassVar[str] = (
        "drops visual tokens in stages, by the attention of the words that are about the picture"
    )
    paper: ClassVar[Paper | None] = Paper(
        "SparseVLM: Visual Token Sparsification for Efficient Vision-Language Model Inference",
        "Zhang, Fan, Ma, Zheng, Huang, Cheng, Gudovskiy, Okuno, Nakata, Keutzer, Zhang",
        2025,
        "2410.04417",
        "Apache-2.0",
    )
    evidence: ClassVar[Evidence] = "golden"
    reads: ClassVar[frozenset[Any]] = frozenset({"previous"})

    at: str = setting(
        "3/32 7/32 1/2", "decoder layers before which tokens leave, or shares of the depth"
    )
    ratios: str = setting(
        "25/48 25/72 55/288", "share of the entered visual tokens that goes on from each of them"
    )
    heads: int = setting(14, "heads whose attention counts, without recycle", low=1)
    recycle: bool = setting(False, "cluster some of the dropped tokens and keep the means")
    debias: bool | None = setting(
        None, "divide attention by what positions alone would give; none = without recycle"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        places = _stairs.fractions(self.at, "sparsevlm: at")
        _stairs.check_places(places, "sparsevlm: at")
        shares = _stairs.fractions(self.ratios, "sparsevlm: ratios")
        _stairs.check_shares(shares, len(places), "sparsevlm: ratios")
        if self.recycle and self.debias:
            raise SettingError(
                "sparsevlm: debias=true divides as version 2 does, recycle=true is version 1; drop one"
            )

    def _at(self, count: int) -> tuple[int, ...]:
        places = _stairs.fractions(self.at, "sparsevlm: at")
        return _stairs.layers_of(places, count, "sparsevlm: at")

    def layers(self, count: int) -> tuple[int, ...]:
        return (0, *self._at(count))

    def decide(self, layer: int, view: LayerView, state: Any) -> tuple[Route, Any]:
        visual = view.visual
        if layer == 0:
            words = np.flatnonzero(view.question)
            words = words[words > visual[-1]]  # words before a picture cannot have seen it
            chosen = raters(view.hidden, visual, words) if words.size else words
            return Route(), view.origin[chosen]
        share = _stairs.fractions(self.ratios, "sparsevlm: ratios")[
            self._at(view.layers).index(layer)
        ]
        k = min(_stairs.count_of(share, view.entered), visual.size)
        if k == visual.size:
            return Route(), state
        # Without any such word the last token rates, whichever that is here.
        rating = np.searchsorted(view.origin, state) if state.size else [len(view.modality) - 1]
        rows = view.rows(rating, "previous")
        if not self.recycle:
            chosen = looking(rows, visual, min(self.heads, int(rows.shape[0])))
            rows = arrays.take(rows, chosen)
            if self.debias is not False:
                rows = unbiased(rows, self.alone(view, rating))
            return Route(keep=best(attended(rows, visual), k)), state
        scores = attended(rows, visual)
        kept = best(scores, k).anchor
        return Route(keep=recycled(arrays.take(view.hidden, visual), kept, scores)), state

    def alone(self, view: LayerView, rating: Any) -> Array:
        """The raters' attention (r, S) from positions alone; UnsupportedError says what to set."""
        try:
            return view.position_rows(rating, "previous")
        except UnsupportedError as error:
            raise UnsupportedError(f"{error}; set debias=false") from None
