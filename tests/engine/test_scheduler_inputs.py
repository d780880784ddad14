"""The scheduler refuses wrong budgets, requests, ids and reports with a typed error, and stays as it
was.
"""

from __future__ import annotations

import pytest

from foveate.core.errors import FoveateError, InputError, MediaError, SettingError, StateError
from foveate.engine.scheduler import Scheduler


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ((0, 1), "token_budget_tokens = 0"),
        ((8, 0), "max_running = 0"),
        ((8, 9), "no room for 9 running"),
        ((8, 8, 0), "kv_budget_bytes = 0"),
        ((8, 8, None, 0), "encode_budget_tokens = 0"),
        ((8.5, 8), "no whole number"),
    ],
)
def test_budgets_out_of_range(options, message):
    with pytest.raises(SettingError, match=message):
        Scheduler(*options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"visual_tokens": -1}, "visual_tokens = -1"),
        ({"max_new_tokens": 0}, "max_new_tokens = 0"),
        ({"priority": 11}, "priority = 11"),
        ({"priority": -11}, "priority = -11"),
        ({"priority": 0.5}, "no whole number"),
        ({"max_new_tokens": True}, "no whole number"),
        ({"id": ""}, "not empty"),
        ({"id": "twice"}, "in use"),
    ],
)
def test_requests_that_cannot_be(options, message):
    s = Scheduler(8, 2)
    s.add("twice", visual_tokens=0, max_new_tokens=1)
    given = {"id": "a", "visual_tokens": 0, "max_new_tokens": 1, **options}
    with pytest.raises(InputError, match=message):
        s.add(given.pop("id"), **given)
    assert s.stats.waiting == 1


def test_unknown_ids():
    s = Scheduler(8, 2)
    calls = [
        lambda: s.cancel("x"),
        lambda: s.failed("x", MediaError("broken")),
        lambda: s.forget("x"),
        lambda: s.encoded("x", 1),
        lambda: s.prefilled("x", 1),
        lambda: s.emitted("x", True),
        lambda: s.kv_bytes("x", 1),
    ]
    for call in calls:
        with pytest.raises(InputError, match="no request has the id 'x'"):
            call()


def test_reports_of_work_that_was_not_handed_out():
    s = Scheduler(8, 2, kv_budget_bytes=100)
    s.add("a", visual_tokens=0, max_new_tokens=2)

    def refused(match: str, call: object, kind: type[FoveateError] = StateError) -> None:
        with pytest.raises(kind, match=match):
            call()  # type: ignore[operator]

    refused("nothing was handed out", s.shrink)
    refused("a.*has no encode", lambda: s.encoded("a", 4, 1))
    refused("cancel it first", lambda: s.forget("a"))
    refused("holds no KV", lambda: s.kv_bytes("a", 4))
    s.step()
    refused("not reported yet: a", s.step)
    refused("no prefill to report", lambda: s.prefilled("a", 4))
    refused("prompt_tokens = 0", lambda: s.encoded("a", 0, 1), InputError)
    refused("kv_bytes_per_token = 0", lambda: s.encoded("a", 4), InputError)
    s.encoded("a", 4, 1)
    s.step()
    refused("no token to report", lambda: s.emitted("a", False))
    refused("prefilled to 3", lambda: s.prefilled("a", 3))
    s.prefilled("a", 4)
    refused("not reported yet", s.step)
    refused("tokens = 0", lambda: s.emitted("a", False, tokens=0), InputError)
    s.emitted("a", False)
    refused("no token to report", lambda: s.emitted("a", False))
    refused("bytes = -1", lambda: s.kv_bytes("a", -1), InputError)
    refused("not ValueError", lambda: s.failed("a", ValueError()), InputError)  # type: ignore[arg-type]
    s.step()
    s.emitted("a", True)
    s.kv_bytes("a", 5)  # of the step in which it ended: freed
    assert s.stats.kv_bytes == 0
    refused("finished already", lambda: s.failed("a", MediaError("late")))
    s.step()
    refused("holds no KV", lambda: s.kv_bytes("a", 5))
