"""Positions further than vLLM's rotary tables reach: an error of the request's own, before the engine
sees it, and answers for the others.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.serving.vllm.conftest import run_job

pytest.importorskip("torch")
pytest.importorskip("transformers")

# What needs these packages is imported behind the question whether they are here.
from tests.serving.vllm import checkpoints  # noqa: E402
from tests.serving.vllm.test_vllm_parity import Case, skip_where_stock_fails  # noqa: E402
from tests.serving.vllm.test_vllm_server import (  # noqa: E402
    Server,
    command,
    free_port,
    png,
    serving,
)

TRAINED = 192  # positions; vLLM's tables reach four times as far
TABLE = 4 * TRAINED
VIDEO = "<|vision_start|><|video_pad|><|vision_end|>"
PLAN = "divprune:per_image=4"
WIDE = (512, 16)  # 64 tokens in a row, of which the plan keeps four
FEW, MANY = 8, 12  # such pictures: 512 and 768 positions
YARN = {"rope_type": "yarn", "factor": 2.0, "original_max_position_embeddings": TRAINED // 2}


def checkpoint(
    family: str, folder: Path, trained: int = TRAINED, rope: dict[str, Any] | None = None
) -> Path:
    model, processor = checkpoints.make(family)
    text = model.config.get_text_config()
    text.max_position_embeddings = trained
    text.rope_parameters = {**text.rope_parameters, **(rope or {})}
    return checkpoints.save(family, model, processor, folder)


def pictures(folder: Path, *widths: int) -> dict[str, Any]:
    """A request about pictures of two rows of tokens, each 8 pixels wide, in turn."""
    paths = []
    for i, width in enumerate(widths):
        paths.append(str(folder / f"{len(widths)}-{i}-{width}.png"))
        checkpoints.picture(i, (width, WIDE[1])).save(paths[-1])
    mark = checkpoints.FAMILIES["qwen2_5_vl"].mark
    return {"prompt": f"user: {mark * len(widths)} which? assistant:", "images": paths}


def answers(family: str, plan: str, asked: list[dict[str, Any]], folder: Path, **made: Any) -> Any:
    """What reach_run says of requests to a checkpoint that is `made` so."""
    limits = {"image": 16, "video": 2}
    length = made.get("trained", TRAINED)
    more = {"limit_mm_per_prompt": limits, "max_model_len": length}
    model = checkpoint(family, folder, **made)
    job = {"model": str(model), "plan": plan, "requests": asked, "engine": more}
    return run_job(job, folder, "reach_run.py")


def refused(found: dict[str, Any], table: int = TABLE) -> bool:
    return found.get("kind") == "RequestPlanError" and f"end at {table - 1}" in found["error"]


@pytest.mark.parametrize(
    "family,rope", [("qwen2_vl", YARN), ("qwen3_vl", {})], ids=["qwen2_vl-yarn", "qwen3_vl"]
)
def test_the_furthest_request_is_answered_to_the_end_of_the_context(
    family: str, rope: dict[str, Any], vllm: str, tmp_path: Path
) -> None:
    """Nine pictures are 60 positions ahead each and one 36: as far as an answer that fills the context
    may go. One position more is refused. Where YaRN stretches positions, so are the tables.
    """
    skip_where_stock_fails(Case(family, PLAN), vllm)
    asked = [pictures(tmp_path, *[WIDE[0]] * 9, last) for last in (320, 328, 320)]
    first, second, again = answers(family, PLAN, asked, tmp_path, rope=rope)
    assert TABLE - TRAINED == 9 * (64 - 4) + 40 - 4
    assert refused(second), second
    assert first["finish"] == again["finish"] == "length"
    assert sum(first["tokens"]) == sum(again["tokens"]) == TRAINED


@pytest.mark.parametrize("plan", ["evs:keep=1/2", "none"])
def test_a_video_with_frames_far_apart_is_refused(plan: str, vllm: str, tmp_path: Path) -> None:
    """Qwen2.5-VL's positions follow seconds, so that eight frames reach as far as their times say, with
    all visual tokens too.
    """
    path = tmp_path / "video.npy"
    np.save(path, checkpoints.clip(1, 8, (32, 32)))
    asked = [
        {"prompt": f"user: {VIDEO} what? assistant:", "videos": [str(path)], "fps": fps}
        for fps in (2.0, 0.01, 2.0)
    ]
    near, far, again = answers("qwen2_5_vl", plan, asked, tmp_path)
    assert near == again and sum(near["tokens"]) == TRAINED
    assert refused(far), far


def test_long_videos_are_refused(vllm: str, tmp_path: Path) -> None:
    """Qwen3-VL's positions follow frames, which a plan does not shorten."""
    plan, trained = "evs:keep=1/64", 800
    skip_where_stock_fails(Case("qwen3_vl", plan), vllm)
    paths = [str(tmp_path / f"{i}.npy") for i in range(2)]
    for i, path in enumerate(paths):
        np.save(path, checkpoints.clip(i, 32, (1024, 8)))
    asked = [
        {"prompt": f"user: {VIDEO * n} what? assistant:", "videos": paths[:n], "fps": 2.0}
        for n in (1, 2, 1)
    ]
    near, far, again = answers("qwen3_vl", plan, asked, tmp_path, trained=trained)
    assert near == again and sum(near["tokens"]) == trained
    assert refused(far, 4 * trained), far


@pytest.fixture(scope="module")
def server(vllm: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = checkpoint("qwen2_5_vl", tmp_path_factory.mktemp("served"))
    more = ["--max-model-len", str(TRAINED), "--trust-request-mm-kwargs"]
    more += ["--limit-mm-per-prompt", json.dumps({"image": 16, "video": 0})]
    args = command(folder, "--additional-config", json.dumps({"foveate": {"plan": PLAN}}), *more)
    if vllm < "0.30":  # older servers take these settings from every request
        args.remove("--trust-request-mm-kwargs")
    log = tmp_path_factory.mktemp("log") / "server.txt"
    with serving(args, free_port(), log) as running:
        yield running


@pytest.mark.parametrize("known", [False, True], ids=["new", "cached"])
def test_a_request_beyond_the_tables_is_the_clients_error(server: Server, known: bool) -> None:
    """Few tokens, but too many positions: status 400 with the figures, whether the pictures were sent
    before or not. Fewer pictures are answered, and so are consecutive positions.
    """
    wide = [png(checkpoints.picture(50 * known + i, WIDE)) for i in range(MANY)]
    if known:
        for picture in wide:
            assert server.ask([picture])[0] == 200
    status, answer = server.ask(wide)
    assert status == 400, answer
    said = answer["error"]["message"]
    assert f"end at {TABLE - 1}." in said and "positions=renumber" in said
    assert server.ask(wide[:FEW])[0] == 200
    status, answer = server.ask(
        wide, mm_processor_kwargs={"foveate_plan": f"{PLAN};positions=renumber"}
    )
    assert status == 200, answer
