"""The plan's option `newlines`: tokens that carry layout stay with their row, or all of them do."""

from __future__ import annotations

import hashlib
import json
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

# What needs these packages is imported behind the question whether they are here.
import foveate  # noqa: E402
from foveate.core.errors import SettingError  # noqa: E402
from foveate.core.plan import Plan  # noqa: E402
from tests.support import tiny  # noqa: E402


def report(plan: str) -> tuple[Any, Any]:
    model = tiny.make_model("llava_next")
    pictures = tiny.image_inputs("llava_next")
    inputs = {**tiny.prompt("llava_next", model, pictures), **pictures}
    with foveate.attach(model, plan) as state, torch.no_grad():
        model(**inputs)
    assert state.last is not None
    return state.last.rows[0], state.last.kwargs["input_ids"]


def test_all_newlines_stay_where_the_plan_says_so() -> None:
    few, _ = report("fastervlm:per_image=3")
    row, ids = report("fastervlm:per_image=3;newlines=all")
    fixed = sum(p.fixed for p in row.placed)
    assert sum(r.fixed_kept for r in few.reports) < fixed
    assert sum(r.fixed_kept for r in row.reports) == fixed
    assert ids.shape[1] == row.text_tokens + row.visual_kept + fixed
    assert [r.anchor.tolist() for r in row.reductions] == [
        r.anchor.tolist() for r in few.reductions
    ]


def test_the_option_is_part_of_text_mapping_and_hash_but_not_of_older_hashes() -> None:
    text = "visionzip:keep=1/4;newlines=all"
    plan = Plan.parse(text)
    assert str(plan) == text and Plan.from_json(plan.to_json()) == plan
    older = Plan.parse("none")
    full = {"methods": [], "positions": "auto", "seed": 0, "question_turn": -1}
    known = hashlib.sha256(json.dumps(full, sort_keys=True).encode()).hexdigest()[:16]
    assert older.hash == known
    assert len({older.hash, *(Plan.parse(f";newlines={n}").hash for n in ("rows", "all"))}) == 3
    with pytest.raises(SettingError, match="newlines"):
        Plan.parse("none;newlines=some")
