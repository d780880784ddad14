"""The report's parts: what is escaped, which questions are shown, what the charts are made of."""

from __future__ import annotations

import base64
import importlib
import io
import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import pytest
from hypothesis import given

pytest.importorskip("plotly", reason="the charts of the report")
pytest.importorskip("pyarrow", reason="the rows of an audit")

from PIL import Image

from foveate.audit.records import Item, Picture
from foveate.audit.report import write_report
from foveate.audit.report_data import Audit
from foveate.audit.report_examples import examples
from foveate.audit.report_html import Estimate, Html, html, number, spread
from foveate.audit.report_load import STEPS, steps
from foveate.audit.report_quality import undominated
from foveate.audit.tables import read_rows
from foveate.audit.workload import Workload, load_workload
from foveate.core.errors import InputError, MissingExtraError
from tests.support.audited import PLANS, Planted, audited

SMALL = (PLANS[0], PLANS[2], PLANS[8])


class Texts(HTMLParser):
    """Tags and text of a page as a browser's parser sees them."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.text = ""
        self.feed(page)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)

    def handle_data(self, data: str) -> None:
        self.text += data


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    found = tmp_path_factory.mktemp("report") / "out"
    audited(found, SMALL, count=48, loads=("closed:1", "closed:4"), blocks=3)
    return found


@pytest.fixture(scope="module")
def audit(folder: Path) -> Audit:
    receipt = json.loads((folder / "receipt.json").read_text(encoding="utf-8"))
    return Audit(receipt, read_rows(folder / "rows.parquet"))


@given(st.text(alphabet=st.characters(exclude_categories=("Cs", "Cc", "Cf"))))
def test_any_text_comes_out_of_the_markup_as_it_went_in(text: str) -> None:
    page = html('<p title="{0}">{0}</p>', text)
    found = Texts(page)
    assert found.tags == ["p"] and found.text == text
    assert html("{}", Html("<b>")) == "<b>"


@pytest.mark.parametrize(
    ("value", "unit", "text"),
    [
        (None, "ms", "not measured"),
        (0, "", "0"),
        (12.345, "ms", "12.3 ms"),
        (1234.5, "ms", "1,234 ms"),
        (3 * 2**20, "bytes", "3.0 MiB"),
        (-0.0001, "points", "0.0 points"),
        (0.0525, "points", "5.2 points"),
        (1.2345, "times", "1.23 times"),
    ],
)
def test_figures_as_text(value: float | None, unit: str, text: str) -> None:
    assert number(value, unit) == text


def test_an_interval_without_an_end_says_so() -> None:
    assert spread(Estimate(5.0, 4.0, None), "ms") == "5 ms (4 to ?)"
    assert spread(Estimate(5.0), "ms") == "5 ms"
    assert spread(None) == "not measured"


@given(
    st.lists(st.tuples(st.integers(0, 8), st.integers(0, 8)), min_size=1, max_size=12),
    st.booleans(),
)
def test_the_frontier_is_what_no_other_point_beats(
    pairs: list[tuple[int, int]], less: bool
) -> None:
    points = [(str(i), Estimate(float(x)), Estimate(float(y))) for i, (x, y) in enumerate(pairs)]
    sign = -1 if less else 1
    worth = {name: (sign * x.estimate, y.estimate) for name, x, y in points}

    def beaten(name: str) -> bool:
        mine = worth[name]
        return any(o != mine and o[0] >= mine[0] and o[1] >= mine[1] for o in worth.values())

    best = {worth[name] for name, _, _ in undominated(points, less)}
    assert best == {worth[n] for n in worth if not beaten(n)}


@given(st.lists(st.floats(0.1, 1e4), min_size=1, max_size=900))
def test_a_thinned_distribution_lies_on_the_whole_one(times: list[float]) -> None:
    times.sort()
    xs, ys = steps(times)
    assert len(xs) == len(ys) <= STEPS + 1
    assert (xs[-1], ys[-1]) == (times[-1], 1.0) and xs[0] == times[0]
    tail = min(len(times), STEPS // 4)
    assert xs[-tail:] == times[-tail:]
    counts = [round(y * len(times)) for y in ys]
    assert counts == sorted(set(counts))
    assert [times[c - 1] for c in counts] == xs


def test_examples_show_every_candidate_that_differs_and_prefer_losses(audit: Audit) -> None:
    chosen, count = examples(audit, limit=4)
    again, _ = examples(Audit(audit.receipt, list(reversed(audit.rows))), limit=4)
    assert chosen == again
    assert 4 == len(chosen) <= count
    assert {t.arm for e in chosen for t in e.differing} == set(audit.candidates)
    for example in chosen:
        assert example.differing and all(t.text != example.baseline.text for t in example.differing)
        told = {t.arm for t in example.differing} | set(example.agreeing)
        assert told <= set(audit.candidates)
    every, total = examples(audit, limit=10_000)
    assert len(every) == total == count


def test_no_example_without_a_difference(tmp_path: Path) -> None:
    same = [Planted("baseline", wrong=-1), Planted("copy", wrong=-1)]
    audited(tmp_path, same, count=12, loads=("closed:4",), blocks=2)
    receipt = json.loads((tmp_path / "receipt.json").read_text(encoding="utf-8"))
    assert examples(Audit(receipt, read_rows(tmp_path / "rows.parquet"))) == ([], 0)
    page = write_report(tmp_path).read_text(encoding="utf-8")
    assert (
        "Every candidate answered all 12 questions as the baseline did" in page
        and 'id="chart-errors"' not in page
    )


def test_an_edited_receipt_is_called_out_on_top(folder: Path, tmp_path: Path) -> None:
    for file in folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    receipt = json.loads((tmp_path / "receipt.json").read_text(encoding="utf-8"))
    receipt["figures"]["arms"]["snapkv:keep=1/4"]["quality"]["all"]["score"] = 0.999
    (tmp_path / "receipt.json").write_text(json.dumps(receipt), encoding="utf-8")
    page = Texts(write_report(tmp_path).read_text(encoding="utf-8")).text
    assert "does not follow from its rows" in page
    assert "figures.arms.snapkv:keep=1/4.quality.all.score" in page
    honest = Texts(write_report(folder).read_text(encoding="utf-8")).text
    assert "does not follow" not in honest and "figures followed from the rows" in honest


def test_a_workload_that_is_gone_leaves_text_and_the_reason(folder: Path, tmp_path: Path) -> None:
    out = write_report(folder, tmp_path / "page.html")
    page = Texts(out.read_text(encoding="utf-8"))
    assert "Pictures are not shown: the workload cannot be loaded again" in page.text
    assert "img" not in page.tags and "score 0, worse than the baseline" in page.text


def test_other_pictures_under_the_same_ids_are_not_shown(tmp_path: Path) -> None:
    asked = audited(tmp_path, SMALL, count=24, loads=("closed:4",), blocks=2)
    other = tuple(replace(i, pictures=(Picture(b"other", "image/png"),)) for i in asked)
    page = Texts(write_report(tmp_path, None, Workload(other, "other")).read_text(encoding="utf-8"))
    assert "other pictures for this question" in page.text and "img" not in page.tags


def test_a_damaged_picture_is_replaced_by_the_reason(tmp_path: Path) -> None:
    broken = tuple(
        Item(f"q{i}", (Picture(b"no picture", "image/png"),), "what ?", ("x",), "exact", "c", 4)
        for i in range(12)
    )
    audited(tmp_path, SMALL[:2], loads=("closed:4",), blocks=2, asked=broken, bound_category=None)
    page = Texts(write_report(tmp_path, None, Workload(broken, "b")).read_text(encoding="utf-8"))
    assert "img" not in page.tags and "the picture bytes" in page.text


def test_the_figures_cannot_end_their_script(folder: Path) -> None:
    text = write_report(folder).read_text(encoding="utf-8")
    assert Texts(text).tags.count("script") == 3
    assert "default-src 'none'" in text and text.count("sha256-") == 2
    data = re.search(r'id="charts">(.*?)</script>', text, re.DOTALL)
    assert data is not None and "<" not in data[1]
    found = json.loads(data[1])
    assert len(found["charts"]) == Texts(text).tags.count("figure")


def test_without_plotly_the_extra_is_named(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = importlib.import_module

    def missing(name: str, *rest: Any) -> Any:
        if name.startswith("plotly"):
            raise ModuleNotFoundError("no", name="plotly")
        return real(name, *rest)

    monkeypatch.setattr(importlib, "import_module", missing)
    with pytest.raises(MissingExtraError, match=r"foveate\[audit\]"):
        write_report(folder)


def test_bad_places_are_refused(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="receipt"):
        write_report(tmp_path)
    with pytest.raises(InputError, match="cannot be written"):
        write_report(folder, tmp_path / "no" / "page.html")


@pytest.fixture(scope="module")
def lit(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A page of our engine under two plans, and of a model that is not here."""
    folder = tmp_path_factory.mktemp("engine")
    asked = load_workload("lab:shape", limit=2).items
    arms = (Planted("baseline", wrong=-1), Planted("half", wrong=9), Planted("away", wrong=9))
    plan = "visionzip:keep=1/4"
    specs = [
        {"name": "baseline", "model": "lab-nano"},
        {"name": "half", "model": "lab-nano", "plan": plan},
        {"name": "away", "model": "some/hub-model", "plan": plan},
    ]
    audited(
        folder,
        arms,
        loads=("closed:4",),
        blocks=1,
        asked=asked,
        arm_specs=specs,
        bound_category=None,
    )
    return write_report(folder, None, Workload(asked, "w")).read_text(encoding="utf-8")


def test_kept_patches_are_lit_where_our_engine_answered(lit: str) -> None:
    found = re.findall(r'<img alt="half: kept patches" src="data:image/jpeg;base64,([^"]+)"', lit)
    assert len(found) == 2
    for text in found:
        pixels = Image.open(io.BytesIO(base64.b64decode(text))).convert("RGB")
        amber = sum(
            n for n, (r, g, b) in pixels.getcolors(2**24) if r > 210 and 140 < g < 205 and b < 70
        )
        assert amber > 200, "no border around kept patches"
    # The planted answer is not the model's, and the page says what it answered this time.
    assert lit.count("49 of 196 tokens; answered") == 2


def test_a_model_that_is_not_here_is_not_fetched(lit: str) -> None:
    assert "some/hub-model is no folder on this machine" in lit
    assert 'alt="away: kept patches"' not in lit
