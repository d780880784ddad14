"""Our engine as a target: the answers of the engine alone, times in order, arms over one model."""

from __future__ import annotations

import asyncio
import io
from collections.abc import Iterator
from dataclasses import replace

import pytest

import foveate
from foveate.audit.engine_target import EngineTarget, Host
from foveate.audit.records import Item, Observed, Picture
from foveate.core.errors import PlanError, UnsupportedError
from foveate.lab.tasks import samples

PLANS = (None, "visionzip:keep=1/4", "fastv:layer=2,keep=1/2", "snapkv:keep=1/2,window=4")


@pytest.fixture(scope="module")
def host() -> Iterator[Host]:
    found = Host.load("lab-nano")
    yield found
    found.close()


def items(n: int) -> list[Item]:
    out = []
    for i, sample in enumerate(samples("form", "test", n)):
        file = io.BytesIO()
        sample.image.save(file, "PNG")
        picture = Picture(file.getvalue(), "image/png")
        out.append(
            Item(f"i{i}", (picture,), sample.question, (sample.answer,), "exact", "form", 12)
        )
    return out


async def asked(target: EngineTarget, some: list[Item]) -> list[Observed]:
    return list(await asyncio.gather(*(target.ask(i) for i in some)))


@pytest.mark.parametrize("plan", PLANS)
def test_answers_are_those_of_the_engine(host: Host, plan: str | None) -> None:
    some = items(4)
    target = EngineTarget("arm", host, plan)

    async def run() -> list[Observed]:
        await target.open()
        target.reset()
        found = await asked(target, some)
        gauges = target.gauges()
        assert gauges.kv_peak_bytes and gauges.cpu_s and gauges.rss_peak_bytes
        await target.close()
        return found

    found = asyncio.run(run())
    alone = host.engine.generate(
        [foveate.Request(question=i.question, images=[i.pictures[0].data]) for i in some],
        plan,
        max_new_tokens=12,
        batch_size=1,
    )
    for seen, wanted in zip(found, alone, strict=True):
        assert wanted.report is not None
        assert seen.error is None and seen.text == wanted.text
        assert seen.visual_tokens == wanted.report.visual_tokens_kept
        assert seen.kv_bytes == wanted.report.kv_bytes
        assert seen.first_s is not None and seen.chunk_s[0] == seen.first_s
        assert seen.sent_s <= seen.first_s <= seen.chunk_s[-1] <= seen.done_s
        assert list(seen.chunk_s) == sorted(seen.chunk_s)
    assert host.active is None


def test_the_kv_peak_holds_requests_that_end_in_their_first_step(host: Host) -> None:
    """Their caches are gone when the step is over; a peak of zero would be a figure that is false."""
    some = [replace(item, max_new_tokens=1) for item in items(3)]
    target = EngineTarget("arm", host)

    async def run() -> tuple[list[Observed], int | None]:
        await target.open()
        target.reset()
        found = await asked(target, some)
        peak = target.gauges().kv_peak_bytes
        await target.close()
        return found, peak

    found, peak = asyncio.run(run())
    assert peak is not None and peak >= max(seen.kv_bytes or 0 for seen in found) > 0


def test_arms_take_turns_on_one_model_and_leave_it_as_it_was(host: Host) -> None:
    some = items(3)
    hooks = [len(m._forward_pre_hooks) for m in host.engine.model.modules()]
    full, small = EngineTarget("baseline", host), EngineTarget("small", host, PLANS[2])

    async def run() -> list[list[Observed]]:
        found = []
        await full.open()
        await small.open()
        for target in (full, small, full):
            target.reset()
            found.append(await asked(target, some))
        await full.close()
        await small.close()
        return found

    first, other, again = asyncio.run(run())
    assert [o.text for o in first] == [o.text for o in again]
    assert [o.kv_bytes for o in first] == [o.kv_bytes for o in again]
    assert all(a.kv_bytes < b.kv_bytes for a, b in zip(other, first, strict=True))  # type: ignore[operator]
    assert [len(m._forward_pre_hooks) for m in host.engine.model.modules()] == hooks


def test_a_bad_picture_fails_alone(host: Host) -> None:
    good = items(1)[0]
    bad = Item("bad", (Picture(b"no picture", "image/png"),), "what ?", (), "exact", "form", 4)
    target = EngineTarget("arm", host)

    async def run() -> list[Observed]:
        await target.open()
        return await asked(target, [bad, good])

    one, two = asyncio.run(run())
    assert one.error == "engine" and one.error_detail and one.done_s >= one.sent_s
    assert two.error is None and two.text


def test_a_step_that_breaks_fails_its_requests_and_no_later_ones(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = EngineTarget("arm", host)

    def broken(*_: object, **__: object) -> None:
        raise RuntimeError("planted fault\nin two lines")

    async def run() -> tuple[list[Observed], list[Observed]]:
        await target.open()
        with monkeypatch.context() as patch:
            patch.setattr(host.engine, "compressed", broken)
            failed = await asked(target, items(2))
        return failed, await asked(target, items(2))

    failed, fine = asyncio.run(run())
    assert {o.error for o in failed} == {"engine"}
    assert all("planted fault in two lines" in o.error_detail for o in failed)
    assert all(o.error is None for o in fine)


def test_a_request_that_is_given_up_frees_its_place(host: Host) -> None:
    target = EngineTarget("arm", host)

    async def run() -> Observed:
        await target.open()
        task = asyncio.create_task(target.ask(items(1)[0]))
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        return await target.ask(items(1)[0])

    assert asyncio.run(run()).error is None
    assert not target.busy


def test_a_plan_that_cannot_be_served_is_refused_when_opened(host: Host) -> None:
    with pytest.raises((UnsupportedError, PlanError)):
        asyncio.run(EngineTarget("arm", host, "sgl:keep=1/4").open())
