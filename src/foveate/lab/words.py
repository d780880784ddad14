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
KINDS = ("shapes", "bars", "print", "form", "page")
"""Kinds of picture. A page is reading practice for the vision tower: it has no questions."""

PHRASES = (
    "what shape is red", "what colour is the circle", "how many objects", "how many are red",
    "how many of shape circle", "is there a red circle", "where is red", "is red left of blue",
    "how high is the bar in red", "what is the code", "what word is written", "what is the date",
)  # fmt: skip
ANSWERS = ("yes", "no")


def normalise(question: str) -> str:
    """A question as the model reads it: lower case, no question mark, no blanks at the ends.

    The chat template of lab-nano does the same, so "Where is red?" and "where is red" are one
    question.
    """
    return question.lower().replace("?", "").strip()


def vocabulary() -> list[str]:
    """Every lower-case word of questions and answers; the tokenizer gives each one entry."""
    words = {w for phrase in PHRASES for w in phrase.split()}
    words.update(COLOURS, SHAPES, WORDS, PLACES, ANSWERS)
    return sorted(words)
