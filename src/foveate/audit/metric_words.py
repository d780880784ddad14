"""Comparing short texts: normal form, word overlap, edit distance. Pure functions without libraries.

The normal form follows the evaluation of VQA (Antol et al. 2015, arXiv:1505.00468: case, articles,
punctuation and number words do not count). It differs where the original loses answers:
what would be left empty keeps its articles ("A" as an option letter) or its signs ("?"), a minus sign
before a number stays, and instead of a list of contractions, apostrophes inside words do not count.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter

ARTICLES = frozenset({"a", "an", "the"})
NUMBER_WORDS = {
    word: str(number)
    for number, word in enumerate(
        ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
    )
} | {"none": "0"}

_APOSTROPHES = re.compile(r"(?<=\w)['\u2019\u02bc](?=\w)")
_THOUSANDS = re.compile(r"(?<=\d),(?=\d{3}(?!\d))")
# What stays of the signs: a point or a colon between digits, a point or a minus before a number.
_STAYS = re.compile(r"(?<=\d)[.:](?=\d)|(?<!\w)\.(?=\d)|(?<!\w)[-\u2212](?=\.?\d)")
UNSPACED = (
    (0x0E00, 0x10A0),
    (0x1780, 0x1800),
    (0x2E80, 0xD800),
    (0xF900, 0xFB00),
    (0x20000, 0x40000),
)
"""Ranges of Unicode whose scripts are written without blanks between words, from Thai to Chinese, or
with endings attached (Korean).
"""


def normalise(text: str) -> str:
    """The text in lower case, without signs and articles, number words as digits, single blanks."""
    folded = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold())
    plain = _without_signs(_THOUSANDS.sub("", _APOSTROPHES.sub("", folded)))
    found = [NUMBER_WORDS.get(word, word) for word in plain.split()]
    kept = [word for word in found if word not in ARTICLES]
    return " ".join(kept or found or folded.split())


def _without_signs(text: str) -> str:
    """Punctuation and symbols (Unicode categories P and S) as blanks, but for what carries a value."""
    stays = {match.start() for match in _STAYS.finditer(text)}
    out = []
    for at, char in enumerate(text):
        if at in stays:
            out.append("-" if char == "\u2212" else char)
        else:
            out.append(" " if unicodedata.category(char)[0] in "PS" else char)
    return "".join(out)


def holds(text: str, part: str) -> bool:
    """Whether a normalised text holds a normalised part as whole words. Scripts without blanks
    between words have no borders to look at; there any place counts.
    """
    if not part:
        return not text
    at = text.find(part)
    while at >= 0:
        end = at + len(part)
        cut = at > 0 and _one_word(text[at - 1], text[at])
        cut = cut or (end < len(text) and _one_word(text[end - 1], text[end]))
        if not cut:
            return True
        at = text.find(part, at + 1)
    return False


def _one_word(left: str, right: str) -> bool:
    """Whether two neighbouring characters belong to one word or number."""
    return not any(char.isspace() or _unspaced(char) for char in (left, right))


def _unspaced(char: str) -> bool:
    return any(first <= ord(char) < end for first, end in UNSPACED)


def word_f1(answer: str, reference: str) -> float:
    """F1 of the bags of words: 2 s / (a + b) with s shared of a and b words.

    Rajpurkar et al. 2016 (SQuAD, arXiv:1606.05250), on the normal form above.
    """
    said, asked = Counter(normalise(answer).split()), Counter(normalise(reference).split())
    if not said or not asked:
        return float(said == asked)
    return 2 * (said & asked).total() / (said.total() + asked.total())


def anls(answer: str, reference: str, threshold: float = 0.5) -> float:
    """Similarity 1 - d / max length, 0 where d / max length reaches the threshold; d is the edit
    distance of the texts in lower case with single blanks.

    Biten et al. 2019 (ST-VQA, arXiv:1905.13648, equation 1), for one pair.
    """
    said, asked = (" ".join(text.casefold().split()) for text in (answer, reference))
    longest = max(len(said), len(asked))
    if longest == 0:
        return 1.0
    if abs(len(said) - len(asked)) >= threshold * longest:
        return 0.0  # the distance is at least the difference in length
    share = edit_distance(said, asked) / longest
    return 1.0 - share if share < threshold else 0.0


def edit_distance(a: str, b: str) -> int:
    """Least number of insertions, deletions and replacements of one character (Levenshtein 1966).
    O(len(a) len(b)).
    """
    if len(a) < len(b):
        a, b = b, a
    above = list(range(len(b) + 1))
    for i, left in enumerate(a, 1):
        row = [i]
        for j, right in enumerate(b, 1):
            row.append(min(above[j] + 1, row[-1] + 1, above[j - 1] + (left != right)))
        above = row
    return above[-1]
