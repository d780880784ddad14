"""V4: engines with different plans that share a store never serve each other's tokens."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.serving.vllm.conftest import connector, run_job

pytest.importorskip("torch")
pytest.importorskip("transformers")

# What needs these packages is imported behind the question whether they are here.
from tests.serving.vllm import checkpoints, reference  # noqa: E402
from tests.serving.vllm.test_vllm_parity import (  # noqa: E402
    LOGPROB,
    TOKENS,
    differences,
    requests_of,
)

PLAN, OTHER = "visionzip:keep=1/2", "visionzip:keep=1/3"


def agree(found: list[dict[str, Any]], wanted: list[dict[str, Any]]) -> float:
    """The largest difference of summed log-probabilities; fails where tokens or counts differ."""
    worst = 0.0
    assert [f["prompt"] for f in found] == [w["prompt"] for w in wanted]
    for f, w in zip(found, wanted, strict=True):
        same, apart = differences(f, w)
        assert same and apart <= LOGPROB
        worst = max(worst, apart)
    return worst


@pytest.mark.claim("V4")
@pytest.mark.parametrize("family", ["llava", "qwen2_5_vl"])
def test_an_encoder_apart_and_a_store_that_plans_share(
    family: str, vllm: str, tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    """The decoder answers as attach does without encoding a picture; one with another plan on the same
    store encodes all pictures itself and answers by its own plan.
    """
    model, processor = checkpoints.make(family)
    folder = checkpoints.save(family, model, processor, tmp_path)
    asked = requests_of(family, tmp_path)[:6:2]
    store = tmp_path / "store"

    def run(plan: str, role: str) -> Any:
        return run_job(
            {
                "model": str(folder),
                "plan": plan,
                "requests": asked,
                "regimes": ["cold"],
                "engine": connector(role, store),
                "encode_only": role == "producer",
                "count_calls": True,
            },
            tmp_path,
        )

    def stored() -> int:
        return sum(f.stat().st_size for f in store.rglob("*") if f.is_file())

    made = run(PLAN, "producer")
    assert made["encoder_calls"] == len(asked)
    per_picture = stored() / len(asked)
    wanted = reference.attach_run(model, processor, PLAN, asked, TOKENS)
    answered = run(PLAN, "consumer")
    assert answered["encoder_calls"] == 0
    worst = agree(answered["cold"], wanted)
    other = run(OTHER, "consumer")
    assert other["encoder_calls"] == len(asked)
    worst = max(
        worst,
        agree(other["cold"], reference.attach_run(model, processor, OTHER, asked, TOKENS)),
    )
    record_property("figure", f"{worst:.1e}, {per_picture:.0f} bytes a picture, vLLM {vllm}")
    record_property("bound", f"{LOGPROB:.0e}, no picture encoded twice, none served to the other")


@pytest.mark.claim("V4")
def test_a_store_of_keys_and_values_that_plans_share(
    vllm: str, tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    """An engine with the same plan takes a prompt's keys and values from the store, without encoding;
    one with another plan, that keeps as many tokens, computes its own.
    """
    model, processor = checkpoints.make("qwen2_5_vl")
    folder = checkpoints.save("qwen2_5_vl", model, processor, tmp_path)
    asked = requests_of("qwen2_5_vl", tmp_path)[:2]
    for request in asked:  # whole blocks are stored: the last one has to end behind the picture
        request["prompt"] += " it shows, in the words of someone who sees it,"
    shared = {
        "kv_connector": "ExampleConnector",
        "kv_role": "kv_both",
        "kv_connector_extra_config": {"shared_storage_path": str(tmp_path / "store")},
    }
    worst, calls, cached = 0.0, [], []
    for plan in (PLAN, PLAN, "fastervlm:keep=1/2"):
        answer = run_job(
            {
                "model": str(folder),
                "plan": plan,
                "requests": asked,
                "regimes": ["cold"],
                "engine": {"kv_transfer_config": shared, "enable_prefix_caching": False},
                "count_calls": True,
            },
            tmp_path,
        )
        wanted = reference.attach_run(model, processor, plan, asked, TOKENS)
        worst = max(worst, agree(answer["cold"], wanted))
        calls.append(answer["encoder_calls"])
        cached.append(answer["cold"][0]["cached"])
    assert calls == [1, 0, 1] and cached[0] == 0 and cached[1] > 0
    assert cached[2] == 0
    record_property("figure", f"{worst:.1e}; encoder calls {calls}, vLLM {vllm}")
    record_property("bound", f"{LOGPROB:.0e}; the other plan computes its own")


@pytest.mark.claim("V4")
def test_requests_with_plans_of_their_own_share_no_cache(vllm: str, tmp_path: Path) -> None:
    """One engine, one picture, three plans, each asked twice: answers by the own plan, and no block of
    another plan's picture is reused.
    """
    model, processor = checkpoints.make("qwen2_5_vl")
    folder = checkpoints.save("qwen2_5_vl", model, processor, tmp_path)
    (request, *_) = requests_of("qwen2_5_vl", tmp_path)
    plans = ["none", "divprune:keep=1/2", "divprune:keep=1/2;positions=renumber"]
    asked = [{**request, "kwargs": {"foveate_plan": p}} for p in plans for _ in range(2)]
    found = run_job(
        {"model": str(folder), "plan": PLAN, "requests": [request, *asked], "regimes": ["cold"]},
        tmp_path,
    )["cold"]
    wanted = []
    for plan in [PLAN, *(p for p in plans for _ in range(2))]:
        wanted += reference.attach_run(model, processor, plan, [request], TOKENS)
    agree(found, wanted)
    assert [f["cached"] for f in found[1::2]] == [0, 0, 0]
    assert all(f["cached"] > 0 for f in found[2::2])
