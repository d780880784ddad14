"""A picture whose features are not finite ends its own requests, and no others."""

from __future__ import annotations

import json
import urllib.request
from pathlib import Path

import pytest
from PIL import Image

from tests.serving.vllm.conftest import run_job

pytest.importorskip("torch")
pytest.importorskip("transformers")

# What needs these packages is imported behind the question whether they are here.
from safetensors.torch import load_file, save_file  # noqa: E402

from tests.serving.vllm import checkpoints, reference  # noqa: E402
from tests.serving.vllm.test_vllm_parity import LOGPROB, TOKENS, differences, requests_of  # noqa: E402
from tests.serving.vllm.test_vllm_server import GOOD, PLAN, command, free_port, serving  # noqa: E402


@pytest.mark.parametrize(
    "plan,chunk", [("visionzip:keep=1/2", 48), ("none", 512)], ids=["chunks", "whole"]
)
def test_a_void_picture_ends_its_own_requests_alone(
    plan: str, chunk: int, vllm: str, tmp_path: Path
) -> None:
    """In a shared batch and again from the cache: an error for it, attach's answers for the others,
    though they take over the blocks that held its keys and values.
    """
    model, processor = checkpoints.make("llava")
    folder = checkpoints.save("llava", model, processor, tmp_path)
    good = requests_of("llava", tmp_path)[:4]
    white = tmp_path / "white.png"
    Image.new("RGB", (checkpoints.EDGE, checkpoints.EDGE), "white").save(white)
    void = {**good[0], "images": [str(white)]}
    asked = [good[0], void, *good[1:], void]
    few = {
        "num_gpu_blocks_override": 24,
        "max_model_len": 512,
        "max_num_seqs": 6,
        "max_num_batched_tokens": chunk,
        "disable_chunked_mm_input": False,
    }
    job = {"model": str(folder), "plan": plan, "requests": asked, "engine": few}
    answer = run_job(job, tmp_path, "void_run.py")
    wanted = reference.attach_run(model, processor, plan, good, TOKENS)
    for found in answer["rounds"]:
        ended = [found.pop(5), found.pop(1)]
        assert [(f["finish"], f["tokens"]) for f in ended] == [("error", [])] * 2
        for f, w in zip(found, wanted, strict=True):
            assert f["finish"] == "length"
            same, apart = differences(f, w)
            assert same and apart <= LOGPROB
    assert answer["corrupted"] == 4


def test_a_server_says_that_a_picture_is_void(vllm: str, tmp_path: Path) -> None:
    """A projector that overflows: status 500 about a picture, 200 without one, and both counted."""
    model, processor = checkpoints.make("llava")
    folder = checkpoints.save("llava", model, processor, tmp_path)
    path = folder / "model.safetensors"
    weights = {
        k: w * float("inf") if "multi_modal_projector.linear_2.weight" in k else w
        for k, w in load_file(path).items()
    }
    assert not all(w.isfinite().all() for w in weights.values())
    save_file(weights, path, metadata={"format": "pt"})
    args = command(folder, "--additional-config", json.dumps({"foveate": {"plan": PLAN}}))
    with serving(args, free_port(), tmp_path / "server.txt") as server:
        status, answer = server.ask([GOOD])
        assert status == 500 and answer["error"]["message"]
        assert server.ask([])[0] == 200
        with urllib.request.urlopen(f"{server.url}/metrics", timeout=60) as page:
            lines = page.read().decode().splitlines()
    counted = [x for x in lines if x.startswith("vllm:corrupted_requests_total")]
    assert [float(x.rpartition(" ")[2]) for x in counted] == [1.0]
