"""How much of an answer's evidence a run kept, from the engine's record of one request."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from foveate.core.views import Box as View
from foveate.engine.draw import field_of_view
from foveate.engine.request import Answer, KeptSegment

from .canvas import Box
from .evidence import evidence_kept, evidence_tokens
from .tasks import Sample

LONGEST_LIST = 8
"""A grid of one row with more tokens than this is a list of tokens without a place."""


def evidence_share(sample: Sample, answer: Answer, image_processor: Any) -> float | None:
    """Share of the sample's evidence tokens among the kept ones, 0 to 1, over all its pictures.

    Counted on the grid that entered the language model, so a smaller picture keeps all of its own,
    larger patches; a merged token counts at its anchor. None where it cannot be told: a sample
    without boxes, pictures cut into tiles, tokens that have no place in the picture, evidence
    outside the encoder's field of view, tokens that leave inside the language model.
    """
    if answer.report is None or answer.report.layers is not None or not sample.boxes:
        return None
    masks, kept, start = [], [], 0
    for number, picture in enumerate(sample.images):
        segment = _whole([s for s in answer.kept if s.image == number])
        if segment is None:
            return None
        boxes, size = _within(
            boxes_of(sample, number), picture.size, field_of_view(image_processor, picture.size)
        )
        _, rows, columns = segment.grid
        masks.append(evidence_tokens(boxes, size, (rows, columns)))
        kept.append(np.asarray(segment.anchors, np.int64) + start)
        start += segment.tokens
    mask = np.concatenate(masks)
    return evidence_kept(mask, np.concatenate(kept)) if mask.any() else None


def boxes_of(sample: Sample, number: int) -> list[Box]:
    """The evidence boxes that lie in one of a sample's pictures."""
    places = zip(sample.boxes, sample.box_images, strict=True)
    return [box for box, image in places if image == number]


def _whole(segments: Sequence[KeptSegment]) -> KeptSegment | None:
    """The one segment that shows a whole still picture on a full grid; None for everything else."""
    if len(segments) != 1 or segments[0].kind != "image":
        return None
    found = segments[0]
    t, rows, columns = found.grid
    listed = rows == 1 and columns > LONGEST_LIST
    return found if t == 1 and rows * columns == found.tokens and not listed else None


def _within(
    boxes: Sequence[Box], size: tuple[int, int], view: View | None
) -> tuple[list[Box], tuple[int, int]]:
    """Boxes and picture size as the encoder sees them; boxes that it does not see at all fall away."""
    if view is None:
        return list(boxes), size
    width, height = view.right - view.left, view.bottom - view.top
    moved = [
        (left - view.left, top - view.top, right - view.left, bottom - view.top)
        for left, top, right, bottom in boxes
    ]
    inside = [
        (max(0, left), max(0, top), min(width, right), min(height, bottom))
        for left, top, right, bottom in moved
    ]
    return [b for b in inside if b[0] < b[2] and b[1] < b[3]], (width, height)
