"""lmms-eval's chats and settings in the engine's words, and the model class over a double."""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
from PIL import Image

pytest.importorskip("transformers")

from foveate.audit.lmms import generation, request_of
from foveate.core.errors import (
    InputError,
    MediaError,
    PlanError,
    SettingError,
    UnknownMethodError,
    UnsupportedError,
)
from foveate.engine.engine import Engine
from foveate.engine.request import Request
from foveate.lab import nano_path, samples
from tests.support import lmms_double

PICTURE = Image.new("RGB", (8, 8))


def user(*parts: Any) -> dict[str, Any]:
    content = [
        {"type": "text", "text": part} if isinstance(part, str) else {"type": "image", "url": part}
        for part in parts
    ]
    return {"role": "user", "content": content}


# --- chats -----------------------------------------------------------------------------------------
def test_a_picture_and_a_question_become_a_request() -> None:
    other = Image.new("RGB", (4, 4))
    request = request_of([user(PICTURE, other, "what", "is it?")], system="short answers")
    assert request == Request(
        "what\nis it?", images=[PICTURE, other], videos=[], history=[], system="short answers"
    )


def test_earlier_turns_and_the_system_prompt_are_kept() -> None:
    chat = [
        {"role": "system", "content": "be brief"},
        {"role": "user", "content": "hello"},
        {"role": "assistant", "content": [{"type": "text", "text": "hi"}]},
        user(PICTURE, "and this?"),
    ]
    request = request_of(chat)
    assert request.system == "be brief" and request.question == "and this?"
    assert request.history == [
        {"role": "user", "content": "hello"},
        {"role": "assistant", "content": "hi"},
    ]


def test_words_before_a_picture_are_refused_unless_the_order_may_change() -> None:
    chat = [user("look at", PICTURE, "what is it?")]
    with pytest.raises(UnsupportedError, match="pictures_first=True"):
        request_of(chat)
    request = request_of(chat, pictures_first=True)
    assert request.images == [PICTURE] and request.question == "look at\nwhat is it?"
    assert request_of([user(" \n", PICTURE, "what?")]).images == [PICTURE]  # blanks are no words


@pytest.mark.parametrize(
    ("chat", "words"),
    [
        ([], "end with a user's turn"),
        ([user("a"), {"role": "assistant", "content": "b"}], "end with a user's turn"),
        ([user(PICTURE, "a"), {"role": "assistant", "content": "b"}, user("c")], "num_fewshot 0"),
        ([{"role": "user", "content": [{"type": "audio", "url": "x"}]}], "'audio' is not"),
        (
            [{"role": "user", "content": [{"type": "video", "url": "x", "start_time": 1.0}]}],
            "cut it first",
        ),
    ],
)
def test_what_the_engine_cannot_do_is_refused(chat: list[dict[str, Any]], words: str) -> None:
    with pytest.raises(UnsupportedError, match=words):
        request_of(chat)


# --- settings --------------------------------------------------------------------------------------
def test_a_task_without_settings_is_greedy_with_the_engines_bound() -> None:
    how = generation({})
    assert how.max_new_tokens == 64 and how.options == {"do_sample": False}
    assert how.until == () and how.ignored == ()


@pytest.mark.parametrize(
    ("settings", "options"),
    [
        ({"temperature": 0, "do_sample": True, "top_p": 0.9}, {"do_sample": False}),
        (
            {"temperature": 0.7, "top_p": 0.9},
            {"do_sample": True, "temperature": 0.7, "top_p": 0.9},
        ),
        ({"do_sample": True}, {"do_sample": True}),
        ({"num_beams": 2, "top_p": None}, {"do_sample": False, "num_beams": 2}),
    ],
)
def test_sampling_follows_the_temperature(
    settings: dict[str, Any], options: dict[str, Any]
) -> None:
    assert generation(settings).options == options


def test_an_answer_ends_before_the_first_stop() -> None:
    how = generation({"until": ["\n\n", "Q:"], "image_aspect_ratio": "original"})
    assert how.cut(" yes Q: more\n\n") == "yes" and how.cut(" no ") == "no"
    assert how.ignored == ("image_aspect_ratio",)
    assert generation({"until": "."}).cut("one. two") == "one"


@pytest.mark.parametrize(
    "settings",
    [{"max_new_tokens": 0}, {"max_new_tokens": True}, {"temperature": -1}, {"temperature": "hot"}],
)
def test_settings_out_of_range_are_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="out of range"):
        generation(settings)


# --- the class, over the double --------------------------------------------------------------------
@pytest.fixture
def model_class() -> Iterator[Any]:
    with pytest.MonkeyPatch.context() as patch:
        lmms_double.install(patch)
        lmms_double.logged.clear()
        from foveate.audit.lmms_model import FoveateModel

        yield FoveateModel


def instances(model: Any, tested: list[Any], settings: list[dict[str, Any]]) -> list[Any]:
    """Requests as lmms-eval builds them: documents by number, a function from document to chat."""
    model.task_dict["lab"] = {"test": tested}

    def chat(sample: Any) -> list[dict[str, Any]]:
        return [user(*sample.images, sample.question)]

    return [
        SimpleNamespace(args=("", chat, how, i, "lab", "test"))
        for i, how in zip(range(len(tested)), settings, strict=True)
    ]


def test_answers_are_the_engines_in_the_order_of_the_requests(model_class: Any) -> None:
    plan = "random:keep=1/4+fastv:layer=2,keep=1/2"
    model = model_class("lab-nano", plan=f'"{plan}"', batch_size="3", max_batch_size=None)
    tested = samples("form", "test", 5, 0, 0)
    short, long = {"max_new_tokens": 1}, {"max_new_tokens": 8, "until": ["\n"]}
    found = model.generate_until(instances(model, tested, [long, short, long, short, long]))
    asked = [Request(s.question, images=list(s.images)) for s in tested]
    engine = Engine.from_pretrained(nano_path())
    for i, result in enumerate(found):
        bound = 1 if i % 2 else 8
        (answer,) = engine.generate([asked[i]], plan, max_new_tokens=bound)
        assert answer.report is not None and result.text == answer.text
        assert result.token_counts.input_tokens == answer.report.prompt_tokens
        assert result.token_counts.output_tokens == len(answer.token_ids) <= bound
    (logged,) = lmms_double.logged
    assert logged["visual_tokens"] == 196 and logged["visual_tokens_kept"] == 49
    assert logged["total_requests"] == 5 and logged["elapsed_s"] > 0
    model.clean()
    assert not hasattr(model, "engine")


def test_a_request_that_cannot_be_answered_ends_the_run(model_class: Any) -> None:
    model = model_class("lab-nano")
    broken = SimpleNamespace(images=[b"no picture"], question="what shape is red?")
    with pytest.raises(MediaError):
        model.generate_until(instances(model, [broken], [{}]))


def test_likelihoods_and_rounds_are_refused_with_the_reason(model_class: Any) -> None:
    model = model_class("lab-nano")
    with pytest.raises(UnsupportedError, match="does not score given continuations"):
        model.loglikelihood([])
    with pytest.raises(UnsupportedError, match="several rounds"):
        model.generate_until_multi_round([])


@pytest.mark.parametrize(
    ("settings", "error", "words"),
    [
        ({"plam": "none"}, SettingError, "plan"),
        ({"plan": "nosuch:keep=1/4"}, UnknownMethodError, "nosuch"),
        ({"plan": "gone.toml"}, PlanError, "no plan file"),
        ({"batch_size": "auto"}, InputError, "batch_size = 'auto'"),
        ({"batch_size": 0}, InputError, "batch_size = 0"),
        ({"pictures_first": "yes"}, InputError, "give True or False"),
    ],
)
def test_wrong_model_args_are_refused_before_loading(
    model_class: Any, settings: dict[str, Any], error: type[Exception], words: str
) -> None:
    with pytest.raises(error, match=words):
        model_class("/no/such/folder", **settings)


def test_several_processes_are_refused(model_class: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UnsupportedError, match="one process"):
        model_class("lab-nano")
