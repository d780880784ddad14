"""The scheduler's rules, one by one; test_scheduler_property.py runs them all at random."""

from __future__ import annotations

import subprocess
import sys

import pytest

from foveate.core.errors import CapacityError, InputError, MediaError, StateError
from foveate.engine.scheduler import Chunk, Scheduler, State, Step
from tests.engine.toy_executor import Job, Toy


def ready(scheduler: Scheduler, *prompts: int, **options: object) -> Toy:
    """Requests a, b, c … with these prompts, added at once; answers of 5 tokens."""
    toy = Toy(scheduler)
    for name, prompt in zip("abcdefgh", prompts, strict=False):
        toy.add(name, Job(prompt, 5, **options))  # type: ignore[arg-type]
    return toy


def spans(step: Step) -> list[tuple[str, int, int]]:
    return [(c.id, c.start, c.stop) for c in step.prefill]


def test_a_request_goes_through_its_states():
    s = Scheduler(8, 2)
    t = s.add("a", visual_tokens=4, max_new_tokens=2)
    assert (t.state, s.step()) == (State.WAITING, Step(encode=("a",)))
    s.encoded("a", 10)
    assert t.state is State.ENCODED
    assert s.step() == Step(prefill=(Chunk("a", 0, 8, False),))
    assert t.state is State.PREFILLING
    s.prefilled("a", 8)
    assert s.step() == Step(prefill=(Chunk("a", 8, 10, True),))
    s.prefilled("a", 10)
    assert not s.emitted("a", False)
    assert (t.state, t.cached_tokens, t.length_tokens) == (State.RUNNING, 10, 11)
    assert s.step() == Step(decode=("a",))
    assert s.emitted("a", False), "max_new_tokens ends it"
    assert t.state is State.FINISHED and s.idle and not s.step()


def test_decodes_go_first_and_prefill_fills_the_rest():
    toy = ready(Scheduler(10, 4), 3, 30)
    toy.step(), toy.step()
    assert toy.step().decode == ("a",)
    assert spans(toy.steps[1]) == [("a", 0, 3), ("b", 0, 7)]
    assert spans(toy.steps[2]) == [("b", 7, 16)] and toy.steps[2].tokens == 10
    toy.run()
    assert all(step.tokens <= 10 for step in toy.steps)


def test_requests_start_in_the_order_they_came():
    toy = ready(Scheduler(4, 2), 6, 2, 2, 2)
    toy.run()
    starts = [c.id for step in toy.steps for c in step.prefill if c.start == 0]
    assert starts == ["a", "b", "c", "d"]


def test_a_small_request_does_not_overtake_one_that_waits_for_kv():
    s = Scheduler(100, 4, kv_budget_bytes=94)
    toy = ready(s, 10, 14, 1)  # 4 bytes a token: b does not fit beside a, c alone would
    toy.step(), toy.step()
    assert toy.running() == ["a"] and s.stats.waiting == 2
    toy.run()
    assert [c.id for x in toy.steps for c in x.prefill if c.start == 0] == ["a", "b", "c"]


def test_priority_is_a_head_start_and_no_more():
    s = Scheduler(1, 1)
    for i in range(150):
        s.add(f"n{i}", visual_tokens=0, max_new_tokens=1)
    s.add("urgent", visual_tokens=0, max_new_tokens=1, priority=1)
    s.add("late", visual_tokens=0, max_new_tokens=1)
    order = []
    while not s.idle:
        step = s.step()
        for id in step.encode:
            s.encoded(id, 1)
        for chunk in step.prefill:
            order.append(chunk.id)
            s.prefilled(chunk.id, chunk.stop)
            s.emitted(chunk.id, True)
    assert order.index("urgent") == 51, "ahead of the 100 that came before it (150 - 100 + a tie)"
    assert order[-1] == "late"


def test_encoding_is_bounded_a_step_and_looks_ahead_no_further_than_what_can_run():
    s = Scheduler(64, 3, encode_budget_tokens=10)
    for i in range(6):
        s.add(f"r{i}", visual_tokens=4, max_new_tokens=9)
    assert s.step().encode == ("r0", "r1")
    s.encoded("r0", 5), s.encoded("r1", 5)
    step = s.step()
    assert (spans(step), step.encode) == ([("r0", 0, 5), ("r1", 0, 5)], ("r2", "r3"))


def test_a_picture_above_the_encode_budget_is_encoded_alone():
    s = Scheduler(64, 4, encode_budget_tokens=10)
    for id, tokens in (("text", 0), ("video", 50), ("more", 1), ("text2", 0)):
        s.add(id, visual_tokens=tokens, max_new_tokens=1)
    assert s.step().encode == ("text", "video"), "nor does a text overtake"


def test_pictures_do_not_stall_decoding():
    toy = ready(Scheduler(16, 8, encode_budget_tokens=3), 2, 2, 2, 2, 2, 2, 2, 2)
    toy.run()
    for before, step in zip(toy.steps, toy.steps[1:], strict=False):
        running = [c.id for c in before.prefill if c.emits] + list(before.decode)
        alive = [id for id in running if len(toy.jobs[id].answer) > 0 and id in step.decode]
        ended = [id for id in running if id not in step.decode]
        assert len(step.encode) <= 1
        assert all(
            id not in later.decode for id in ended for later in toy.steps[toy.steps.index(step) :]
        )
        assert len(alive) + len(ended) == len(running)


@pytest.mark.parametrize("prompt", [9, 10, 40])
def test_a_prompt_that_may_not_be_cut_takes_the_room_of_decodes_but_not_twice_in_a_row(prompt):
    toy = Toy(Scheduler(10, 4))
    toy.add("a", Job(4, 30))
    toy.add("b", Job(4, 30))
    toy.step(), toy.step(), toy.step()
    for name in "cd":
        toy.add(name, Job(prompt, 2, chunkable=False))
    toy.step()  # encodes
    whole, after, again = toy.step(), toy.step(), toy.step()
    assert spans(whole) == [("c", 0, prompt)]
    assert whole.decode == ("a",)[: max(0, 10 - prompt)]
    assert after.decode == ("a", "b", "c") and not after.prefill
    assert spans(again) == [("d", 0, prompt)]
    toy.run()
    assert all(j.ends == ["finished"] for j in toy.jobs.values())


def test_a_whole_prompt_fits_beside_decodes_and_chunks_when_there_is_room():
    toy = ready(Scheduler(30, 4), 3, 9)
    toy.add("w", Job(12, 3, chunkable=False))
    toy.add("x", Job(12, 3))
    toy.step(), toy.step()
    assert spans(toy.steps[1]) == [("a", 0, 3), ("b", 0, 9), ("w", 0, 12), ("x", 0, 6)]
    assert spans(toy.step()) == [("x", 6, 12)]


def test_the_newest_is_preempted_and_what_it_said_is_kept():
    s = Scheduler(100, 4, kv_budget_bytes=100)
    toy = Toy(s)
    toy.add("a", Job(10, 12))
    toy.add("b", Job(10, 12, chunkable=False))
    while not toy.steps or not toy.steps[-1].preempt:
        toy.step()
    b = s.ticket("b")
    assert toy.steps[-1].preempt == ("b",) and toy.steps[-1].decode == ("a",)
    assert (b.state, b.kv_bytes, b.cached_tokens) == (State.PREEMPTED, 0, 0)
    said = b.generated_tokens
    assert 0 < said < 12 and s.stats.total.dropped_tokens == 10 + said - 1
    toy.step()
    assert toy.running() == ["a"], "nothing starts before the one that runs has ended"
    rest = toy.run()
    chunks = [c for step in rest for c in step.prefill]
    assert chunks == [Chunk("b", 0, 10, False), Chunk("b", 10, 10 + said, True)]
    assert [j.answer for j in toy.jobs.values()] == [list(range(12))] * 2
    assert s.stats.total.preemptions == b.preemptions == 1


def test_the_exact_size_counts_and_not_the_forecast():
    s = Scheduler(100, 4, kv_budget_bytes=100)
    toy = Toy(s)
    toy.add("a", Job(10, 3, bytes_per_token=4))
    toy.add("b", Job(10, 3, bytes_per_token=9, forecast_bytes=5))
    toy.step(), toy.step()
    assert s.stats.kv_bytes == 40 + 90
    assert toy.step().preempt == ("b",)
    toy.run()
    assert s.stats.total.preemptions == 1, "b waits, although its forecast would fit beside a"


def test_one_request_may_exceed_the_kv_budget_alone():
    toy = ready(Scheduler(8, 4, kv_budget_bytes=4), 20, 3)
    toy.run()
    assert toy.scheduler.stats.total.preemptions == 0
    assert [j.ends for j in toy.jobs.values()] == [["finished"]] * 2


def test_after_an_out_of_memory_the_older_half_stays():
    s = Scheduler(64, 4)
    toy = ready(s, 2, 2, 2, 2)
    toy.step(), toy.step()
    toy.step(oom_after=1)  # a has its token, the others not
    assert toy.running() == ["a", "b"] and s.stats.limit == 2
    assert [s.ticket(x).state for x in "cd"] == [State.PREEMPTED] * 2
    assert [len(toy.jobs[x].answer) for x in "abcd"] == [2, 1, 1, 1]
    assert toy.step().decode == ("a", "b")
    toy.run()
    assert [j.answer for j in toy.jobs.values()] == [list(range(5))] * 4
    assert s.stats.total.out_of_memory == 1


def test_the_limit_grows_again_as_requests_finish():
    s = Scheduler(64, 2)
    toy = ready(s, 2, 2, 2, 2, 2, 2, 2, 2)
    toy.step(), toy.step()
    toy.step(oom_after=0)
    limits = []
    while not s.idle:
        toy.step()
        limits.append(s.stats.limit)
    kept = [x for x, y in zip(limits, [0, *limits], strict=False) if x != y]
    assert kept == [1, 2, 3, None], (
        "1 finished: 2; 2 more: 3; 3 more: none, 2 run and 2 are encoded"
    )


def test_what_cannot_run_alone_fails_and_the_others_go_on():
    s = Scheduler(64, 4)
    toy = Toy(s, memory_bytes=60)
    for name, prompt in (("a", 3), ("huge", 40), ("c", 3)):
        toy.add(name, Job(prompt, 4))
    toy.run()
    assert [j.ends for j in toy.jobs.values()] == [["finished"], ["failed"], ["finished"]]
    error = s.ticket("huge").error
    assert isinstance(error, CapacityError) and "a prompt of 40 tokens" in str(error)


def test_an_encoder_that_cannot_run_alone_fails_its_request():
    toy = ready(Scheduler(64, 4), 3, 3)
    toy.step(oom_after=0)
    assert toy.step(oom_after=0).encode == ("a",)
    assert toy.jobs["a"].ends == ["failed"]
    assert "encoder" in str(toy.scheduler.ticket("a").error)
    toy.run()
    assert toy.jobs["b"].ends == ["finished"]


def test_what_shares_its_step_with_an_encode_is_not_alone():
    toy = ready(Scheduler(64, 1), 3, 3)
    toy.step()
    assert (toy.step(oom_after=0).encode, toy.running()) == (("b",), ["a"])
    assert toy.step().encode == ()
    toy.run()
    assert [j.ends for j in toy.jobs.values()] == [["finished"]] * 2


@pytest.mark.parametrize("when", range(4))
def test_cancel_at_any_time(when):
    toy = ready(Scheduler(4, 2), 6, 6)
    for _ in range(when):
        toy.step()
    toy.cancel("a")
    assert not toy.scheduler.cancel("a"), "ended already"
    toy.run()
    assert [j.ends for j in toy.jobs.values()] == [["cancelled"], ["finished"]]


def test_a_cancel_while_the_work_runs_voids_its_report():
    s = Scheduler(8, 2)
    s.add("a", visual_tokens=1, max_new_tokens=3)
    s.step()
    s.cancel("a")
    with pytest.raises(StateError, match="forget it after the next step"):
        s.forget("a")
    s.encoded("a", 4)
    s.failed("a", MediaError("broken"))
    assert s.ticket("a").state is State.CANCELLED and not s.step()
    assert s.forget("a").id == "a"
    with pytest.raises(InputError, match="no request has the id 'a'"):
        s.ticket("a")
    s.add("a", visual_tokens=1, max_new_tokens=3)


def test_what_a_step_that_broke_off_did_not_report_is_handed_out_again():
    s = Scheduler(8, 3)
    for id in ("a", "b"):
        s.add(id, visual_tokens=0, max_new_tokens=3)
    s.step()
    for id in ("a", "b"):
        s.encoded(id, 3)
    s.step()
    s.prefilled("a", 3)
    s.emitted("a", False)
    s.recall()
    assert s.step() == Step(decode=("a",), prefill=(Chunk("b", 0, 3, True),))
    s.recall()
    s.cancel("a")
    assert s.step() == Step(prefill=(Chunk("b", 0, 3, True),))
    s.prefilled("b", 3)
    assert not s.emitted("b", False)


def test_a_failed_request_leaves_the_others_alone():
    toy = ready(Scheduler(8, 2), 4, 4)
    toy.jobs["a"].broken = True
    toy.run()
    assert [j.ends for j in toy.jobs.values()] == [["failed"], ["finished"]]
    assert isinstance(toy.scheduler.ticket("a").error, MediaError)
    assert toy.scheduler.forget("a").state is State.FAILED


def test_several_tokens_a_step():
    s = Scheduler(8, 2)
    s.add("a", visual_tokens=0, max_new_tokens=6)
    s.step(), s.encoded("a", 4, 10), s.step(), s.prefilled("a", 4), s.emitted("a", False)
    s.step()
    assert not s.emitted("a", False, tokens=3)
    assert (s.ticket("a").cached_tokens, s.ticket("a").kv_bytes) == (7, 70)
    s.step()
    with pytest.raises(InputError, match="3 tokens emitted, but max_new_tokens leaves 2"):
        s.emitted("a", False, tokens=3)
    assert s.emitted("a", False, tokens=2)
    total = s.stats.total
    assert (total.generated_tokens, total.decode_tokens, total.prefill_tokens) == (6, 2, 4)


def test_statistics():
    s = Scheduler(6, 1, kv_budget_bytes=1000)
    toy = ready(s, 4, 4)
    toy.step(), toy.step()
    now = s.stats
    assert (now.waiting, now.running, now.kv_bytes, now.step_tokens) == (1, 1, 16, 4)
    toy.run()
    total = s.stats.total
    assert (total.finished, total.prefill_tokens, total.decode_tokens) == (2, 8, 8)
    assert (total.encode_tokens, total.steps, now.total.finished) == (6, len(toy.steps), 0)


def test_it_loads_no_torch():
    code = (
        "import sys, foveate.engine.scheduler as s; "
        "sys.exit(bool({'torch', 'transformers'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
