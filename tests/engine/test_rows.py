"""Segments and questions of one row: prompt order, pictures and videos together, whose words count."""

from __future__ import annotations

import pytest
import torch

from foveate.core import Need, Plan
from foveate.core.errors import InputError, UnsupportedError
from foveate.core.registry import get
from foveate.engine.compress import compress
from foveate.engine.select import question_of
from foveate.models.adapter import adapter_for
from tests.support import tiny


def test_pictures_and_videos_stand_in_the_order_of_the_prompt() -> None:
    """A video before a picture, though pictures are encoded first: ordinals follow the prompt."""
    name = "qwen2_5_vl"
    model = tiny.make_model(name)
    image = tiny.split_images(name, tiny.image_inputs(name))[0]
    video = tiny.video_inputs(name)
    assert video is not None
    first = tiny.video_prompt(name, model, video)
    second = tiny.prompt(name, model, image)
    row = {
        k: torch.cat([first[k], second[k]], 1)
        for k in ("input_ids", "attention_mask", "mm_token_type_ids")
    }
    short = compress(adapter_for(model), Plan.parse("uniform:keep=1/2"), {**row, **image, **video})
    kinds = [s.kind for s in short.rows[0].segments]
    assert kinds == ["video", "image"]
    assert [s.ordinal for s in short.rows[0].segments] == [0, 1]
    assert [s.image for s in short.rows[0].segments] == [0, 1]
    starts = [int(p.at[0]) for p in short.rows[0].placed]
    assert starts == sorted(starts)
    logits = model(**short.kwargs, use_cache=False).logits
    assert torch.isfinite(logits).all() and logits.shape[1] == len(short.rows[0].index)


def test_the_question_is_the_words_after_the_last_picture() -> None:
    model = tiny.make_model("llava")
    adapter = adapter_for(model)
    method = get("trimtokenator-lc")(keep="1/2")  # type: ignore[call-arg]
    assert any(n.what == "question" for n in method.needs)
    ids = torch.tensor([5, 6, tiny.IMAGE, tiny.IMAGE, 7, 1, 8])
    after = question_of(adapter, method, ids, 3, frozenset({1}))
    assert after is not None and after.ids.tolist() == [7, 8]
    assert torch.equal(after.embeddings, model.get_input_embeddings()(after.ids))
    before = question_of(adapter, method, torch.tensor([5, 6, tiny.IMAGE]), 2, frozenset())
    assert before is not None and before.ids.tolist() == [5, 6]


def test_a_clip_tower_is_asked_for_by_name() -> None:
    model = tiny.make_model("llava")
    method = get("uniform")(keep="1/2")  # type: ignore[call-arg]
    object.__setattr__(method, "needs", frozenset({Need("clip")}))
    with pytest.raises(UnsupportedError, match="text tower"):
        question_of(adapter_for(model), method, torch.tensor([5]), -1, frozenset())


def test_a_text_tower_that_the_user_supplies_is_asked_once_a_request() -> None:
    model = tiny.make_model("llava")
    mm = tiny.split_images("llava", tiny.image_inputs("llava"))[0]
    row = tiny.prompt("llava", model, mm)
    asked: list[list[int]] = []

    def tower(ids: list[int]) -> torch.Tensor:
        asked.append(ids)
        return torch.randn(32, generator=torch.Generator().manual_seed(sum(ids)))

    plan = Plan.parse("cdpruner-clip:keep=1/2")
    one = compress(adapter_for(model), plan, {**row, **mm}, text_tower=tower)
    words = row["input_ids"][0]
    last = int((words == tiny.IMAGE).nonzero()[-1, 0])
    assert asked == [words[last + 1 :].tolist()]
    other = {**row, "input_ids": row["input_ids"].clone()}
    other["input_ids"][0, -1] = 9
    two = compress(adapter_for(model), plan, {**other, **mm}, text_tower=tower)
    assert one.rows[0].reductions[0].anchor.tolist() != two.rows[0].reductions[0].anchor.tolist()


@pytest.mark.parametrize("change", ["one more", "one less", "none"])
def test_placeholders_and_pictures_must_agree(change: str) -> None:
    model = tiny.make_model("llava")
    mm = tiny.split_images("llava", tiny.image_inputs("llava"))[0]
    row = tiny.prompt("llava", model, mm)
    ids = row["input_ids"].clone()
    where = (ids[0] == tiny.IMAGE).nonzero()[:, 0]
    if change == "one more":
        ids[0, -1] = tiny.IMAGE
    elif change == "one less":
        ids[0, where[-1]] = 7
    else:
        ids[0, where] = 7
    with pytest.raises(InputError, match="placeholders"):
        compress(
            adapter_for(model), Plan.parse("uniform:keep=1/2"), {**row, "input_ids": ids, **mm}
        )


def test_one_picture_may_not_span_two_rows() -> None:
    model = tiny.make_model("llava")
    mm = tiny.image_inputs("llava")
    n = 16
    ids = torch.tensor([[3] * 4 + [tiny.IMAGE] * (n - 1), [tiny.IMAGE] * (n + 1) + [3] * 2])
    with pytest.raises(InputError, match="two rows"):
        compress(adapter_for(model), Plan.parse("uniform:keep=1/2"), {"input_ids": ids, **mm})
