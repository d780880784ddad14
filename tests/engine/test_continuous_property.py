"""Random schedules of joins, leaves, preemptions and cancels: each request gets its own tokens."""

from __future__ import annotations

import functools
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import foveate
from foveate.engine.continuous import serving
from foveate.lab import nano_path
from foveate.lab.tasks import samples

POOL = 12
NEAR_TIE = 1e-4
PLANS = (
    "none",
    "divprune:keep=1/4",
    "fastv:layer=2,keep=1/4",
    "uniform:keep=1/2+snapkv:keep=1/4,window=4",
)


@functools.cache
def _engine() -> foveate.Engine:
    return foveate.Engine.from_pretrained(nano_path())


@functools.cache
def _request(i: int) -> foveate.Request:
    names = ("count", "form", "code", "quadrant", "shape", "bar")
    s = samples(names[i % len(names)], "test", 1 + i // len(names))[-1]
    return foveate.Request(images=[s.image], question=s.question, id=f"r{i}")


@functools.cache
def _alone(i: int, plan: str) -> tuple[int, ...]:
    return _engine().generate([_request(i)], plan, max_new_tokens=12)[0].token_ids


def _near_tie(i: int, plan: str, place: int) -> bool:
    """Whether the two best logits of a request alone are within NEAR_TIE at an answer's place."""
    engine = _engine()
    ready = engine.prepare(_request(i))
    inputs = engine.processor(text=[ready.text], images=ready.pictures, return_tensors="pt")
    with foveate.attach(engine.model, plan, processor=engine.processor):
        out: Any = engine.model.generate(
            **inputs, max_new_tokens=place + 1, output_logits=True, return_dict_in_generate=True
        )
    best = torch.topk(out.logits[place][0].float(), 2).values
    return bool(best[0] - best[1] < NEAR_TIE)


ACTIONS = st.lists(
    st.one_of(
        st.tuples(st.just("submit"), st.integers(0, POOL - 1)),
        st.tuples(st.just("cancel"), st.integers(0, POOL - 1)),
        st.tuples(st.just("step"), st.integers(1, 5)),
    ),
    min_size=3,
    max_size=16,
)


def _play(actions: list[tuple[str, int]], plan: str, room: int, running: int, tokens: int) -> None:
    one = 6 * 2 * 192 * 4 * 210  # bytes of about one request's entries
    submitted: set[int] = set()
    cancelled: set[int] = set()
    got: dict[str, Any] = {}
    budget = None if room == 0 else room * one
    with serving(
        _engine(), plan, max_running=running, token_budget_tokens=tokens, kv_budget_bytes=budget
    ) as run:
        for action, value in actions:
            if action == "submit" and value not in submitted:
                submitted.add(value)
                run.submit(_request(value), max_new_tokens=12)
            elif action == "cancel" and value in submitted and value not in cancelled:
                if f"r{value}" in run._jobs and run.cancel(f"r{value}"):
                    cancelled.add(value)
            elif action == "step":
                for _ in range(value):
                    run.step()
        got = run.run_all()
        assert run.kv_bytes == 0
    assert set(got) == {f"r{i}" for i in submitted}
    for i in submitted - cancelled:
        answer = got[f"r{i}"]
        assert answer.ok, answer.error
        want = _alone(i, plan)
        if answer.token_ids != want:
            both = zip(answer.token_ids, want, strict=False)  # one may be the other's beginning
            least = min(len(answer.token_ids), len(want))
            place = next((j for j, (a, b) in enumerate(both) if a != b), least)
            assert _near_tie(i, plan, place), f"r{i} under {plan} differs at token {place}"
    for i in cancelled:
        assert not got[f"r{i}"].ok


_ARGUMENTS: dict[str, Any] = {
    "actions": ACTIONS,
    "plan": st.sampled_from(PLANS),
    "room": st.integers(0, 3),
    "running": st.integers(1, 6),
    "tokens": st.integers(40, 500),
}
_RELAXED = [HealthCheck.too_slow, HealthCheck.data_too_large]


@settings(max_examples=15, deadline=None, suppress_health_check=_RELAXED)
@given(**_ARGUMENTS)
@pytest.mark.claim("I5")
def test_random_schedules(actions: Any, plan: str, room: int, running: int, tokens: int) -> None:
    _play(actions, plan, room, running, tokens)


@pytest.mark.full
@settings(max_examples=200, deadline=None, suppress_health_check=_RELAXED)
@given(**_ARGUMENTS)
def test_two_hundred_random_schedules(
    actions: Any, plan: str, room: int, running: int, tokens: int
) -> None:
    _play(actions, plan, room, running, tokens)
