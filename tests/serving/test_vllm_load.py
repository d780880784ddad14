"""The load benchmark's own arithmetic and checks, on planted rounds and a planted server."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

pytest.importorskip("aiohttp")
pytest.importorskip("psutil")
pytest.importorskip("torch")

from bench import vllm_load
from foveate.audit.http_target import HttpTarget
from tests.support.planted import PlantedServer


def rounds(blocks: int, cpu: float, rate: float, drift: float = 1.0) -> list[dict[str, Any]]:
    """Planted rounds whose ratios are (cpu, rate) in every block; the machine slows by `drift`."""
    found = []
    for block in range(blocks):
        slow = drift**block
        for concurrency in vllm_load.CONCURRENCY:
            for arm in vllm_load.ARMS:
                planned = arm == "plan"
                found.append(
                    {
                        "arm": arm,
                        "block": block,
                        "concurrency": concurrency,
                        "cpu_s_a_request": slow * (cpu if planned else 1.0),
                        "requests_a_s": (rate if planned else 1.0) / slow,
                        "latency_s": slow,
                        "prompt_tokens": [100 if planned else 612],
                        "completion_tokens": 8,
                    }
                )
    return found


def test_ratios_are_taken_within_blocks() -> None:
    for f in vllm_load.holds(rounds(6, cpu=0.5, rate=1.5, drift=1.7)):
        assert f["cpu_ratio"] == pytest.approx(0.5) and f["rate_ratio"] == pytest.approx(1.5)
        assert f["cpu_holds"] and f["rate_holds"] and f["blocks"] == 6


@pytest.mark.parametrize(
    ("cpu", "rate", "holds"),
    [(0.5, 1.2, (True, True)), (0.61, 1.2, (False, True)), (0.5, 0.94, (True, False))],
)
def test_bounds(cpu: float, rate: float, holds: tuple[bool, bool]) -> None:
    lines = vllm_load.claims(vllm_load.holds(rounds(6, cpu, rate)))
    assert [line["holds"] for line in lines] == list(holds) * len(vllm_load.CONCURRENCY)


def test_a_noisy_gain_does_not_hold() -> None:
    noisy = rounds(6, cpu=0.5, rate=1.1)
    for r in noisy:
        if r["arm"] == "plan":
            r["requests_a_s"] *= 2.0 if r["block"] % 2 else 0.5
    assert not any(f["rate_holds"] for f in vllm_load.holds(noisy))


def test_too_few_blocks_say_nothing() -> None:
    lines = vllm_load.claims(vllm_load.holds(rounds(5, 0.5, 1.5)))
    assert lines and all(line["holds"] is None for line in lines)
    one_arm = [r for r in rounds(6, 0.5, 1.5) if r["arm"] == "plan"]
    assert vllm_load.holds(one_arm) == []


def test_servers_that_do_not_do_what_they_should_are_refused() -> None:
    pair = rounds(1, 0.5, 1.5)[:2]
    vllm_load.check(pair, 512)
    with pytest.raises(RuntimeError, match="should save 400"):
        vllm_load.check(pair, 400)
    pair[1]["completion_tokens"] = 7
    with pytest.raises(RuntimeError, match="different lengths"):
        vllm_load.check(pair, 512)


def test_pictures_are_new_in_every_turn_and_equal_for_both_arms() -> None:
    digests = [
        [i.pictures[0].digest for i in vllm_load.items(block, concurrency, 4)]
        for block in (0, 1)
        for concurrency in vllm_load.CONCURRENCY
    ]
    flat = [d for turn in digests for d in turn]
    assert len(set(flat)) == len(flat)
    again = [i.pictures[0].digest for i in vllm_load.items(0, vllm_load.CONCURRENCY[0], 4)]
    assert again == digests[0]


def test_a_turn_counts_what_the_server_spent() -> None:
    # The counter moves in steps of 10 ms: so many requests cost several.
    with PlantedServer(latency_s=0.01, visual_tokens=64) as server:

        async def one() -> dict[str, Any]:
            target = HttpTarget("plan", server.url, pid=server.pid)
            await target.open()
            try:
                return await vllm_load.turn(target, vllm_load.items(0, 2, 120), 2, (0, 0))
            finally:
                await target.close()

        found = asyncio.run(one())
        assert found["requests"] == 120 == server.seen()["requests"]
        assert found["cpu_s_a_request"] > 0 and found["requests_a_s"] > 0
        assert len(found["prompt_tokens"]) == 1
    with PlantedServer(errors=1.0) as server, pytest.raises(RuntimeError, match="failed"):
        asyncio.run(one())
