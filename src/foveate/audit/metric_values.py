"""Comparing numbers and boxes that stand in answers."""

from __future__ import annotations

import math
import re
from fractions import Fraction

from foveate.audit.metric_words import normalise
from foveate.lab.score import Edges, box_right, iou

TOLERANCE = Fraction(1, 20)
"""A number may be off by 5 % of the reference."""

MOST_DIGITS = 40
"""A longer row of digits is no quantity that a picture shows."""

_NUMBER = re.compile(
    r"(?P<sign>[-+\u2212]?)\s*[$€£¥]?\s*(?P<value>\d+(?:,\d{3})*(?:\.\d*)?|\.\d+)\s*(?P<percent>%?)",
    re.ASCII,
)
_VALUE = r"[-+]?(?:\d+(?:\.\d*)?|\.\d+)"
_GAP = r"[\s,;()\[\]<>|]+"
_FOUR = re.compile(rf"(?<![\w.+-]){_VALUE}(?:{_GAP}{_VALUE}){{3}}(?![\w.])", re.ASCII)


def number(text: str) -> Fraction | None:
    """The number that a text is, exactly; None where it is anything else.

    Blanks around it, a sign, a currency sign, commas before each three digits and a point at its end
    are passed over; "5%" is 0.05.
    """
    match = _NUMBER.fullmatch(text.strip())
    if match is None or len(match["value"]) > MOST_DIGITS:
        return None
    value = Fraction(match["value"].replace(",", "").rstrip(".") or "0")
    if match["percent"]:
        value /= 100
    return value if match["sign"] in ("", "+") else -value


def relaxed(answer: str, reference: str) -> float:
    """1 if both are numbers and the answer is off by at most 5 % of the reference, or if they are no
    numbers and equal in the normal form.

    The rule of ChartQA (Masry et al. 2022, arXiv:2203.10244), taken from PlotQA (Methani et al. 2020,
    arXiv:1909.00997). A year counts as a number in it. A reference of 0 allows 0 only.
    """
    said, asked = number(answer), number(reference)
    if said is None or asked is None:
        return float(normalise(answer) == normalise(reference))
    return float(abs(said - asked) <= TOLERANCE * abs(asked))


def box(text: str) -> Edges | None:
    """The first four numbers in a row (left, top, right, bottom), with commas, blanks or brackets
    between them; None where there are none or they enclose no area.
    """
    match = _FOUR.search(text)
    if match is None:
        return None
    values = [float(word) for word in re.findall(_VALUE, match[0], re.ASCII)]
    left, top, right, bottom = values
    finite = all(math.isfinite(v) and abs(v) < 1e9 for v in values)
    return (left, top, right, bottom) if finite and left < right and top < bottom else None


def box_overlap(answer: str, reference: str) -> float:
    """Intersection over union of two boxes, 0 where the answer names none.

    Everingham et al. 2010 (PASCAL VOC, IJCV 88). Both count in the same units.
    """
    said, asked = box(answer), box(reference)
    if said is None or asked is None:
        return 0.0
    return min(1.0, iou(said, asked))


def lab_box(answer: str, reference: str) -> float:
    """The lab's own rule for its grounding questions: eight digits on its grid, right from an overlap
    of one half with the reference, "left,top,right,bottom" in pixels of its pictures.
    """
    truth = box(reference)
    if truth is None:
        return 0.0
    left, top, right, bottom = (round(edge) for edge in truth)
    return float(box_right(answer, (left, top, right, bottom)))
