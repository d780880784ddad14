"""Plans against all tokens on the same samples: controls always beside, tests that a plain count
repeats, evidence kept.
"""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from scipy.stats import binomtest

from foveate.core.errors import InputError, UnknownMethodError, UnsupportedError
from foveate.core.plan import Plan
from foveate.engine.engine import Engine
from foveate.engine.request import Answer, KeptSegment
from foveate.lab import samples
from foveate.lab.evaluate import Cell, Row
from foveate.lab.evidence import evidence_tokens
from foveate.lab.judge import judge
from foveate.lab.paired import FULL, Comparison, Entry, Run, compare, line_up, questions, share_of
from foveate.lab.reader import ask
from foveate.lab.seen import evidence_share
from foveate.lab.tables import answers, as_dict, conclusions, line, markdown, notes, refusals
from tests.models.tiny_processors import save_folder
from tests.support import tiny

QUARTER = "visionzip:keep=1/4"


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Engine:
    folder = save_folder("llava", tiny.make_model("llava"), tmp_path_factory.mktemp("model"))
    return Engine.from_pretrained(folder)


def _names(found: Comparison, role: str) -> list[str]:
    return [e.name for e in found.entries if e.role == role]


# --- who takes part ------------------------------------------------------------------------------
def test_the_controls_stand_beside_every_plan_once(engine: Engine) -> None:
    plans = [QUARTER, "divprune:keep=1/4", "random:keep=1/4", "divprune:keep=1/2;seed=7", QUARTER]
    found = compare(engine, plans, ["shape"], n=2, max_new_tokens=2)
    assert _names(found, "full") == [FULL]
    assert _names(found, "plan") == plans[:4]
    assert _names(found, "control") == [
        "pool:keep=1/4", "downscale:keep=1/4",
        "random:keep=1/2;seed=7", "pool:keep=1/2;seed=7", "downscale:keep=1/2;seed=7",
    ]  # fmt: skip
    by_name = {e.name: e for e in found.entries}
    assert by_name["pool:keep=1/4"].controls == [QUARTER, "divprune:keep=1/4", "random:keep=1/4"]
    assert by_name["random:keep=1/4"].controls == [QUARTER, "divprune:keep=1/4"]
    assert not [e for e in found.entries if e.error is not None and e.role != "control"]


def test_a_plan_without_a_share_of_its_own_is_measured(engine: Engine) -> None:
    """4 of the 16 tokens: the controls get the share that the plan turned out to keep."""
    assert share_of(Plan.parse("divprune:per_image=4")) is None
    assert share_of(Plan.parse("prumerge")) is None  # adaptive
    assert share_of(Plan.parse("downscale:side=56+divprune:keep=1/2")) is None
    assert share_of(Plan.parse("divprune:keep=1/4")) == Fraction(1, 4)
    found = compare(engine, ["divprune:per_image=4"], ["which"], n=2, max_new_tokens=2)
    assert _names(found, "control")[:2] == ["random:keep=1/4", "pool:keep=1/4"]


def test_answers_are_those_of_the_engine(engine: Engine) -> None:
    found = compare(engine, [QUARTER], ["which", "count"], n=3, max_new_tokens=3)
    for cell in found.cells:
        for entry in found.entries:
            if entry.error is not None:
                continue
            direct = [ask(engine, [s], entry.plan, max_new_tokens=3)[0] for s in found.tested(cell)]
            run = found.runs[entry.name, cell]
            assert run.texts == tuple(a.text for a in direct)
            assert run.right == tuple(
                a.text == s.answer for a, s in zip(direct, found.tested(cell), strict=True)
            )
            assert run.tokens_kept == tuple(
                a.report.visual_tokens_kept for a in direct if a.report is not None
            )


def test_progress_ends_at_the_number_announced(engine: Engine) -> None:
    done: list[int] = []
    plans = [QUARTER, "divprune:keep=1/4"]
    compare(engine, plans, ["shape", "code"], n=2, max_new_tokens=1, progress=done.append)
    assert sum(done) == questions(2, 2, 2) == 2 * 2 * (1 + 2 * 4)


def test_a_plan_that_cannot_be_served_is_an_entry_with_its_reason(engine: Engine) -> None:
    found = compare(engine, ["dycoke:keep=1/4", QUARTER], ["shape"], n=2, max_new_tokens=1)
    entry = next(e for e in found.entries if e.name.startswith("dycoke"))
    assert "video" in str(entry.error)
    assert "video" in refusals(found)[0]
    assert not [e for e in found.entries if entry.name in e.controls]
    assert as_dict(found, judge(found))["runs"][1]["error"]["type"] == "UnsupportedError"


def test_nothing_is_evaluated_when_no_plan_can_be_served(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []
    whole = Engine.generate

    def spy(self: Engine, requests: Sequence[Any], *rest: Any, **options: Any) -> list[Answer]:
        asked.append(len(requests))
        return whole(self, requests, *rest, **options)

    monkeypatch.setattr(Engine, "generate", spy)
    with pytest.raises(UnsupportedError):
        compare(engine, ["cdpruner-clip:keep=1/4"], ["shape"], n=20)
    assert asked == [1]


@pytest.mark.parametrize(
    ("plan", "error", "words"),
    [
        ("none", InputError, "drops nothing"),
        ("visionzp:keep=1/4", UnknownMethodError, "did you mean visionzip"),
        ("visionzip:keep=2", ValueError, "out of range"),
    ],
)
def test_wrong_plans(plan: str, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        line_up([plan])


# --- what follows from the answers ---------------------------------------------------------------
def _comparison(verdicts: dict[str, dict[str, list[bool]]]) -> Comparison:
    """A comparison with given verdicts by run and family; the second run is the plan, the third its
    control.
    """
    full, plan, control = verdicts
    entries = [
        Entry(full, Plan(), "full"),
        Entry(plan, Plan.parse(QUARTER), "plan"),
        Entry(control, Plan.parse("random:keep=1/4"), "control", [plan]),
    ]
    cells = [Cell(name, "coarse", 0) for name in verdicts[full]]
    n = len(verdicts[full][cells[0].family])
    found = Comparison("tiny", False, cells, n, "test", 0, entries)
    for entry in entries:
        for cell in cells:
            right = tuple(verdicts[entry.name][cell.family])
            row = Row(
                cell.family, cell.group, 0, n, sum(right), sum(right) / n, 0, 1, 0.5, None, None
            )
            texts = tuple("yes" if r else "no" for r in right)
            kept = (4,) * n if entry.role != "full" else (16,) * n
            found.runs[entry.name, cell] = Run(row, texts, right, (0.5,) * n, (16,) * n, kept)
            found.priors[cell] = 0.5
    return found


VERDICTS = st.integers(3, 12).flatmap(
    lambda n: st.lists(st.lists(st.booleans(), min_size=n, max_size=n), min_size=6, max_size=6)
)


@given(VERDICTS)
def test_tests_agree_with_a_plain_count(lists: list[list[bool]]) -> None:
    runs = {
        name: {"shape": lists[2 * i], "count": lists[2 * i + 1]}
        for i, name in enumerate((FULL, "plan", "control"))
    }
    judged = judge(_comparison(runs))
    assert judged.tests == {"plan": 3, "control": 3}
    for name in ("plan", "control"):
        expected = []
        for families in (["shape"], ["count"], ["shape", "count"]):
            pairs = [
                pair for f in families for pair in zip(runs[FULL][f], runs[name][f], strict=True)
            ]
            b, c = pairs.count((True, False)), pairs.count((False, True))
            expected.append((b, c, binomtest(b, b + c).pvalue if b + c else 1.0))
        mine = [r.against_full for r in judged.lines() if r.entry.name == name]
        assert [(p.only_first, p.only_second) for p in mine if p] == [e[:2] for e in expected]
        assert [p.p for p in mine if p] == pytest.approx([e[2] for e in expected])
        # Holm, by its definition: the largest of the earlier steps' products, at most 1.
        ps = [e[2] for e in expected]
        ranked = sorted(ps)
        adjusted = [
            max(min(1.0, (3 - i) * ranked[i]) for i in range(ranked.index(p) + 1)) for p in ps
        ]
        assert [p.p_holm for p in mine if p] == pytest.approx(adjusted)
    pooled = [r.row.right for r in judged.pooled]
    assert pooled == [sum(map(sum, runs[name].values())) for name in runs]


def test_a_clear_loss_is_called_significant_and_a_small_one_is_not() -> None:
    right = [True] * 40
    lost = [False] * 12 + [True] * 28
    slight = [False] * 2 + [True] * 38
    found = _comparison(
        {
            FULL: {"code": right, "shape": right},
            QUARTER: {"code": lost, "shape": slight},
            "random:keep=1/4": {"code": [False] * 40, "shape": lost},
        }
    )
    judged = judge(found)
    code, shape = (r for r in judged.results if r.entry.role == "plan")
    assert code.against_full is not None and shape.against_full is not None
    assert code.against_full.significant and not shape.against_full.significant
    assert code.against_full.difference == pytest.approx(-0.3)
    assert code.agreement == pytest.approx(28 / 40)
    (said, beside) = conclusions(judged)
    assert said.startswith(f"{QUARTER} against all tokens, significant: code -0.30 (p")
    assert "shape" not in said
    # The plan kept 66 right and the control 28 of 80.
    assert "random:keep=1/4 +0.47 (p < .001, significant)" in beside
    assert "-0.30 *" in line(found, code) and "-0.05" in line(found, shape)
    text = markdown(found, judged)
    assert "95 % Wilson intervals" in text and "Holm over the 3 comparisons of the plans" in text
    data = as_dict(found, judged)
    assert data["rows"][1]["against_full"]["significant"] is True
    assert data["against_controls"][0]["only_plan"] == 38


def test_no_difference_is_not_called_equality() -> None:
    same = {"shape": [True, False, True]}
    judged = judge(_comparison({FULL: same, QUARTER: same, "random:keep=1/4": same}))
    assert "does not show that it equals all tokens" in conclusions(judged)[0]
    assert judged.pooled == []


def test_a_cell_that_failed_is_left_out_and_named() -> None:
    right = {"shape": [True] * 4, "which": [True] * 4}
    found = _comparison({FULL: right, QUARTER: right, "random:keep=1/4": right})
    cell = found.cells[1]
    del found.runs[QUARTER, cell]
    found.errors[QUARTER, cell] = InputError("takes one picture")
    judged = judge(found)
    assert [r.cell.title for r in judged.results if r.entry.name == QUARTER] == ["shape"]
    assert judged.pooled == []  # one cell is left that every run answered
    assert refusals(found) == [f"{QUARTER} on which: takes one picture"]
    assert as_dict(found, judged)["errors"][0]["family"] == "which"


def test_every_answer_is_written_down(engine: Engine) -> None:
    found = compare(engine, [QUARTER], ["count", "sum"], n=2, max_new_tokens=2)
    rows = answers(found)
    assert [r["family"] for r in rows] == ["count", "count", "sum", "sum"]
    assert [r["question"] for r in rows[:2]] == [s.question for s in samples("count", "test", 2)]
    assert rows[0]["answers"][FULL] == found.runs[FULL, found.cells[0]].texts[0]
    assert any("blind prior" in text.lower() for text in notes(found, judge(found)))


# --- evidence ------------------------------------------------------------------------------------
def test_evidence_of_the_whole_and_of_a_pick(engine: Engine) -> None:
    for sample in [*samples("which", "test", 2), *samples("bar", "test", 2)]:
        processor = engine.processor.image_processor
        (full,), (part,) = (ask(engine, [sample], p, max_new_tokens=1) for p in ("none", QUARTER))
        assert evidence_share(sample, full, processor) == 1.0
        masks = []
        for number, image in enumerate(sample.images):
            boxes = [b for b, i in zip(sample.boxes, sample.box_images, strict=True) if i == number]
            masks.append(evidence_tokens(boxes, image.size, (4, 4)))
        hit = sum(m[s.anchors].sum() for m, s in zip(masks, part.kept, strict=True))
        assert evidence_share(sample, part, processor) == hit / sum(m.sum() for m in masks)


def _answer(full: Answer, *segments: KeptSegment) -> Answer:
    return Answer("", report=full.report, kept=segments)


def test_evidence_that_cannot_be_told_is_none(engine: Engine) -> None:
    (sample,) = samples("shape", "test", 1)
    (full,) = ask(engine, [sample], max_new_tokens=1)
    every = np.arange(16)
    whole = KeptSegment(0, "image", (1, 4, 4), 16, every)
    assert evidence_share(sample, _answer(full, whole), None) == 1.0
    half = [KeptSegment(0, "tile", (1, 4, 4), 16, every), whole]
    listed = KeptSegment(0, "image", (1, 1, 16), 16, every)
    for segments in ([], half, half[:1], [listed]):
        assert evidence_share(sample, _answer(full, *segments), None) is None
    assert evidence_share(sample, Answer("", error=InputError("x")), None) is None


def test_evidence_outside_the_field_of_view_does_not_count(engine: Engine, tmp_path: Path) -> None:
    """A picture twice as wide as high, of which the encoder sees the middle half."""

    class Cropping:
        do_center_crop = do_resize = True
        crop_size = {"width": 64, "height": 64}  # noqa: RUF012
        size = {"shortest_edge": 64}  # noqa: RUF012

    (drawn,) = samples("shape", "test", 1)
    (full,) = ask(engine, [drawn], max_new_tokens=1)

    def share(box: tuple[int, int, int, int], kept: list[int]) -> float | None:
        wide = (Image.new("RGB", (128, 64)),)
        sample = type(drawn)(**{**vars(drawn), "images": wide, "boxes": (box,), "box_images": (0,)})
        segment = KeptSegment(0, "image", (1, 4, 4), 16, np.array(kept))
        return evidence_share(sample, _answer(full, segment), Cropping())

    assert share((0, 0, 16, 16), [0]) is None
    assert share((32, 0, 48, 16), [0]) == 1.0
    assert share((32, 0, 48, 16), [1]) == 0.0
    assert share((16, 0, 64, 16), [0]) == 0.5  # seen from 32 on: tokens 0 and 1
