"""Which visual tokens hold the evidence of an answer, and how much of it a choice keeps."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from .canvas import Box

COVERED = 0.25
"""A token is evidence when at least this share of its patch lies in evidence boxes, or it holds a
box's centre.
"""


def evidence_tokens(
    boxes: Sequence[Box], size: tuple[int, int], grid: tuple[int, int]
) -> NDArray[np.bool_]:
    """Mask (rows * columns,) of the tokens under the boxes of a picture of `size` (width, height)
    in pixels.
    """
    width, height = size
    rows, columns = grid
    inside = np.zeros((height, width), bool)
    for left, top, right, bottom in boxes:
        inside[max(0, top) : bottom, max(0, left) : right] = True
    row = np.arange(height) * rows // height
    column = np.arange(width) * columns // width
    token = (row[:, None] * columns + column[None]).ravel()
    area = np.bincount(token, minlength=rows * columns)
    mask: NDArray[np.bool_] = np.bincount(token, inside.ravel(), rows * columns) / area >= COVERED
    for left, top, right, bottom in boxes:
        y, x = min((top + bottom) // 2, height - 1), min((left + right) // 2, width - 1)
        mask[row[y] * columns + column[x]] = True
    return mask


def evidence_kept(mask: NDArray[np.bool_], kept: Sequence[int] | NDArray[np.int64]) -> float:
    """Share of the evidence tokens among the kept ones, 0 to 1."""
    return float(mask[np.asarray(kept, np.int64)].sum() / max(1, mask.sum()))
