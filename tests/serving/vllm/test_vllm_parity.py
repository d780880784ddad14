"""V1: greedy tokens and log-probabilities of vLLM with the plug-in are those of `foveate.attach`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.serving.vllm.conftest import run_job, vllm_python

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from tests.serving.vllm import checkpoints, reference  # noqa: E402

TOKENS = 6
LOGPROB = 1e-4
GAP = 1e-4
QUESTIONS = (
    "what is in the picture?",
    "what colour is it, and is there a second one?",
)
REGIMES = ("cold", "hit", "batch", "chunk")


@dataclass(frozen=True)
class Case:
    """A family and a plan. chunk: tokens a step of the regime whose chunks split pictures."""

    family: str
    plan: str
    regimes: tuple[str, ...] = REGIMES
    chunk: int = 48


CASES = (
    Case("llava", "visionzip:keep=1/2"),
    Case("llava", "divprune:keep=1/3", ("cold",)),
    Case("qwen2_5_vl", "visionzip:keep=1/2"),
    Case("qwen2_5_vl", "fastervlm:keep=1/3;positions=renumber", ("cold", "hit")),
    Case("llava_next", "visionzip:keep=1/2;newlines=all"),
    Case("llava_next", "fastervlm:keep=1/9;newlines=all", ("cold",)),
    Case("smolvlm", "visionzip:keep=1/2"),
    Case("idefics3", "divprune:per_image=40", ("cold",)),
    Case("llava_onevision", "visionzip:keep=1/2;newlines=all", chunk=180),
    Case("qwen2_vl", "visionzip:keep=1/2"),
    Case("qwen3_vl", "visionzip:keep=1/2"),
    Case("internvl", "visionzip:keep=1/2"),
)


def requests_of(family: str, folder: Path) -> list[dict[str, Any]]:
    """Landscape, portrait and square, each with a short and a long question; then two pictures."""
    known = checkpoints.FAMILIES[family]
    paths = []
    for i, size in enumerate(known.sizes):
        paths.append(str(folder / f"{family}-{i}.png"))
        checkpoints.picture(i, size).save(paths[-1])
    found = [
        {"prompt": f"user: {known.mark}\n{q} assistant:", "images": [path]}
        for path in paths
        for q in QUESTIONS
    ]
    two = f"user: {known.mark} and {known.mark} which? assistant:"
    return [*found, {"prompt": two, "images": paths[:2]}]


def skip_where_stock_fails(case: Case, version: str) -> None:
    if case.family == "qwen3_vl" and version.startswith("0.28"):
        pytest.skip("vLLM 0.28 itself cannot load Qwen3-VL on a CPU (IndexError in use_mla)")
    if case in VIDEOS and case.family == "qwen2_5_vl" and version.startswith("0.28"):
        pytest.skip(
            "vLLM 0.28 answers about Qwen2.5-VL's videos otherwise than transformers without any plan: "
            "the time between frames differs"
        )


def differences(found: dict[str, Any], wanted: dict[str, Any]) -> tuple[bool, float]:
    """Whether the tokens agree, up to the first place where the reference could not decide, and how
    far the summed log-probabilities are apart.
    """
    for a, b, gap in zip(found["tokens"], wanted["tokens"], wanted["gaps"], strict=True):
        if a != b:
            return gap < GAP, 0.0
    return True, abs(found["logprob"] - wanted["logprob"])


VIDEOS = (
    Case("qwen2_5_vl", "evs:keep=1/2", chunk=64),
    Case("qwen2_5_vl", "vidcom2:keep=1/3", ("cold", "hit"), chunk=64),
    Case("qwen2_vl", "evs:keep=1/2", ("cold", "chunk"), chunk=64),
    Case("llava_onevision", "evs:keep=1/2", chunk=150),
)
QWEN_VIDEO = "<|vision_start|><|video_pad|><|vision_end|>"


def videos_of(family: str, folder: Path) -> list[dict[str, Any]]:
    """A wide and a tall video (OneVision: square ones) of different lengths, two questions each."""
    found = []
    mark = "<video>" if family == "llava_onevision" else QWEN_VIDEO
    sizes = ((56, 56), (56, 56)) if family == "llava_onevision" else ((64, 48), (48, 64))
    for i, (frames, size) in enumerate(zip((8, 6), sizes, strict=True)):
        path = folder / f"{family}-{i}.npy"
        np.save(path, checkpoints.clip(i, frames, size))
        found += [
            {"prompt": f"user: {mark}\n{q} assistant:", "videos": [str(path)], "fps": 2.0}
            for q in QUESTIONS
        ]
    return found


def compared(
    answer: dict[str, Any], wanted: list[dict[str, Any]], record: Callable[[str, object], None]
) -> None:
    """Hold all regimes to the reference and record how far the furthest is off."""
    worst = 0.0
    for regime, found in answer.items():
        assert [f["prompt"] for f in found] == [w["prompt"] for w in wanted], regime
        for i, (f, w) in enumerate(zip(found, wanted, strict=True)):
            same, apart = differences(f, w)
            assert same, f"{regime}, request {i}: {f['tokens']} and not {w['tokens']}"
            assert apart <= LOGPROB, f"{regime}, request {i}: log-probabilities differ by {apart}"
            worst = max(worst, apart)
    if "hit" in answer:
        assert all(f["cached"] > 0 for f in answer["hit"])
    record("figure", f"{worst:.1e} with vLLM {vllm_python()[1]}")
    record("bound", f"{LOGPROB:.0e}")


def job_of(case: Case, folder: Path, asked: list[dict[str, Any]], **engine: Any) -> dict[str, Any]:
    return {
        "model": str(folder),
        "plan": case.plan,
        "requests": asked,
        "regimes": list(case.regimes),
        "engine": engine,
        "chunk": {"max_num_batched_tokens": case.chunk, "disable_chunked_mm_input": False},
    }


@pytest.mark.claim("V1")
@pytest.mark.parametrize("case", CASES, ids=lambda c: f"{c.family}-{c.plan.split(':')[0]}")
def test_answers_are_those_of_attach(
    case: Case, vllm: str, tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    """Tokens equal and log-probabilities within 1e-4 in four regimes, for three shapes and for two
    pictures.
    """
    skip_where_stock_fails(case, vllm)
    model, processor = checkpoints.make(case.family)
    folder = checkpoints.save(case.family, model, processor, tmp_path)
    asked = requests_of(case.family, tmp_path)
    wanted = reference.attach_run(model, processor, case.plan, asked, TOKENS)
    compared(run_job(job_of(case, folder, asked), tmp_path), wanted, record_property)


@pytest.mark.claim("V1")
@pytest.mark.parametrize("case", VIDEOS, ids=lambda c: f"{c.family}-{c.plan.split(':')[0]}")
def test_answers_about_videos_are_those_of_attach(
    case: Case, vllm: str, tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    """Videos under the rules of EVS and VidCom2, with exact counts and each token's own position."""
    skip_where_stock_fails(case, vllm)
    model, processor = checkpoints.make(case.family)
    folder = checkpoints.save(case.family, model, processor, tmp_path)
    asked = videos_of(case.family, tmp_path)
    wanted = reference.attach_run(model, processor, case.plan, asked, TOKENS)
    limits = {"image": 1, "video": 1}
    job = job_of(case, folder, asked, limit_mm_per_prompt=limits, max_model_len=4096)
    compared(run_job(job, tmp_path), wanted, record_property)


@pytest.mark.claim("V1")
def test_lab_nano_answers_as_in_attach(
    vllm: str, tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    """The bundled model on rendered pictures."""
    from foveate.lab.tasks import samples

    case = Case("lab-nano", "divprune:keep=1/2", ("cold", "hit", "batch", "chunk"))
    model, processor, folder = checkpoints.save_lab_nano(tmp_path)
    asked = []
    for i, name in enumerate(("shape", "count", "table")):
        (sample,) = samples(name, n=1)
        path = tmp_path / f"{i}.png"
        sample.image.save(path)
        asked.append({"prompt": f"<image> {sample.question.rstrip(' ?')}", "images": [str(path)]})
    wanted = reference.attach_run(model, processor, case.plan, asked, TOKENS)
    compared(run_job(job_of(case, folder, asked), tmp_path), wanted, record_property)


@pytest.mark.claim("V1")
def test_a_method_that_reads_the_question_has_it_in_the_key(
    vllm: str, tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    """By explicit choice: answers as in attach, and no block of the picture is shared by two
    questions, for each question keeps other tokens.
    """
    case = Case("llava", "cdpruner-lm:keep=1/3", ("cold", "hit"))
    model, processor = checkpoints.make(case.family)
    folder = checkpoints.save(case.family, model, processor, tmp_path)
    asked = requests_of(case.family, tmp_path)[:4]
    wanted = reference.attach_run(model, processor, case.plan, asked, TOKENS)
    job = job_of(case, folder, asked)
    answer = run_job({**job, "question": True}, tmp_path)
    compared(answer, wanted, record_property)
    assert [f["cached"] for f in answer["cold"]] == [0] * len(asked)
