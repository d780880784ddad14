"""TopV: keeps the visual tokens that contribute most to what a layer makes of the picture.

C. Yang, Y. Sui, J. Xiao, L. Huang, Y. Gong, C. Li, J. Yan, Y. Bai, P. Sadayappan, X. Hu, B. Yuan, "TopV:
Compatible Token Pruning with Inference Time Optimization for Fast and Low-Memory Multimodal Vision
Language Model", CVPR 2025, arXiv 2503.18278. At layer 2 the visual tokens that enter are sources, those
that leave it, normalised, are targets. The cost of moving source i to target j is one minus their
cosine, plus their distance in the grid, plus the distance of i to its centre. Sinkhorn's algorithm
gives a transport plan; a source's share of it is its importance. The best go on from the next layer,
with an even sample of the others. No attention is read, so any attention kernel serves.

Reconstructed, because the paper's text at hand gives neither weights nor details:
- With both marginals fixed, all shares would be equal and a term of the source alone would change
  nothing. So each target gets its full mass, while sources are only drawn towards equal shares:
  u = (a / K v)^pull, v = b / K^T u, K = exp(-cost / ε), `rounds` times; pull 0 leaves sources free,
  pull 1 would be the balanced problem.
- Cosines are taken of the states themselves, which only the gain of a norm would change.
- Distances are divided by the grid's diagonal, and by half of it; `distance` and `centre` weigh them.
- `even` is the part of the kept tokens that the even sample fills.
Grids are transported one by one, and all their tokens ranked together. A layout token counts at the
place of the token before it.

Cost: O(n² (D + rounds)) for a grid of n tokens up to 2048; above, no n x n matrix is held and costs are
computed in each round, O(rounds n² D).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, ClassVar

import numpy as np

from foveate.core import Paper, arrays, register, setting
from foveate.core.budget import Budget, image_count
from foveate.core.errors import SettingError
from foveate.core.language import LayerView, PrefillMethod, Route
from foveate.core.method import Evidence
from foveate.core.views import Array, Reduction
from foveate.prefill import _stairs

BLOCK_ELEMENTS = 2**20
HELD_ELEMENTS = 2**22  # costs of up to 2048 tokens are computed once and held


def places(cell: np.ndarray, grid: tuple[int, int, int]) -> np.ndarray:
    """(n, 3) coordinates (t, row, column) of cells; layout tokens stand where the one before does."""
    last = np.maximum.accumulate(np.where(cell >= 0, np.arange(cell.size), -1))
    filled = np.where(last >= 0, cell[np.maximum(last, 0)], 0)
    return np.stack(np.unravel_index(np.maximum(filled, 0), grid), axis=1).astype(np.float64)


def shares(
    sources: Array,
    targets: Array,
    where: np.ndarray,
    grid: tuple[int, int, int],
    *,
    distance: float,
    centre: float,
    epsilon: float,
    pull: float,
    rounds: int,
) -> np.ndarray:
    """The mass (n,) that each source gives, float64 on the host; it sums up to 1.

    sources, targets (n, D) are the same tokens before and after a layer, where (n, 3) their places.
    """
    xp = arrays.namespace(sources, targets)
    left, right = arrays.unit(sources), arrays.unit(targets)
    n = int(left.shape[0])
    size = np.asarray(grid, np.float64) - 1
    diagonal = float(np.sqrt((size**2).sum())) or 1.0
    middle = np.sqrt(((where - size / 2) ** 2).sum(1)) / (diagonal / 2)

    def there(x: np.ndarray) -> Array:
        return xp.astype(xp.asarray(x, device=left.device), left.dtype)

    own, at = there(centre * middle), there(where)
    log_u = own * 0.0
    log_n, step = math.log(n), max(1, BLOCK_ELEMENTS // n)
    blocks = [(start, min(start + step, n)) for start in range(0, n, step)]

    def costs(start: int, stop: int) -> Array:
        gap = own[:, None] * 0.0 + at[None, start:stop, 0] * 0.0
        for axis in range(3):
            gap = gap + (at[:, None, axis] - at[None, start:stop, axis]) ** 2
        cost = 1.0 - left @ right[start:stop, :].T
        return cost + distance * xp.sqrt(gap) / diagonal + own[:, None]

    held = {b: costs(*b) for b in blocks} if n * n <= HELD_ELEMENTS else {}
    peak = total = own
    for turn in range(rounds):
        if turn:
            log_u = -pull * (log_n + peak + xp.log(total))
        # K v, as total · exp(peak): in logarithms nothing under- or overflows.
        peak, total = own * 0.0 - math.inf, own * 0.0
        for block in blocks:
            cost = held[block] if held else costs(*block)
            given = log_u[:, None] - cost / epsilon
            most = xp.max(given, axis=0)
            log_v = -log_n - most - xp.log(xp.sum(xp.exp(given - most[None, :]), axis=0))
            taken = log_v[None, :] - cost / epsilon
            higher = xp.maximum(peak, xp.max(taken, axis=1))
            total = total * xp.exp(peak - higher) + xp.sum(xp.exp(taken - higher[:, None]), axis=1)
            peak = higher
    return arrays.scores_of(xp.exp(log_u + peak) * total, "shares")


def evenly(free: np.ndarray, count: int) -> np.ndarray:
    """`count` of the places in `free` (m,), at equal steps: the middles of m / count long stretches."""
    return free[(2 * np.arange(count) + 1) * free.size // (2 * count)] if count else free[:0]


@register
@dataclass(frozen=True)
class TopV(PrefillMethod):
    """Transport between a layer's input and output; the state is its input."""

    name: ClassVar[str] = "topv"
    summary: ClassVar[str] = (
        "keeps the visual tokens that give most to a layer's output, by optimal transport"
    )
    paper: ClassVar[Paper | None] = Paper(
        "TopV: Compatible Token Pruning with Inference Time Optimization for Fast and Low-Memory "
        "Multimodal Vision Language Model",
        "Yang, Sui, Xiao, Huang, Gong, Li, Yan, Bai, Sadayappan, Hu, Yuan",
        2025,
        "2503.18278",
    )
    evidence: ClassVar[Evidence] = "reconstructed"

    layer: int = setting(2, "decoder layer that is looked at; tokens leave before the next", low=0)
    keep: Fraction = setting(Fraction(1, 2), "share of the visual tokens kept, 0 < keep <= 1")
    even: Fraction = setting(
        Fraction(1, 8), "part of the kept tokens that an even sample fills, 0 <= even < 1"
    )
    distance: float = setting(1.0, "weight of the distance between source and target", low=0.0)
    centre: float = setting(0.1, "weight of a source's distance to the centre", low=0.0)
    epsilon: float = setting(0.1, "entropic regularisation, 1e-3 to 1e3", low=1e-3, high=1e3)
    pull: float = setting(0.5, "how far sources are drawn to equal shares", low=0.0, high=1.0)
    rounds: int = setting(10, "rounds of Sinkhorn's algorithm", low=1)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.keep <= 1:
            raise SettingError(f"topv: keep = {self.keep} is out of range: 0 < keep <= 1")
        if not 0 <= self.even < 1:
            raise SettingError(f"topv: even = {self.even} is out of range: 0 <= even < 1")

    def layers(self, count: int) -> tuple[int, ...]:
        if self.layer + 1 >= count:
            raise SettingError(
                f"topv: layer = {self.layer} leaves no layer to drop tokens before in a model whose "
                f"layers are 0 to {count - 1}"
            )
        return (self.layer, self.layer + 1)

    def decide(self, layer: int, view: LayerView, state: Any) -> tuple[Route, Any]:
        visual = view.visual
        hidden = arrays.take(view.hidden, visual)
        if layer == self.layer:
            return Route(), hidden
        k = image_count(Budget(keep=self.keep), visual.size)
        if k == visual.size:
            return Route(), None
        score = np.zeros(visual.size)
        for s in np.unique(view.segment[visual]):
            mine = np.flatnonzero(view.segment[visual] == s)
            grid = view.grids[int(s)]
            where = places(view.cell[visual][mine], grid)
            score[mine] = mine.size * shares(
                arrays.take(state, mine),
                arrays.take(hidden, mine),
                where,
                grid,
                distance=self.distance,
                centre=self.centre,
                epsilon=self.epsilon,
                pull=self.pull,
                rounds=self.rounds,
            )
        extra = min(_stairs.count_of(self.even, k), k - 1)
        best = arrays.top_k(score, k - extra, arrays.FINE_BITS)
        free = np.flatnonzero(~arrays.mask_of(best, visual.size))
        kept = np.sort(np.concatenate([best, evenly(free, extra)]))
        return Route(keep=Reduction.pick(kept, visual.size, "hidden")), None
