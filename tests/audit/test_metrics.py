"""Metrics of the auditor against plain computations of their definitions, and cases by hand."""

from __future__ import annotations

import re
from functools import cache

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from foveate.audit.metric_values import box, number
from foveate.audit.metric_words import edit_distance, normalise
from foveate.audit.metrics import JUDGED, LOYALTY, METRICS, agree, binary, check_metric, score
from foveate.core.errors import SettingError
from foveate.lab import samples
from foveate.lab.score import is_right
from foveate.lab.words import BOX_CELLS, SIDE

WORDS = st.text(alphabet="aAbc .,-$%'019é\u4eac\u2212\t", max_size=14)
ANY = st.text(max_size=30)
BOXES = st.tuples(*[st.integers(0, 60)] * 2, *[st.integers(1, 60)] * 2).map(
    lambda b: (b[0], b[1], b[0] + b[2], b[1] + b[3])
)


def reference_for(metric: str, text: str) -> str:
    return "1,2,8,9" if METRICS[metric].fault(text) else text


@pytest.mark.parametrize("metric", METRICS)
@given(answer=WORDS | ANY, reference=WORDS | ANY)
def test_a_score_lies_in_0_to_1(metric: str, answer: str, reference: str) -> None:
    found = score(metric, answer, [reference_for(metric, reference)])
    assert 0 <= found <= 1
    assert not binary(metric) or found in (0, 1)


@pytest.mark.parametrize("metric", sorted(set(METRICS) - {"lab-box"}))
@given(text=WORDS | ANY)
def test_the_reference_itself_scores_1(metric: str, text: str) -> None:
    text = reference_for(metric, text)
    assert score(metric, text, [text]) == 1
    assert score(metric, f" {text}\n", [text]) == 1


@pytest.mark.parametrize("metric", METRICS)
@given(answer=WORDS, references=st.lists(WORDS, min_size=1, max_size=4), turned=st.randoms())
def test_the_best_reference_counts(metric: str, answer: str, references: list[str], turned) -> None:
    references = [reference_for(metric, r) for r in references]
    found = score(metric, answer, references)
    assert found == max(score(metric, answer, [r]) for r in references)
    turned.shuffle(references)
    assert found == score(metric, answer, references)


@given(text=ANY | WORDS)
def test_the_normal_form_is_final(text: str) -> None:
    assert normalise(normalise(text)) == normalise(text)


@pytest.mark.parametrize(
    ("a", "b"),
    [
        ("The Red Circle.", "red circle"),
        ("two", "2"),
        ("None", "0"),
        ("don't know", "dont know"),
        ("1,000", "1000"),
        ("A", "a"),
        ("it is  10:30!", "It is 10:30"),
        ("ＦＵＬＬ", "full"),
        ("Straße", "STRASSE"),
        ("\u22125", "-5"),
    ],
)
def test_alike(a: str, b: str) -> None:
    assert agree(a, b) == agree(b, a) == score("exact", a, [b]) == 1


@pytest.mark.parametrize(
    ("a", "b"),
    [
        ("A", "B"),
        ("a", "the"),  # all articles: an option letter, or no answer at all
        ("", "a"),
        ("-5", "5"),
        ("1.5", "15"),
        (".5", "5"),
        ("1,5", "15"),
        ("12", "1 2"),
        ("?", "!"),
        ("red", "red circle"),
    ],
)
def test_not_alike(a: str, b: str) -> None:
    assert agree(a, b) == agree(b, a) == score("exact", a, [b]) == 0


@pytest.mark.parametrize(
    ("answer", "reference", "right"),
    [
        ("The total is 12 euros.", "12", 1),
        ("The total is 112 euros", "12", 0),
        ("The total is -12", "12", 0),
        ("1.12 kg", "12", 0),
        ("a red ring", "red", 1),
        ("a redder ring", "red", 0),
        ("shiring", "ring", 0),
        ("two rings or a ring", "the ring", 1),  # a later place counts as well
        ("答案是北京市", "北京", 1),
        ("Tiếng Việt", "Vi", 0),
        ("", "red", 0),
    ],
)
def test_contains_whole_words(answer: str, reference: str, right: int) -> None:
    assert score("contains", answer, [reference]) == right


@pytest.mark.parametrize(
    ("answer", "reference", "right"),
    [
        ("105", "100", 1),
        ("105.0001", "100", 0),
        ("95", "100", 1),
        ("94.99", "100", 0),
        ("1.05", "1", 1),  # exact arithmetic: 1.05 - 1 is above 0.05 in floating point
        ("-95", "-100", 1),
        ("95", "-100", 0),
        ("0.0", "0", 1),
        ("0.001", "0", 0),
        ("$1,049", "1000", 1),
        ("5%", "0.05", 1),
        ("5%", "5", 0),
        ("12.", "12", 1),
        ("Red.", "red", 1),
        ("12 apples", "12", 0),
        ("nan", "nan", 1),
        ("inf", "100", 0),
        ("1" * 5000, "100", 0),
        ("2010", "2019", 1),  # the rule takes years as numbers
    ],
)
def test_relaxed(answer: str, reference: str, right: int) -> None:
    assert score("relaxed", answer, [reference]) == right


@given(asked=st.integers(-(10**6), 10**6), said=st.integers(-(10**6), 10**6))
def test_relaxed_is_its_formula(asked: int, said: int) -> None:
    plain = 20 * abs(said - asked) <= abs(asked)
    assert score("relaxed", str(said), [str(asked)]) == plain
    assert score("relaxed", f"{said:,}", [str(asked)]) == plain


@given(value=st.decimals(-(10**9), 10**9, places=3))
def test_numbers_are_read_exactly(value) -> None:
    found = number(f" {value} ")
    assert found is not None
    assert found * 1000 == int(value * 1000)


def plain_distance(a: str, b: str) -> int:
    """The recursive definition of Levenshtein's distance."""

    @cache
    def d(i: int, j: int) -> int:
        if i == 0 or j == 0:
            return i + j
        return min(d(i - 1, j) + 1, d(i, j - 1) + 1, d(i - 1, j - 1) + (a[i - 1] != b[j - 1]))

    return d(len(a), len(b))


SHORT = st.text(alphabet="abC é", max_size=9)


@given(a=SHORT, b=SHORT)
def test_edit_distance_is_its_definition(a: str, b: str) -> None:
    assert edit_distance(a, b) == edit_distance(b, a) == plain_distance(a, b)


@given(a=SHORT, b=SHORT)
def test_anls_is_its_formula(a: str, b: str) -> None:
    x, y = (" ".join(t.lower().split()) for t in (a, b))
    share = plain_distance(x, y) / max(len(x), len(y)) if x or y else 0.0
    assert score("anls", a, [b]) == pytest.approx(1 - share if share < 0.5 else 0.0)


def test_anls_by_hand() -> None:
    assert score("anls", "Coca Cola", ["coca-cola"]) == pytest.approx(8 / 9)
    assert score("anls", "abcd", ["abxy"]) == 0  # half of it is wrong, which is too much
    assert score("anls", "abcde", ["abcxy"]) == pytest.approx(3 / 5)
    assert score("anls", "x" * 100_000, ["red"]) == 0
    assert score("anls", "reed", ["blue", "red"]) == pytest.approx(3 / 4)


@given(
    said=st.lists(st.sampled_from(["red", "green", "blue", "12"]), max_size=6),
    asked=st.lists(st.sampled_from(["red", "green", "blue", "12"]), min_size=1, max_size=6),
)
def test_f1_is_precision_and_recall(said: list[str], asked: list[str]) -> None:
    left, shared = list(asked), 0
    for word in said:
        if word in left:
            left.remove(word)
            shared += 1
    precision, recall = shared / max(1, len(said)), shared / len(asked)
    plain = 2 * precision * recall / (precision + recall) if shared else 0.0
    assert score("f1", "The " + " ".join(said), [" ".join(asked)]) == pytest.approx(
        plain if said else 0.0
    )


@given(a=BOXES, b=BOXES)
def test_iou_counts_cells(a: tuple[int, ...], b: tuple[int, ...]) -> None:
    """Whole-numbered boxes as sets of unit cells on a raster."""
    rows, columns = np.mgrid[:121, :121]

    def cells(one: tuple[int, ...]):
        return (columns >= one[0]) & (columns < one[2]) & (rows >= one[1]) & (rows < one[3])

    plain = (cells(a) & cells(b)).sum() / (cells(a) | cells(b)).sum()
    texts = (",".join(map(str, one)) for one in (a, b))
    assert score("iou", next(texts), [next(texts)]) == pytest.approx(plain)


@pytest.mark.parametrize(
    "text",
    [
        "1,2,8,9",
        "[1, 2, 8, 9]",
        "(1,2),(8,9)",
        "the box is 1.0 2 8 9.",
        '{"bbox_2d": [1, 2, 8, 9]}',
    ],
)
def test_boxes_are_found(text: str) -> None:
    assert box(text) == (1, 2, 8, 9)


@pytest.mark.parametrize("text", ["", "red", "1,2,8", "8,2,1,9", "1,2,1,9", f"0,0,1,{'9' * 400}"])
def test_no_box_scores_0(text: str) -> None:
    assert box(text) is None
    assert score("iou", text, ["1,2,8,9"]) == 0


def test_lab_metrics_are_the_lab_s_rule() -> None:
    rng = np.random.default_rng(0)
    seen = set()
    for drawn in samples("ground", n=40):
        truth = ",".join(map(str, drawn.boxes[0]))
        edges = [round(edge * BOX_CELLS / SIDE) for edge in drawn.boxes[0]]
        for shift in (0, 1, 2, 6):
            said = "".join(f"{max(0, e + int(rng.integers(-shift, shift + 1))):02d}" for e in edges)
            right = is_right(drawn, said)
            seen.add(right)
            assert score("lab-box", said, [truth]) == right
    assert seen == {True, False}
    drawn = samples("code", n=1)[0]
    for said in (drawn.answer, f" {drawn.answer}\n", drawn.answer.lower(), drawn.answer + "."):
        assert score("verbatim", said, [drawn.answer]) == is_right(drawn, said)


def test_what_text_does_not_tell_is_refused() -> None:
    with pytest.raises(SettingError, match="did you mean anls"):
        score("anl", "a", ["a"])
    for name in (LOYALTY, JUDGED):
        assert check_metric(name) is None
        with pytest.raises(SettingError, match="cannot be computed"):
            score(name, "a", ["a"])
    with pytest.raises(SettingError, match="at least one reference"):
        score("exact", "a", [])
    assert binary(LOYALTY)
    assert not binary(JUDGED)
    assert not binary("anls")


def test_every_metric_names_its_source() -> None:
    for metric in METRICS.values():
        assert metric.summary and metric.source
        assert re.fullmatch(r"[a-z0-9-]+", metric.name)
