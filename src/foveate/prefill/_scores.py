"""Scores of visual tokens from a view: shared by methods that rank by attention."""

from __future__ import annotations

from typing import Literal

import numpy as np

from foveate.core import arrays
from foveate.core.language import LayerView
from foveate.core.views import Array, Reduction

Source = Literal["previous", "next"]
TINY = 2.0**-126  # the smallest normal float32
GRID_BITS = 20


def last_token(view: LayerView, source: Source) -> np.ndarray:
    """Attention (V,) of the prompt's last token to each visual token, mean over heads, float64."""
    return attended(view.rows([len(view.modality) - 1], source), view.visual)


def attended(rows: Array, visual: np.ndarray) -> np.ndarray:
    """Attention (V,) of rows (H, r, S), mean over heads and rows, float64 on the host."""
    xp = arrays.namespace(rows)
    wide = xp.astype(rows, arrays.wide(rows))
    return arrays.scores_of(xp.mean(xp.mean(wide, axis=0), axis=0), "attention")[visual]


def best(scores: np.ndarray, k: int) -> Reduction:
    """Keep the k best of V visual tokens; all of them is the identity.

    Scores are 0 or above, float32 made, and their tail is heavy: they are compared by their logarithm
    on a grid of 2**-20. Two that differ by less than a millionth of themselves tie, however small
    they are, and ties go to the lowest index.
    """
    level = arrays.on_grid(np.log(np.maximum(scores, TINY)), GRID_BITS)
    return Reduction.pick(arrays.top_k(level, k, arrays.FINE_BITS), len(scores), "hidden")
