"""ToMe: similar tokens are merged step by step while the vision encoder runs.

Paper: D. Bolya, C.-Y. Fu, X. Dai, P. Zhang, C. Feichtenhofer, J. Hoffman, "Token Merging: Your ViT
But Faster", ICLR 2023, arXiv 2210.09461: bipartite soft matching on the mean of the heads' keys
(section 3, "Token Similarity" and "Bipartite Soft Matching"), size-weighted averages, and
proportional attention, softmax(QK^T / sqrt(d) + log s) (section 3, "Tracking Token Size").

What differs: a merge stands between two blocks and reads the keys of the block before, where the
paper merges between attention and MLP of one block (the engine never rewrites a model's block);
merged tokens stay in raster order instead of unmerged ones first, so who is even and who is odd
in the next round differs; cosines are compared on a grid of 2**-20 with ties to the lowest index.
Beside the paper's `r` there is `keep`, a share of the tokens at the end, reached exactly.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from typing import ClassVar

import numpy as np

from foveate.core import arrays
from foveate.core.budget import Budget, image_count
from foveate.core.errors import InputError, SettingError, UnsupportedError
from foveate.core.method import Evidence, Paper, TowerMethod, setting
from foveate.core.registry import register
from foveate.core.views import Array, BlockView, Reduction


def present(n: int, end: int, step: int, steps: int) -> int:
    """Tokens present after `step` of `steps` rounds that lead evenly from n to `end` tokens.

    A round at most halves the tokens, so what the straight line would ask of the last rounds is
    done earlier.
    """
    line = n - (n - end) * step // steps
    return min(line, end << (steps - step))


def partition(metric: Array, size: np.ndarray, protected: np.ndarray, r: int) -> Reduction:
    """Merge r pairs of the m tokens: even positions go to their most similar odd one.

    metric (m, a), size (m,) patches that a token stands for, protected (m,) bool tokens that stay
    alone. A target takes the size-weighted mean of all that goes to it and stands at the first of
    their positions. r is capped at the sources there are. O(m² a / 4).
    """
    m = int(protected.shape[0])
    place = np.arange(m)
    sources = place[(place % 2 == 0) & ~protected]
    targets = place[(place % 2 == 1) & ~protected]
    into = place.copy()
    if sources.size and targets.size and r > 0:
        u = arrays.unit(metric)
        best, partner = arrays.nearest(
            arrays.take(u, sources), arrays.take(u, targets), normalised=True
        )
        chosen = np.argsort(-best, kind="stable")[:r]
        into[sources[chosen]] = targets[partner[chosen]]
    heads, row = np.unique(into, return_inverse=True)
    anchor = np.full(heads.size, m)
    np.minimum.at(anchor, row, place)
    total = np.bincount(row, weights=size, minlength=heads.size)
    return Reduction.of(anchor, row, place, size / total[row], m, "hidden")


@register
@dataclass(frozen=True)
class ToMe(TowerMethod):
    """Bipartite matching of keys between the encoder's blocks; exactly one of `keep` and `r`.

    The class token stays alone. With `keep` a tower of L blocks ends with round(keep n) tokens, the
    same number less in each round; UnsupportedError where halving in every round is not enough.
    """

    name: ClassVar[str] = "tome"
    summary: ClassVar[str] = "merges similar tokens between the blocks of the vision encoder"
    paper: ClassVar[Paper | None] = Paper(
        "Token Merging: Your ViT But Faster",
        "Bolya, Fu, Dai, Zhang, Feichtenhofer, Hoffman",
        2023,
        "2210.09461",
        "CC-BY-NC-4.0",
    )
    evidence: ClassVar[Evidence] = "reference"

    keep: Fraction | None = setting(None, "share of the tokens left at the end, 0 < keep <= 1")
    r: int | None = setting(None, "tokens merged away in each block", low=0)

    def __post_init__(self) -> None:
        super().__post_init__()
        if (self.keep is None) == (self.r is None):
            raise SettingError(f"{self.name}: set exactly one of keep (a share) and r (per block)")
        if self.keep is not None and not 0 < self.keep <= 1:
            raise SettingError(f"{self.name}: keep = {self.keep} is out of range: 0 < keep <= 1")

    def block(self, layer: int, layers: int, view: BlockView) -> Reduction | None:
        """One round before block `layer` of `layers`; None where nothing is to be merged."""
        if view.keys is None:
            raise InputError(f"{self.name} needs the keys of the block before")
        protected = arrays.to_numpy(view.protected).astype(bool)
        size = arrays.to_numpy(view.size).astype(np.float64)
        n, now = round(float(size[~protected].sum())), int((~protected).sum())
        r = self._round(layer, layers, n, now)
        if r <= 0:
            return None
        arrays.check_finite(view.keys, "keys of the vision encoder")
        xp = arrays.namespace(view.keys)
        metric = xp.mean(xp.astype(view.keys, arrays.wide(view.keys)), axis=1)
        return partition(metric, size, protected, r)

    def _round(self, layer: int, layers: int, n: int, now: int) -> int:
        """Tokens to merge away before block `layer`, of `now` present of `n` in the beginning."""
        if self.keep is None:
            return int(self.r or 0)
        steps, end = layers - 1, image_count(Budget(keep=self.keep), n)
        if present(n, end, 0, steps) < n:
            least = -(-n // (1 << steps))
            raise UnsupportedError(
                f"{self.name}: keep = {self.keep} asks for {end} of {n} tokens; {steps} rounds of "
                f"halving leave at least {least} in this tower: ask for keep >= {least}/{n}"
            )
        return now - present(n, end, layer, steps)
