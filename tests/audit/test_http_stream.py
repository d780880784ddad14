"""Event streams and answers, byte by byte, without a server."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from foveate.audit import http_stream
from foveate.audit.http_stream import Answer, AnswerError, EventReader

NASTY = (
    b": a comment, as gateways send it to keep the line open\n\n"
    b"event: message\r\nid: 3\r\ndata: one\r\n\r\n"
    b"data:two\n\n"
    b"data: three, first line\ndata: and second\n\n"
    b"\n\ndata: \xc3\xa9\n\nretry: 5\n\n"
    b"data: [DONE]\n\ndata: left without its end"
)
EVENTS = [b"one", b"two", b"three, first line\nand second", b"\xc3\xa9", b"[DONE]"]


def read(chunks: list[bytes]) -> list[bytes]:
    reader = EventReader()
    return [event for chunk in chunks for event in reader.feed(chunk)]


@given(st.lists(st.integers(0, len(NASTY)), max_size=12).map(sorted))
def test_events_do_not_depend_on_how_the_stream_was_cut(cuts: list[int]) -> None:
    ends = [0, *cuts, len(NASTY)]
    assert read([NASTY[a:b] for a, b in zip(ends, ends[1:], strict=False)]) == EVENTS


def test_every_byte_by_itself() -> None:
    assert read([NASTY[i : i + 1] for i in range(len(NASTY))]) == EVENTS


def test_a_stream_without_line_ends_does_not_fill_the_memory(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(http_stream, "MAX_ANSWER_BYTES", 100)
    reader = EventReader()
    with pytest.raises(AnswerError, match="more than 100 bytes"):
        for _ in range(12):
            list(reader.feed(b"x" * 10))


def test_an_event_of_endless_lines_does_not_fill_the_memory(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(http_stream, "MAX_ANSWER_BYTES", 100)
    reader = EventReader()
    with pytest.raises(AnswerError, match="more than 100 bytes"):
        for _ in range(12):
            list(reader.feed(b"data: 0123456789\n"))


def chunk(delta: Any, **more: Any) -> bytes:
    choice = {"index": 0, "delta": delta, "finish_reason": None}
    return json.dumps({"model": "m", "choices": [choice], **more}).encode()


def test_pieces_and_their_times() -> None:
    answer = Answer(1.0)
    answer.event(chunk({"role": "assistant", "content": ""}), 2.0)
    answer.event(chunk({"content": "a "}), 3.0)
    answer.event(chunk({"content": None}), 4.0)
    answer.event(chunk({"content": "cat"}), 5.0)
    answer.event(b'{"choices": [{"delta": {}, "finish_reason": "length"}]}', 6.0)
    answer.event(b"[DONE]", 7.0)
    seen = answer.observed(8.0)
    assert answer.done and (seen.text, seen.finish, seen.model) == ("a cat", "length", "m")
    assert (seen.sent_s, seen.first_s, seen.chunk_s, seen.done_s) == (1.0, 3.0, (3.0, 5.0), 8.0)


@pytest.mark.parametrize("name", ["reasoning_content", "reasoning"])
def test_thinking_counts_as_tokens_and_not_as_answer(name: str) -> None:
    answer = Answer(0.0)
    answer.event(chunk({name: "hm"}), 1.0)
    answer.event(chunk({"content": "yes"}), 2.0)
    seen = answer.observed(3.0)
    assert (seen.first_s, seen.chunk_s, seen.text) == (1.0, (1.0, 2.0), "yes")


def test_other_choices_are_passed_over() -> None:
    answer = Answer(0.0)
    both = [{"index": i, "delta": {"content": t}} for i, t in ((1, "b"), (0, "a"))]
    answer.event(json.dumps({"choices": both}).encode(), 1.0)
    assert answer.observed(2.0).text == "a"


@pytest.mark.parametrize(
    ("usage", "expected"),
    [
        (
            {"prompt_tokens": 9, "completion_tokens": 2, "prompt_tokens_details": None},
            (9, 2, None, None),
        ),
        (
            {"prompt_tokens": 9, "prompt_tokens_details": {"image_tokens": 7}},
            (9, None, 7, None),
        ),
        ({"foveate": {"visual_tokens": 5, "kv_bytes": 4096}}, (None, None, 5, 4096)),
        ({"prompt_tokens": True, "completion_tokens": -1}, (None, None, None, None)),
        ({"prompt_tokens": "many", "foveate": 3}, (None, None, None, None)),
        (None, (None, None, None, None)),
    ],
)
def test_usage_that_is_not_there_is_missing_and_not_zero(
    usage: Any, expected: tuple[int | None, ...]
) -> None:
    answer = Answer(0.0)
    answer.event(json.dumps({"choices": [], "usage": usage}).encode(), 1.0)
    seen = answer.observed(2.0)
    found = (seen.prompt_tokens, seen.completion_tokens, seen.visual_tokens, seen.kv_bytes)
    assert found == expected


@pytest.mark.parametrize(
    ("data", "kind", "says"),
    [
        (b"", "protocol", "no JSON"),
        (b"{", "protocol", "no JSON"),
        (b"\xff\xfe\x00", "protocol", "no JSON"),
        (b"[" * 100_000, "protocol", "no JSON"),
        (b"[1]", "protocol", "no JSON object"),
        (b"{}", "protocol", "without choices"),
        (b'{"choices": 3}', "protocol", "without choices"),
        (b'{"choices": [3]}', "protocol", "without choices"),
        (b'{"choices": [{"index": 0}]}', "protocol", "without delta"),
        (b'{"choices": [{"delta": {"content": ["x"]}}]}', "protocol", "no text"),
        (b'{"error": {"message": "out of\\nmemory", "code": 500}}', "http", "out of memory"),
        (b'{"error": "no"}', "http", "is an error: no"),
    ],
)
def test_what_is_no_answer_is_called_so(data: bytes, kind: str, says: str) -> None:
    with pytest.raises(AnswerError, match=says) as caught:
        Answer(0.0).event(data, 1.0)
    assert caught.value.kind == kind and len(str(caught.value)) < 400


@given(st.binary(max_size=200))
def test_any_bytes_are_an_answer_or_an_answer_error(data: bytes) -> None:
    for read_it in (lambda a: a.event(data, 1.0), lambda a: a.whole(data)):
        try:
            read_it(Answer(0.0))
        except AnswerError as error:
            assert error.kind in ("protocol", "http", "model")


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                ["choices", "delta", "message", "content", "usage", "error", "index", "model"]
            ),
            inner,
            max_size=4,
        )
    ),
    max_leaves=12,
)


@given(json_values)
def test_any_json_is_an_answer_or_an_answer_error(value: Any) -> None:
    test_any_bytes_are_an_answer_or_an_answer_error.hypothesis.inner_test(
        json.dumps(value).encode()
    )


def test_another_model_within_one_answer() -> None:
    answer = Answer(0.0)
    answer.event(chunk({"content": "a"}), 1.0)
    with pytest.raises(AnswerError) as caught:
        answer.event(b'{"model": "other", "choices": []}', 2.0)
    assert caught.value.kind == "model"


@pytest.mark.parametrize(
    "data", [b'{"choices": []}', b'{"choices": [{"delta": {"content": "x"}}]}']
)
def test_an_answer_in_one_piece_needs_a_message(data: bytes) -> None:
    with pytest.raises(AnswerError) as caught:
        Answer(0.0).whole(data)
    assert caught.value.kind == "protocol"
