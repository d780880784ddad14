"""Workloads from files: what is read, refused with the rows named, left out, drawn and hashed."""

from __future__ import annotations

import base64
import io
import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from foveate.audit.metrics import LOYALTY
from foveate.audit.workload import Workload, load_workload, sample
from foveate.audit.workload_pictures import mime_of
from foveate.core.errors import InputError, SettingError


def encoded(kind: str = "PNG", colour: Any = (200, 30, 30), mode: str = "RGB") -> bytes:
    out = io.BytesIO()
    Image.new(mode, (9, 7), colour).save(out, kind)
    return out.getvalue()


def data_address(data: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(data).decode()


RED = data_address(encoded())


def written(path: Path, rows: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def row(number: int, **fields: Any) -> dict[str, Any]:
    return {"image": RED, "question": f"question {number}", "answer": str(number)} | fields


@pytest.fixture
def jsonl(tmp_path: Path) -> Path:
    return tmp_path / "rows.jsonl"


def test_a_row_in_full(jsonl: Path) -> None:
    (jsonl.parent / "pictures").mkdir()
    (jsonl.parent / "pictures" / "a.jpg").write_bytes(encoded("JPEG"))
    rows = [
        {
            "id": "first",
            "images": ["pictures/a.jpg", RED],
            "question": "what is the total ?",
            "answers": ["12", "twelve"],
            "metric": "anls",
            "category": "documents",
            "max_new_tokens": 7,
        }
    ]
    found = load_workload(written(jsonl, rows))
    (item,) = found.items
    assert (item.id, item.question, item.references) == (
        "first",
        "what is the total ?",
        ("12", "twelve"),
    )
    assert (item.metric, item.category, item.max_new_tokens) == ("anls", "documents", 7)
    assert [p.mime for p in item.pictures] == ["image/jpeg", "image/png"]
    assert item.pictures[0].data == encoded("JPEG")  # as it is: nothing is encoded again
    assert (found.name, found.notes) == ("rows.jsonl", ())


def test_one_row_is_a_workload(jsonl: Path) -> None:
    found = load_workload(written(jsonl, [row(1)]))
    (item,) = found.items
    assert (item.id, item.metric, item.references) == ("1", "exact", ("1",))
    assert (item.category, item.max_new_tokens) == ("uncategorised", 64)
    asked = load_workload(written(jsonl, [row(1)]), limit=5, max_new_tokens=9)
    assert asked.items[0].max_new_tokens == 9
    assert asked.notes == ("5 were asked for; there are 1",)


def test_answers_stay_as_they_are_written(jsonl: Path) -> None:
    lines = ['"2020-01-01"', "1.10", "12", "1e3", '["x", 3, "x"]', '"2020-01-01T10:00:00Z"']
    jsonl.write_text(
        "".join(
            f'{{"image": "{RED}", "question": "{i}", "answer": {a}}}\n' for i, a in enumerate(lines)
        )
    )
    found = {item.question: item.references for item in load_workload(str(jsonl)).items}
    wanted = ["2020-01-01"], ["1.10"], ["12"], ["1e3"], ["x", "3"], ["2020-01-01T10:00:00Z"]
    assert [found[str(i)] for i in range(6)] == [tuple(w) for w in wanted]


# --- references ----------------------------------------------------------------------------------
def test_references_that_some_rows_lack_are_refused_with_these_rows(jsonl: Path) -> None:
    rows = [row(n) for n in range(1, 7)]
    del rows[1]["answer"]
    rows[4]["answer"] = "  "
    with pytest.raises(InputError, match=r"2 of 6 rows.*lines 2, 5: no reference.*metric loyalty"):
        load_workload(written(jsonl, rows))
    found = load_workload(str(jsonl), metric="loyalty")
    assert {item.metric for item in found.items} == {LOYALTY}
    assert {item.references for item in found.items} == {()}
    rows[1]["metric"] = rows[4]["metric"] = "loyalty"  # the rows may say so themselves
    found = load_workload(written(jsonl, rows))
    assert Counter(item.metric for item in found.items) == {"exact": 4, LOYALTY: 2}
    assert any("2 of 6 rows ask for loyalty" in note for note in found.notes)


def test_rows_without_any_reference_are_scored_by_loyalty(jsonl: Path) -> None:
    rows = [row(n, answer=None) for n in range(3)]
    found = load_workload(written(jsonl, rows))
    assert {item.metric for item in found.items} == {LOYALTY}
    assert any("loyalty" in note for note in found.notes)
    with pytest.raises(InputError, match=r"lines 1, 2, 3: no reference answer \("):
        load_workload(written(jsonl, rows), metric="anls")
    judged = load_workload(str(jsonl), metric="judge")
    assert {item.metric for item in judged.items} == {"judge"}


def test_a_metric_in_place_of_the_rows_own(jsonl: Path) -> None:
    source = written(jsonl, [row(1, metric="anls"), row(2)])
    found = load_workload(source, metric="contains")
    assert {item.metric for item in found.items} == {"contains"}
    assert found.notes == ("metric contains stands in place of the rows' own in 1 rows",)
    with pytest.raises(InputError, match=r"lines? 1.*reference '1' is no box"):
        load_workload(source, metric="iou")
    boxes = written(jsonl, [row(1, answer="1,2,3,4", metric="iou")])
    with pytest.raises(InputError, match="line 1: its reference is a box"):
        load_workload(boxes, metric="exact")
    assert load_workload(boxes).items[0].metric == "iou"
    with pytest.raises(SettingError, match="did you mean anls"):
        load_workload(source, metric="anl")


# --- bad rows ------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"image": None}, "no picture"),
        ({"image": []}, "no picture"),
        ({"image": ""}, "a picture cannot be empty"),
        ({"image": "missing.png"}, "missing.png.*is missing"),
        ({"image": "."}, "is a folder"),
        ({"image": "~nobody/a.png"}, "is missing"),
        ({"image": "a\0b"}, "cannot be read"),
        ({"image": 3}, "a picture cannot be int"),
        ({"image": "http://example.org/a.png"}, "is an address"),
        ({"image": "data:image/png,abc"}, "must read data:image"),
        ({"image": "data:image/png;base64,@@"}, "not valid base64"),
        ({"image": data_address(b"no picture")}, "is no picture"),
        ({"image": data_address(encoded()[:50])}, "damaged|no picture"),
        ({"question": None}, "no question"),
        ({"question": " "}, "the question is empty"),
        ({"question": 5}, "the question is no text but int"),
        ({"answer": True}, "the answer is True; write the text"),
        ({"answer": {"text": "x"}}, "the answer is no text or number but dict"),
        ({"answer": "\ud800"}, "lone surrogate"),
        ({"metric": "acc"}, "unknown metric 'acc'"),
        ({"metric": "iou", "answer": "3,3,1,9"}, "no box"),
        ({"metric": 1}, "the metric is no text"),
        ({"category": "all"}, "the name of the total"),
        ({"max_new_tokens": 0}, "from 1 on"),
        ({"max_new_tokens": True}, "from 1 on"),
        ({"id": [1]}, "the id is no text"),
    ],
)
def test_bad_rows_are_named(jsonl: Path, fields: dict[str, Any], reason: str) -> None:
    rows = [row(1), row(2, **fields), row(3), row(4, **fields)]
    with pytest.raises(InputError, match=rf"2 of 4 rows.*lines 2, 4: .*({reason})"):
        load_workload(written(jsonl, rows))


def test_many_bad_rows_do_not_fill_the_screen(jsonl: Path) -> None:
    rows = [row(n, image=f"gone/{n}.png") for n in range(500)]
    with pytest.raises(InputError) as found:
        load_workload(written(jsonl, rows))
    assert "500 of 500 rows" in str(found.value)
    assert "and 490 more faults" in str(found.value)
    assert len(str(found.value)) < 4000


def test_ids_must_differ(jsonl: Path) -> None:
    source = written(jsonl, [row(1, id="a"), row(2), row(3, id="a"), row(4, id="2")])
    with pytest.raises(
        InputError, match=r"line 3: the id 'a' is that of line 1; line 4: the id '2' is.*line 2"
    ):
        load_workload(source)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b'{"image": 1}\n{oops\n[1]\n', "line 2 is no JSON.*line 3 is no object but list"),
        (b'[{"image": 1}]', "is one JSON list"),
        (b'{"question": "caf\xe9"}\n', r"line 1 is not UTF-8 \(byte 0xe9 at place 18\)"),
        (b"\xff\xfe{\x00\x00", "begins as UTF-16"),
        (b"", "has no rows"),
        (b"\n\n", "has no rows"),
        (b"\x00\x01\x02\n", "line 1 is no JSON"),
    ],
)
def test_broken_files(jsonl: Path, content: bytes, reason: str) -> None:
    jsonl.write_bytes(content)
    with pytest.raises((InputError, SettingError), match=reason):
        load_workload(str(jsonl))


def test_one_line_in_another_encoding_is_named_and_not_guessed(jsonl: Path) -> None:
    good, bad = (json.dumps(row(n, answer="café"), ensure_ascii=False) for n in (1, 2))
    jsonl.write_bytes(good.encode() + b"\n\n" + bad.encode("latin-1") + b"\n" + good.encode())
    with pytest.raises(InputError, match="line 3 is not UTF-8 .*save the file as UTF-8"):
        load_workload(str(jsonl))


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_encodings_with_a_mark_and_line_ends_read_alike(
    jsonl: Path, encoding: str, end: str
) -> None:
    lines = [json.dumps(row(n, answer="café\u2028x"), ensure_ascii=False) for n in (1, 2)]
    jsonl.write_bytes((end.join(lines) + end).encode(encoding))
    found = load_workload(str(jsonl))
    assert {item.references for item in found.items} == {("café\u2028x",)}
    jsonl.write_text("\n".join(lines), encoding="utf-8")
    assert load_workload(str(jsonl)).hash == found.hash


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("", "no workload is named"),
        ("missing.jsonl", "no workload at"),
        ("x" * 5000, "no workload|cannot be read"),
        ("a\0b", "no workload|cannot be read"),
    ],
)
def test_sources_that_are_not_there(source: str, reason: str) -> None:
    with pytest.raises(InputError, match=reason):
        load_workload(source)


def test_settings_are_checked_first(jsonl: Path) -> None:
    for wrong in ({"limit": 0}, {"seed": -1}, {"max_new_tokens": 0}):
        with pytest.raises(SettingError, match=next(iter(wrong))):
            load_workload("missing.jsonl", **wrong)  # type: ignore[arg-type]
    (jsonl.parent / "rows.csv").write_text("a,b")
    with pytest.raises(InputError, match="must end in .jsonl or .parquet"):
        load_workload(str(jsonl.parent / "rows.csv"))


def test_fields_that_are_not_used_are_noted(jsonl: Path) -> None:
    found = load_workload(written(jsonl, [row(1, referance="x", answer=None), row(2, answer=None)]))
    assert found.notes[0] == "fields that were not used: referance"


# --- pictures ------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("kind", "mode", "colour", "mime"),
    [
        ("JPEG", "RGB", (1, 2, 3), "image/jpeg"),
        ("JPEG", "L", 77, "image/jpeg"),
        ("PNG", "L", 77, "image/png"),
        ("PNG", "RGBA", (1, 2, 3, 0), "image/png"),
        ("PNG", "I;16", 4000, "image/png"),
        ("WEBP", "RGB", (1, 2, 3), "image/webp"),
        ("GIF", "P", 3, "image/gif"),
    ],
)
def test_common_pictures_leave_as_they_came(
    jsonl: Path, kind: str, mode: str, colour: Any, mime: str
) -> None:
    data = encoded(kind, colour, mode)
    (jsonl.parent / "wrong-name.txt").write_bytes(data)
    found = load_workload(written(jsonl, [row(1, image="wrong-name.txt")]))
    picture = found.items[0].pictures[0]
    assert (picture.mime, picture.data) == (mime, data)


@pytest.mark.parametrize("kind", ["BMP", "TIFF", "PPM"])
def test_other_pictures_leave_as_png_with_a_note(jsonl: Path, kind: str) -> None:
    drawn = Image.effect_noise((150, 170), 80).convert("RGB")  # more than one stored block
    drawn.save(jsonl.parent / "a.bin", kind)
    found = load_workload(written(jsonl, [row(1, image="a.bin"), row(2, image="a.bin")]))
    first, second = (item.pictures[0] for item in found.items)
    assert first.mime == "image/png" and first is second
    with Image.open(io.BytesIO(first.data)) as back:
        assert back.format == "PNG"
        assert back.convert("RGB").tobytes() == drawn.tobytes()
    assert any(note.startswith("1 pictures are sent as PNG") for note in found.notes)


# --- repetitions, sampling, hash -------------------------------------------------------------------
def test_repetitions_are_left_out_and_counted(jsonl: Path) -> None:
    (jsonl.parent / "same.png").write_bytes(encoded())
    other = data_address(encoded(colour=(0, 0, 9)))
    rows = [
        row(1),
        row(1, image="same.png", id="again"),  # the same bytes by another way
        row(1, answer="2"),
        row(1, image=other),
        row(1, images=[other]),
        row(1, category="c"),
    ]
    found = load_workload(written(jsonl, rows))
    assert sorted(item.id for item in found.items) == ["1", "3", "4", "5"]
    assert found.notes[-1].startswith("2 of 6 rows repeat")


@given(
    categories=st.lists(st.sampled_from("abc"), min_size=1, max_size=60),
    limit=st.integers(1, 70),
    seed=st.integers(0, 2**70),
)
def test_a_sample_is_a_fair_share_of_every_category(
    categories: list[str], limit: int, seed: int
) -> None:
    found = sample(categories, limit, seed)
    assert found == sample(categories, limit, seed)
    assert len(found) == len(set(found)) == min(limit, len(categories))
    sizes, drawn = Counter(categories), Counter(categories[place] for place in found)
    for name, size in sizes.items():
        exact = len(found) * size / len(categories)
        assert abs(drawn[name] - exact) < 1
    whole = sample(categories, None, seed)
    assert sorted(whole) == list(range(len(categories)))
    assert [place for place in whole if place in set(found)] == found


def test_every_row_is_drawn_as_often() -> None:
    drawn = Counter(place for seed in range(2000) for place in sample(["a"] * 10, 3, seed))
    assert all(abs(drawn[place] - 600) < 5 * (2000 * 0.3 * 0.7) ** 0.5 for place in range(10))
    first = Counter(sample(["a"] * 10, None, seed)[0] for seed in range(2000))
    assert all(abs(first[place] - 200) < 5 * (2000 * 0.1 * 0.9) ** 0.5 for place in range(10))


def test_a_sample_says_so_and_depends_on_the_seed(jsonl: Path) -> None:
    source = written(jsonl, [row(n, category="ab"[n % 2]) for n in range(40)])
    small = load_workload(source, limit=10, seed=3)
    assert Counter(item.category for item in small.items) == {"a": 5, "b": 5}
    assert small.notes == ("10 of 40 drawn by seed 3, by category",)
    assert small.hash == load_workload(source, limit=10, seed=3).hash
    assert small.hash != load_workload(source, limit=10, seed=4).hash


def test_the_hash_covers_what_is_asked_and_how_it_is_scored(jsonl: Path) -> None:
    def found(**fields: Any) -> Workload:
        return load_workload(written(jsonl, [row(1, **fields), row(2)]))

    base = found()
    assert len(base.hash) == 64
    changes: list[dict[str, Any]] = [
        {"question": "q"}, {"answer": "q"}, {"answers": ["q"]}, {"metric": "f1"}, {"id": "q"},
        {"category": "q"}, {"max_new_tokens": 5}, {"image": data_address(encoded(colour=1))},
    ]  # fmt: skip
    hashes = [found(**change).hash for change in changes]
    assert len({base.hash, *hashes}) == 1 + len(changes)
    moved = jsonl.parent / "elsewhere.jsonl"
    assert load_workload(written(moved, [row(1, unused=1), row(2)])).hash == base.hash
    turned = Workload(base.items[::-1], base.name)
    assert turned.hash != base.hash


def test_the_hash_is_the_same_on_every_machine(jsonl: Path) -> None:
    # A picture as bytes, so that no encoder's version has a say.
    pixel = (
        "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJg"
        "gg=="
    )
    rows = [
        row(n, image=f"data:image/png;base64,{pixel}", answer="café", category="c")
        for n in range(3)
    ]
    assert load_workload(written(jsonl, rows)).hash == (
        "8eb12b8423d88faef70d1d55c931ac1c81936f659cef172deaf757bfca349645"
    )


def test_nan_is_a_missing_value(jsonl: Path) -> None:
    lines = [row(1, answer=float("nan"), category=float("nan"), max_new_tokens=float("nan"))]
    item = load_workload(written(jsonl, lines)).items[0]
    assert (item.metric, item.category, item.max_new_tokens) == (LOYALTY, "uncategorised", 64)


def test_types_are_told_by_the_first_bytes() -> None:
    assert mime_of(b"GIF87a..") == mime_of(b"GIF89a..") == "image/gif"
    assert mime_of(b"RIFF....WAVE") is None
    assert mime_of(b"BM....") is None
