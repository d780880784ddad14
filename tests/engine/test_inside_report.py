"""What a plan inside the language model leaves in reports, answers and pictures."""

from __future__ import annotations

import numpy as np
import pytest

import foveate
from foveate.engine.draw import kept_picture
from foveate.engine.request import KeptSegment
from foveate.lab import demo_pictures, nano_path

STAIRS = "pyramiddrop:at=2 3 5"


@pytest.fixture(scope="module")
def engine() -> foveate.Engine:
    return foveate.Engine.from_pretrained(nano_path())


def _requests() -> list[foveate.Request]:
    return [foveate.Request(images=[d.image], question=d.question) for d in demo_pictures()][:2]


def test_a_drop_inside_is_no_identity(engine: foveate.Engine) -> None:
    """Tokens that entered and left later were once reported as "nothing was dropped"."""
    dropped, kept = (
        engine.generate(_requests()[:1], p)[0].report for p in (STAIRS, "fastv:keep=1")
    )
    assert dropped is not None and kept is not None
    assert not dropped.identity and not any("nothing was dropped" in n for n in dropped.notes)
    assert kept.identity and any("nothing was dropped" in n for n in kept.notes)
    assert dropped.visual_tokens_kept == dropped.visual_tokens_in == 196
    assert dropped.layers == (196, 196, 98, 49, 49, 25)
    assert dropped.tokens_by_layer == pytest.approx(613 / 6)
    assert kept.tokens_by_layer == 196


@pytest.mark.parametrize(
    "plan",
    ["snapkv:keep=1/4,window=8", "infinipot-v:keep=1/4", "hybridkv:keep=1/4,share=0",
     "look-m:entries=4", "random-kv:bytes=40000", "kivi:bits=2,residual=32", "calibquant:bits=8"],
)  # fmt: skip
def test_entries_that_left_the_cache_are_no_identity(engine: foveate.Engine, plan: str) -> None:
    """A cache policy or codec was once reported as "nothing was dropped", whatever it did."""
    for new in (1, 6):
        for answer in engine.generate(_requests(), plan, max_new_tokens=new):
            assert answer.report is not None and not answer.report.identity
            assert not any("nothing was dropped" in n for n in answer.report.notes)


@pytest.mark.parametrize("plan", ["snapkv:keep=1", "hybridkv:entries=500", "infinipot-v:keep=1"])
def test_a_cache_that_holds_everything_is_an_identity(engine: foveate.Engine, plan: str) -> None:
    for answer in engine.generate(_requests(), plan, max_new_tokens=6):
        assert answer.report is not None and answer.report.identity
        assert any("nothing was dropped" in n for n in answer.report.notes)


def test_an_overflow_while_answering_is_no_identity(engine: foveate.Engine) -> None:
    """The prompt fits; the answer brings each head to its capacity, and entries leave."""
    (plain,) = engine.generate(_requests()[:1], max_new_tokens=1)
    assert plain.report is not None
    n = plain.report.prompt_tokens
    plan = f"infinipot-v:entries={n + 1},capacity={n + 3}"
    for new in (3, 4, 12):  # n + new - 1 entries were written
        (answer,) = engine.generate(_requests()[:1], plan, max_new_tokens=new, min_new_tokens=new)
        assert answer.report is not None and answer.report.new_tokens == new
        assert answer.report.identity == (new == 3)


@pytest.mark.parametrize("plan", ["window-kv:entries=3", "infinipot-v:entries=3", STAIRS])
def test_a_request_without_pictures_says_why_nothing_left(
    engine: foveate.Engine, plan: str
) -> None:
    """A budget of 3 entries was once reported as at or above 25 tokens of text."""
    (answer,) = engine.generate([foveate.Request(question="what shape is red ?")], plan)
    assert answer.report is not None and answer.report.identity
    assert answer.report.notes == ("no visual tokens: nothing was dropped",)


def test_an_answer_says_which_tokens_went_deepest(engine: foveate.Engine) -> None:
    for answer in engine.generate(_requests(), f"divprune:keep=1/2+{STAIRS},ratios=1/2 1/4 1/8"):
        assert answer.report is not None and answer.report.layers == (98, 98, 49, 25, 25, 12)
        (segment,) = answer.kept
        assert segment.deep is not None and segment.deep.size == 12
        assert set(segment.deep) < set(segment.anchors) and segment.anchors.size == 98
    (last,) = engine.generate(_requests()[:1], "aim-pagerank")
    assert last.report is not None and last.report.layers == (196, 196, 196, 196, 98, 0)
    assert last.kept[0].deep is not None and last.kept[0].deep.size == 98
    (plain,) = engine.generate(_requests()[:1], "divprune:keep=1/2")
    assert plain.kept[0].deep is None


def test_the_picture_shows_what_went_deepest(engine: foveate.Engine) -> None:
    (answer,) = engine.generate(_requests()[:1], STAIRS)
    (segment,) = answer.kept
    picture = kept_picture(answer.pictures[0], [segment])
    t, h, w = segment.grid
    side = picture.width // w
    pixels = np.asarray(picture, np.float32)
    lit = np.zeros(h * w, bool)
    lit[segment.deep] = True
    whole = np.asarray(kept_picture(answer.pictures[0], [_all(segment)]), np.float32)
    for cell in range(h * w):
        y, x = (cell // w) * side + side // 2, (cell % w) * side + side // 2
        same = np.abs(pixels[y, x] - whole[y, x]).max() <= 1
        assert same == lit[cell]


def _all(segment: KeptSegment) -> KeptSegment:
    every = np.arange(segment.tokens)
    return KeptSegment(segment.image, segment.kind, segment.grid, segment.tokens, every)


def test_both_halves_of_a_paper_run_in_one_plan(engine: foveate.Engine) -> None:
    for plan, layers in (
        ("vscan:keep=1/6,shallow=1+vscan-lm:keep=1/3", (33, 33, 33, 11, 11, 11)),
        ("aim:keep=1/4+aim-pagerank", (49, 49, 49, 49, 24, 0)),
    ):
        (answer,) = engine.generate(_requests()[:1], plan)
        assert answer.report is not None and answer.report.layers == layers


def test_beams_are_counted_with_their_own_request(engine: foveate.Engine) -> None:
    asked = _requests()
    asked[1] = foveate.Request(images=[*asked[0].images, *asked[1].images], question="what shape ?")
    one, two = engine.generate(asked, STAIRS, num_beams=2)
    assert one.report is not None and two.report is not None
    assert one.report.layers == (196, 196, 98, 49, 49, 25)
    assert two.report.layers == (392, 392, 196, 98, 98, 49)
