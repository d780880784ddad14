"""The closed world of the lab: which colours, shapes, keys and characters occur, and how questions
are normalised.
"""

from __future__ import annotations

SIDE = 112
"""Width and height of every lab picture, in pixels."""

COLOURS = ("red", "green", "blue", "yellow", "orange", "purple", "black", "pink")
SHAPES = ("circle", "square", "triangle", "star", "cross", "ring")
KEYS = (
    "name", "date", "total", "tax", "room", "seat", "gate", "year",
    "age", "size", "rate", "item", "page", "time", "zone", "unit",
)  # fmt: skip
SIGNS = ("open", "exit", "sale", "stop", "taxi", "milk", "hotel", "bank")
WORDS = KEYS + SIGNS
"""Words that can be written large or stand as the key of a form row."""

DIGITS = "0123456789"
CODE_CHARS = "ABCDEFGHJKLMNPRSTUVWXYZ23456789"
"""Characters of a code: those that look alike in some font (0 O Q, 1 I) are left out."""

LOWER = "abcdefghijklmnopqrstuvwxyz"
GLYPHS = CODE_CHARS + "01" + LOWER + ":"
PLACES = ("top", "bottom", "left", "right")
MAX_BAR = 19
MAX_OBJECTS = 6
BOX_CELLS = 28
"""A box is answered in this many cells a side, two digits an edge: left, top, right, bottom."""

NOTES = ("bigger", "smaller", "nearest")
"""Words that a dense label may say of a thing or a number beside what is drawn."""

OUTSIDE_SHAPES = ("rectangle",)
OUTSIDE_COLOURS = ("gray", "teal", "brown")
SHAPE_LABELS = SHAPES + OUTSIDE_SHAPES
COLOUR_LABELS = COLOURS + OUTSIDE_COLOURS
"""Classes of the dense labels: what the lab draws, then what only outside data shows."""

ORDINALS = ("first", "second", "third", "fourth")
"""Names of the pictures of a request; with more than four pictures, of its quarters."""

KINDS = (
    "shapes", "bars", "print", "form", "page",
    "scene", "line", "table", "numbers", "album", "frames", "easyvqa",
)  # fmt: skip
"""Kinds of picture. A page is reading practice for the vision tower: it has no questions. An album
and frames are several pictures.
"""

SEVERAL = ("album", "frames")

PHRASES = (
    "what shape is red", "what colour is the circle", "how many objects", "how many are red",
    "how many of shape circle", "is there a red circle", "where is red", "is red left of blue",
    "how high is the bar in red", "what is the code", "what word is written", "what is the date",
    "what shape is nearest to x", "where is the box of the red circle", "is there no red circle",
    "which is not there red or blue", "how high is the point in red", "what is the tax of gate",
    "what is the bigger number", "which picture has a red circle", "what changed",
    "what is the sum of each total", "when did red appear", "what shape appeared first",
    "what colour appeared last", "what colour appeared after red", "what shape is in the picture",
    "does the picture contain a circle", "is a red shape present",
)  # fmt: skip
ANSWERS = ("yes", "no", "place", "nothing")


def normalise(question: str) -> str:
    """A question as the model reads it: lower case, no question mark, no blanks at the ends.

    The chat template of lab-nano does the same, so "Where is red?" and "where is red" are one
    question.
    """
    return question.lower().replace("?", "").strip()


def vocabulary() -> list[str]:
    """Every lower-case word of questions and answers; the tokenizer gives each one entry."""
    words = {w for phrase in PHRASES for w in phrase.split()}
    words.update(COLOUR_LABELS, SHAPE_LABELS, WORDS, PLACES, ANSWERS, NOTES, ORDINALS)
    return sorted(words)


def quarter(index: int, count: int) -> str:
    """The name of picture `index` among `count`: its ordinal, or that of its quarter above four."""
    return ORDINALS[index * len(ORDINALS) // count if count > len(ORDINALS) else index]
