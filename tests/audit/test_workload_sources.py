"""Workloads from Parquet, folders saved by `datasets`, logs, the lab and easy-VQA."""

from __future__ import annotations

import base64
import io
import json
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from foveate.audit.metrics import LOYALTY, score
from foveate.audit.records import Item
from foveate.audit.workload import load_workload
from foveate.audit.workload_pictures import png
from foveate.core.errors import InputError, MissingExtraError, SettingError
from foveate.lab import samples
from foveate.lab.evaluate import MAX_NEW_TOKENS

datasets = pytest.importorskip("datasets")


def encoded(colour: Any, kind: str = "PNG") -> bytes:
    out = io.BytesIO()
    Image.new("RGB", (9, 7), colour).save(out, kind)
    return out.getvalue()


COLOURS = ("red", "green", "blue")


def table(answers: list[Any], **columns: list[Any]) -> Any:
    held = [{"bytes": encoded(c), "path": None} for c in COLOURS]
    rows = {"image": held, "question": ["a", "b", "c"], "answers": answers, **columns}
    return datasets.Dataset.from_dict(rows).cast_column("image", datasets.Image())


def by_question(items: tuple[Item, ...]) -> dict[str, Item]:
    return {item.question: item for item in items}


@pytest.fixture
def jsonl(tmp_path: Path) -> Path:
    return tmp_path / "rows.jsonl"


def written(path: Path, rows: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


# --- datasets ------------------------------------------------------------------------------------
def test_jsonl_parquet_and_saved_folders_are_one_workload(tmp_path: Path, jsonl: Path) -> None:
    made = table([["x"], ["y", "z"], ["2020-01-01"]])
    made.to_parquet(tmp_path / "rows.parquet")
    made.save_to_disk(tmp_path / "saved")
    datasets.DatasetDict(test=made, dev=made.select([0])).save_to_disk(tmp_path / "splits")
    rows = []
    for one in made.cast_column("image", datasets.Image(decode=False)):
        address = "data:image/png;base64," + base64.b64encode(one["image"]["bytes"]).decode()
        rows.append({**one, "image": address})
    hashes = {
        load_workload(source).hash
        for source in (
            written(jsonl, rows),
            str(tmp_path / "rows.parquet"),
            str(tmp_path / "saved"),
            f"{tmp_path}/splits#test",
        )
    }
    assert len(hashes) == 1
    found = by_question(load_workload(str(tmp_path / "saved")).items)
    assert found["b"].references == ("y", "z")
    assert found["a"].pictures[0].data == encoded("red")
    assert load_workload(f"{tmp_path}/splits#dev").name == "splits#dev"


def test_plain_tables_and_lists_of_pictures(tmp_path: Path) -> None:
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame(
        {
            "images": [[encoded("red"), encoded("blue", "JPEG")], [encoded("green")]],
            "prompt": ["a", "b"],
            "answer": [3.0, 2.5],
            "category": [None, "c"],
            "max_new_tokens": [4.0, float("nan")],
        }
    )
    frame.to_parquet(tmp_path / "rows.parquet")
    found = by_question(load_workload(str(tmp_path / "rows.parquet")).items)
    assert [p.mime for p in found["a"].pictures] == ["image/png", "image/jpeg"]
    assert (found["a"].references, found["b"].references) == (("3",), ("2.5",))
    assert (found["a"].category, found["b"].category) == ("uncategorised", "c")
    assert (found["a"].max_new_tokens, found["b"].max_new_tokens) == (4, 64)


def test_bad_rows_of_a_table_are_named(tmp_path: Path) -> None:
    path = str(tmp_path / "rows.parquet")
    table([["x"], [], None]).to_parquet(path)
    with pytest.raises(InputError, match=r"rows 2, 3: no reference answer, while"):
        load_workload(path)
    held = [{"bytes": b"no picture", "path": None}, None, {"bytes": None, "path": "gone.png"}]
    datasets.Dataset.from_dict({"image": held, "question": list("abc")}).to_parquet(path)
    with pytest.raises(InputError, match=r"row 2: no picture.*row 3: .*gone.png.*missing"):
        load_workload(path)


def test_dates_of_a_table_are_refused_rather_than_rewritten(tmp_path: Path) -> None:
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame(
        {
            "image": [encoded("red")],
            "question": ["when ?"],
            "answer": pandas.to_datetime(["2020-01-01"]),
        }
    )
    frame.to_parquet(tmp_path / "rows.parquet")
    with pytest.raises(
        InputError, match="row 1: the answer is no text or number but .*(date|Time)"
    ):
        load_workload(str(tmp_path / "rows.parquet"))


def test_folders_and_files_that_are_no_data_set(tmp_path: Path) -> None:
    (tmp_path / "junk.parquet").write_bytes(b"PAR1 and nothing else")
    with pytest.raises(InputError, match="no Parquet file"):
        load_workload(str(tmp_path / "junk.parquet"))
    with pytest.raises(InputError, match="was not saved by datasets"):
        load_workload(str(tmp_path))
    made = table([["x"], ["y"], ["z"]])
    datasets.DatasetDict(test=made, dev=made).save_to_disk(tmp_path / "splits")
    for source in (f"{tmp_path}/splits", f"{tmp_path}/splits#train"):
        with pytest.raises(InputError, match=r"splits test, dev; name one as .*splits#test"):
            load_workload(source)
    made.save_to_disk(tmp_path / "plain")
    with pytest.raises(InputError, match="has no splits"):
        load_workload(f"{tmp_path}/plain#test")


def test_reading_a_table_leaves_nothing_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    table([["x"], ["y"], ["z"]]).to_parquet(tmp_path / "rows.parquet")
    before = sorted(tmp_path.rglob("*"))
    load_workload(str(tmp_path / "rows.parquet"))
    assert sorted(tmp_path.rglob("*")) == before


def test_json_lines_do_not_need_datasets(
    jsonl: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    address = "data:image/png;base64," + base64.b64encode(encoded("red")).decode()
    assert load_workload(written(jsonl, [{"image": address, "question": "a", "answer": "b"}]))
    (tmp_path / "rows.parquet").write_bytes(b"")
    with pytest.raises(MissingExtraError, match=r"foveate\[audit\]"):
        load_workload(str(tmp_path / "rows.parquet"))


def test_the_workload_is_imported_without_datasets_or_torch() -> None:
    code = (
        "import sys, foveate.audit.workload, foveate.audit.judge\n"
        "print([m for m in ('datasets', 'torch', 'pyarrow', 'transformers') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


# --- logs ----------------------------------------------------------------------------------------
def logged(question: str, **fields: Any) -> dict[str, Any]:
    address = "data:image/png;base64," + base64.b64encode(encoded("red")).decode()
    content = [
        {"type": "image_url", "image_url": {"url": address}},
        {"type": "text", "text": question},
    ]
    return {"messages": [{"role": "user", "content": content}], **fields}


def test_logs_become_items_without_references(jsonl: Path) -> None:
    wrapped = logged("c", max_completion_tokens=9, model="m", temperature=0)
    rows = [
        logged("a", response={"choices": []}, max_tokens=5),
        {"custom_id": "r2", "method": "POST", "body": logged("b")},
        {"id": 7, "request": wrapped, "response": "said"},
    ]
    rows[1]["body"]["messages"].insert(0, {"role": "system", "content": "be brief"})
    rows[1]["body"]["messages"].append({"role": "assistant", "content": "said"})
    found = load_workload(written(jsonl, rows))
    items = by_question(found.items)
    assert set(items) == {"a", "be brief\n\nb", "c"}
    assert {item.metric for item in items.values()} == {LOYALTY}
    assert items["a"].max_new_tokens == 5
    assert items["c"].max_new_tokens == 9
    assert items["be brief\n\nb"].id == "r2"
    assert items["c"].id == "7"
    assert all(item.pictures[0].data == encoded("red") for item in items.values())
    notes = " | ".join(found.notes)
    assert "loyalty" in notes
    assert "system message stands before the question in 1 rows" in notes
    assert "fields that were not used: method, model, temperature" in notes


def test_logs_may_bring_references(jsonl: Path) -> None:
    found = load_workload(written(jsonl, [logged("a", answer="red", metric="contains")]))
    assert (found.items[0].metric, found.items[0].references) == ("contains", ("red",))


@pytest.mark.parametrize(
    ("messages", "reason"),
    [
        ([], "has no messages"),
        ([{"content": "x"}], 'has no "role"'),
        ([{"role": "user", "content": "x"}], "no picture"),
        ([{"role": "user", "content": [{"type": "input_audio"}]}], "'input_audio'"),
        (
            [{"role": r, "content": "x"} for r in ("user", "assistant", "user")],
            "has the turns: user, assistant, user",
        ),
        ([{"role": "assistant", "content": "x"}], "has the turns: none"),
        ([{"role": "user", "content": 5}], "no text but int"),
        (
            [
                {"role": "system", "content": [{"type": "image_url", "image_url": "a.png"}]},
                {"role": "user", "content": "x"},
            ],
            "a system message of the log holds a picture",
        ),
    ],
)
def test_logs_that_are_no_single_question_are_named(
    jsonl: Path, messages: list[Any], reason: str
) -> None:
    rows = [logged("a"), {"messages": messages}]
    with pytest.raises(InputError, match=rf"line 2: .*({reason})"):
        load_workload(written(jsonl, rows))


# --- the lab and easy-VQA ------------------------------------------------------------------------
def test_lab_tasks_are_those_of_lab_eval() -> None:
    found = load_workload("lab:bar,code@hard,ground", limit=9, seed=5)
    assert Counter(i.category for i in found.items) == {"bar": 3, "code@hard": 3, "ground": 3}
    items = {item.id: item for item in found.items}
    for at, drawn in enumerate(samples("code", "test", 3, 5, 2)):
        item = items[f"code@hard/test/5/{at}"]
        assert (item.question, item.references) == (drawn.question, (drawn.answer,))
        assert (item.metric, item.max_new_tokens) == ("verbatim", MAX_NEW_TOKENS)
        with Image.open(io.BytesIO(item.pictures[0].data)) as sent:
            assert np.array_equal(np.asarray(sent), np.asarray(drawn.image))
    box = samples("ground", "test", 1, 5)[0]
    item = items["ground/test/5/0"]
    assert item.metric == "lab-box"
    assert score(item.metric, box.answer, item.references) == 1
    assert found.hash == load_workload("lab:bar,code@hard,ground", limit=9, seed=5).hash


def test_lab_splits_levels_and_several_pictures() -> None:
    found = load_workload("lab:needle#dev", limit=2)
    assert found.name == "lab:needle#dev"
    assert len(found.items[0].pictures) == len(samples("needle", "dev")[0].images) > 1
    assert load_workload("lab:bar@1", limit=1).name == "lab:bar@medium"
    every = load_workload("lab", limit=40)
    assert len(every.items) == 40
    assert "easyvqa" not in {item.category for item in every.items}


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("lab:bars", "did you mean bar"),
        ("lab:bar@4", "unknown level '4'"),
        ("lab:shape@hard", "family shape has no level 'hard'; it has easy"),
        ("lab:bar,bar", "named twice"),
        ("lab:bar#val", "unknown split 'val'"),
        ("easyvqa#val", "unknown split 'val'"),
    ],
)
def test_unknown_tasks_are_named(source: str, reason: str) -> None:
    with pytest.raises(SettingError, match=reason):
        load_workload(source, limit=1)


def test_easyvqa_keeps_its_pictures_and_categories() -> None:
    easy_vqa = pytest.importorskip("easy_vqa")
    found = load_workload("easyvqa", limit=100, seed=2)
    assert set(Counter(i.category for i in found.items)) == {"yes-no", "shape", "colour"}
    assert found.notes[-1] == "100 of 9673 drawn by seed 2, by category"
    item = found.items[0]
    number = int(item.id.split("/")[2])
    path = easy_vqa.get_test_image_paths()[number]
    assert item.pictures[0].data == Path(path).read_bytes()
    answers = zip(*easy_vqa.get_test_questions(), strict=True)
    assert item.references[0] in [answer for _, answer, n in answers if n == number]


@pytest.mark.parametrize("size", [(1, 1), (3, 200), (256, 256)])
def test_stored_png_holds_the_same_pixels(size: tuple[int, int]) -> None:
    drawn = Image.effect_noise(size, 90).convert("RGB")
    with Image.open(io.BytesIO(png(drawn))) as back:
        back.verify()
    with Image.open(io.BytesIO(png(drawn))) as back:
        assert (back.mode, back.size) == ("RGB", size)
        assert back.tobytes() == drawn.tobytes()
