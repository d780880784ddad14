"""When an answer is right: the one rule that evaluation, benchmarks and reports share."""

from __future__ import annotations

from collections.abc import Sequence

from .canvas import Ask, Box
from .tasks import Sample
from .words import BOX_CELLS, DIGITS, SIDE

IOU_NEEDED = 0.5
"""A box is right when it overlaps the true one by this share of their union."""

Edges = tuple[float, float, float, float]


def parse_box(answer: str) -> Edges | None:
    """The box that an answer of eight digits names, in pixels; None where it names none."""
    text = answer.strip()
    if len(text) != 8 or any(char not in DIGITS for char in text):
        return None
    left, top, right, bottom = (int(text[i : i + 2]) * SIDE / BOX_CELLS for i in range(0, 8, 2))
    if not (left < right <= SIDE and top < bottom <= SIDE):
        return None
    return left, top, right, bottom


def iou(a: Sequence[float], b: Sequence[float]) -> float:
    """Intersection over union of two boxes that are not empty."""
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    shared = max(0.0, width) * max(0.0, height)
    areas = ((box[2] - box[0]) * (box[3] - box[1]) for box in (a, b))
    return shared / (sum(areas) - shared)


def box_right(answer: str, truth: Box) -> bool:
    """Whether the answer names a box near enough to the true one."""
    found = parse_box(answer)
    return found is not None and iou(found, truth) >= IOU_NEEDED


def is_right(sample: Sample | Ask, answer: str) -> bool:
    """Whether an answer is right by the sample's metric: equal but for blanks at the ends, or, for
    "iou", a box with an overlap of at least half with the first evidence box. Whatever else was
    said is wrong.
    """
    if sample.metric == "iou":
        return box_right(answer, sample.boxes[0])
    return answer.strip() == sample.answer
