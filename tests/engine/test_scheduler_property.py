"""The scheduler under random arrivals, cancels, failures, sizes and out-of-memory: what must hold in
every step, and that every request ends exactly once, in a bounded number of steps.
"""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule

from foveate.core.errors import CapacityError, MediaError
from foveate.engine.scheduler import Scheduler, State, Step, Ticket
from tests.engine.toy_executor import Job, Toy

KV = (State.PREFILLING, State.RUNNING)
QUEUE = (State.WAITING, State.ENCODED, State.PREEMPTED)


class Batching(RuleBasedStateMachine):
    @initialize(
        max_running=st.integers(1, 6),
        spare=st.integers(0, 30),
        kv=st.none() | st.integers(1, 100) | st.integers(60, 400),
        encode=st.integers(1, 30),
        memory=st.sampled_from([None, None, None, 100, 200, 400]),
        honest=st.booleans(),
    )
    def begin(self, max_running, spare, kv, encode, memory, honest):
        self.s = Scheduler(max_running + spare, max_running, kv, encode)
        self.toy = Toy(self.s, memory)
        self.toy.planned = self.check_plan
        self.honest = honest  # the forecast is never below the size
        self.injected = False
        self.missed: dict[str, int] = {}

    def tickets(self, *states: State) -> list[Ticket]:
        found = [self.s.ticket(id) for id in self.toy.jobs]
        return sorted((t for t in found if t.state in states), key=lambda t: t.place)

    # -- what happens --------------------------------------------------------------------------

    @rule(
        count=st.integers(1, 4),
        prompt=st.integers(1, 10) | st.integers(1, 40),
        answer=st.integers(1, 25),
        early=st.integers(0, 3),
        visual=st.integers(0, 14),
        priority=st.sampled_from([0, 0, 0, 1, -1]),
        chunkable=st.booleans(),
        size=st.integers(1, 5),
        forecast=st.integers(1, 5),
        broken=st.sampled_from([False] * 7 + [True]),
    )
    def arrive(
        self, count, prompt, answer, early, visual, priority, chunkable, size, forecast, broken
    ):
        forecast = max(size, forecast) if self.honest else forecast
        for _ in range(count):
            job = Job(prompt, answer, chunkable, size, forecast, broken)
            name = f"r{len(self.toy.jobs)}"
            self.toy.add(name, job, visual=visual, budget=answer + early, priority=priority)

    @rule()
    def run(self):
        self.one_step()

    @rule(steps=st.integers(2, 12))
    def run_on(self, steps):
        for _ in range(steps):
            self.one_step()

    @rule(piece=st.integers(0, 5), chance=st.integers(0, 3))
    def run_out_of_memory(self, piece, chance):
        if chance == 0:
            self.injected = True
            self.one_step(oom_after=piece)

    @precondition(lambda self: self.toy.jobs)
    @rule(data=st.data(), piece=st.none() | st.integers(0, 5))
    def cancel(self, data, piece):
        id = data.draw(st.sampled_from(sorted(self.toy.jobs)))
        if piece is None:
            self.toy.cancel(id)
        else:
            self.one_step(cancel_at=(piece, id))

    # -- what must hold ------------------------------------------------------------------------

    def one_step(self, **options: object) -> None:
        self.kv_before = self.tickets(*KV)
        self.queue_before = self.tickets(*QUEUE)
        self.running_before = self.tickets(State.RUNNING)
        idle = self.s.idle
        step = self.toy.step(**options)
        assert bool(step) is not idle, "work is left and none is handed out"
        self.check_books()

    def check_plan(self, step: Step) -> None:
        s, jobs = self.s, self.toy.jobs
        # The token budget, over it only for one prompt that must be whole.
        if step.tokens > s.token_budget_tokens:
            (chunk,) = step.prefill
            assert not step.decode and not jobs[chunk.id].chunkable and chunk.start == 0
        # The encode budget, over it only for one request.
        visual = [s.ticket(id).visual_tokens for id in step.encode]
        assert sum(visual) <= s.encode_budget_tokens or sum(v > 0 for v in visual) == 1
        # Places, and the KV forecast, over its budget only for one request.
        holders = self.tickets(*KV)
        assert len(holders) <= s.max_running
        if s.kv_budget_bytes is not None and len(holders) > 1:
            assert sum(t.claim_bytes for t in holders) <= s.kv_budget_bytes
        if s.stats.limit is not None:
            assert len({t.id for t in holders} | set(step.encode)) <= s.stats.limit
        # The newest are preempted, never the oldest, and nothing starts in their stead.
        gone = [t for t in self.kv_before if t.id in step.preempt]
        assert gone == self.kv_before[len(self.kv_before) - len(gone) :]
        assert len(gone) == len(step.preempt) and (not gone or gone != self.kv_before)
        # No request starts before another that comes ahead of it.
        chunks = {c.id: c for c in step.prefill}
        assert len(chunks) == len(step.prefill) and not chunks.keys() & set(step.decode)
        started = [t.id in chunks for t in self.queue_before]
        assert started == sorted(started, reverse=True)
        assert not (step.preempt and any(started))
        # The oldest that holds KV moves, and no running request waits for two steps.
        still = [t for t in self.running_before if t.id not in step.preempt]
        waited = {t.id: self.missed.get(t.id, 0) + 1 for t in still if t.id not in step.decode}
        assert all(steps == 1 for steps in waited.values())
        self.missed = waited
        begun = [t for t in self.kv_before if t.state is State.PREFILLING]
        if begun and not jobs[begun[0].id].chunkable and begun[0].cached_tokens == 0:
            begun = []  # a whole prompt may wait for one step: it takes turns with decoding
        assert not begun or begun[0].id in chunks

    def check_books(self) -> None:
        holders = self.tickets(*KV)
        for id, job in self.toy.jobs.items():
            ticket = self.s.ticket(id)
            assert len(job.cache) == ticket.cached_tokens or ticket.ended
            assert job.answer == list(range(ticket.generated_tokens))
            assert job.ends == ([ticket.state.value] if ticket.ended else [])
            assert ticket.kv_bytes == (self.toy.bytes(id) if ticket in holders else 0)
            if not job.chunkable:
                assert all(p in ([], [(0, job.prompt_tokens)]) for p in job.prompt_passes)
        now = self.s.stats
        assert now.waiting == len(self.tickets(*QUEUE)) and now.running == len(holders)
        if self.honest and self.s.kv_budget_bytes is not None and len(holders) > 1:
            assert now.kv_bytes <= self.s.kv_budget_bytes

    def teardown(self) -> None:
        if not hasattr(self, "s"):
            return
        live = [self.toy.jobs[t.id] for t in self.tickets(*QUEUE, *KV)]
        # In each two steps the oldest that holds KV moves by a token. A reign of the oldest ends with
        # its end or with a start ahead of it, and an out-of-memory at least halves what runs.
        longest = max((j.prompt_tokens + j.answer_tokens for j in live), default=0)
        bound = 2 * len(live) * (2 * longest + 4) + 8 * len(live)
        for _ in range(bound):
            if self.s.idle:
                break
            self.one_step()
        assert self.s.idle, "requests starve"
        for id, job in self.toy.jobs.items():
            ticket = self.s.ticket(id)
            assert len(job.ends) == 1
            if ticket.state is State.FINISHED:
                assert job.answer == list(range(job.answer_tokens))
            if ticket.state is State.FAILED:
                most = (job.prompt_tokens + job.answer_tokens) * job.bytes_per_token
                short = self.toy.memory_bytes is not None and most > self.toy.memory_bytes
                if not isinstance(ticket.error, MediaError):
                    assert isinstance(ticket.error, CapacityError) and (self.injected or short)
                else:
                    assert job.broken
        total = self.s.stats.total
        assert total.finished + total.cancelled + total.failed == len(self.toy.jobs)


TestBatching = Batching.TestCase
TestBatching.settings = settings(max_examples=200, stateful_step_count=25, deadline=None)


@settings(max_examples=100, deadline=None)
@given(
    big=st.integers(20, 200),
    chunkable=st.booleans(),
    small=st.lists(st.tuples(st.integers(1, 6), st.integers(1, 6)), min_size=10, max_size=30),
    kv=st.none() | st.integers(60, 400),
)
def test_a_large_prompt_starts_before_every_later_arrival(big, chunkable, small, kv):
    toy = Toy(Scheduler(8, 3, kv))
    for i, (prompt, answer) in enumerate(small):
        toy.add(f"s{i}", Job(prompt, answer))
        if i == 5:
            toy.add("big", Job(big, 3, chunkable))
        toy.step()
    toy.run()
    starts = list(dict.fromkeys(c.id for step in toy.steps for c in step.prefill))
    assert starts.index("big") == 6 and toy.jobs["big"].ends == ["finished"]


@settings(max_examples=20, deadline=None)
@given(priority=st.integers(1, 3), every=st.integers(1, 3))
def test_a_stream_of_urgent_requests_passes_a_patient_one_for_a_while_only(priority, every):
    toy = Toy(Scheduler(4, 1))
    toy.add("patient", Job(3, 1))
    count = 0
    while not toy.jobs["patient"].ends:
        for _ in range(every):
            toy.add(f"u{count}", Job(1, 1), priority=priority)
            count += 1
        toy.step()
        assert sum(bool(j.ends) for j in toy.jobs.values()) <= 100 * priority + 1


@settings(max_examples=50, deadline=None)
@given(
    jobs=st.lists(st.tuples(st.integers(1, 20), st.integers(1, 6), st.booleans()), max_size=12),
    kv=st.none() | st.integers(40, 200),
)
def test_equal_calls_give_equal_steps(jobs, kv):
    def steps() -> list[Step]:
        toy = Toy(Scheduler(7, 3, kv))
        for i, (prompt, answer, chunkable) in enumerate(jobs):
            toy.add(f"r{i}", Job(prompt, answer, chunkable))
        return toy.run()

    assert steps() == steps()
