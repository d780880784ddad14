"""V1: greedy tokens and log-probabilities of vLLM with the plug-in are those of `foveate.attach`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.serving.vllm.conftest import connector, run_job, vllm_python

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

# What needs these packages is imported behind the question whether they are here.
from tests.serving.vllm import checkpoints, reference  # noqa: E402

TOKENS = 6
LOGPROB = 1e-4
GAP = 1e-4
QUESTIONS = (
    "what?",
    "what colour is it, and is there a second one?",
)
AT_ONCE = 8
REGIMES = ("cold", "hit", "batch", "chunk", "apart")


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
    Case("idefics3", "divprune:per_image=96"),
    Case("llava_onevision", "visionzip:keep=1/2;newlines=all", chunk=180),
    Case("qwen2_vl", "visionzip:keep=1/2"),
    Case("qwen3_vl", "visionzip:keep=1/2"),
    Case("qwen3_vl_moe", "visionzip:keep=1/2"),
    Case("internvl", "visionzip:keep=1/2"),
)


def requests_of(family: str, folder: Path) -> list[dict[str, Any]]:
    """Landscape, portrait and square, each with a short and a long question; then twice two pictures:
    eight requests.
    """
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
    return [*found, *({"prompt": two, "images": paths[i : i + 2]} for i in range(2))]


def skip_where_stock_fails(case: Case, version: str, *, videos: bool = False) -> None:
    if case.family.startswith("qwen3_vl") and version.startswith("0.28"):
        pytest.skip("vLLM 0.28 itself cannot load Qwen3-VL on a CPU (IndexError in use_mla)")
    if videos and case.family == "qwen2_5_vl" and version.startswith("0.28"):
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
    Case("qwen3_vl", "evs:keep=1/2", chunk=64),
    Case("qwen3_vl", "vidcom2:keep=1/3", chunk=64),
    Case("qwen3_vl", "vidcom2:keep=1/3;positions=renumber", ("cold", "hit"), chunk=64),
    Case("qwen3_vl", "none", ("cold", "chunk"), chunk=64),
    Case("qwen3_vl_moe", "evs:keep=1/2", chunk=64),
    Case("qwen3_vl_moe", "vidcom2:keep=1/3", ("cold", "hit"), chunk=64),
    Case("llava_onevision", "evs:keep=1/2", chunk=150),
    Case("internvl", "vidcom2:keep=1/3", chunk=48),
    Case("internvl", "visionzip:keep=1/2", ("cold", "hit"), chunk=48),
)
VIDEO_SIZES = {"llava_onevision": ((56, 56),) * 2, "internvl": ((112, 112),) * 2}
TOKENS_OF = {
    "llava_onevision": ("<image>", "<video>"),
    "internvl": ("<IMG_CONTEXT>", "<video>"),
}
QWEN_TOKENS = ("<|image_pad|>", "<|video_pad|>")


def videos_of(family: str, folder: Path) -> list[dict[str, Any]]:
    """A wide and a tall video (or square ones) of different lengths, two questions each; one behind a
    picture, with words between them and with none; and two videos without words between them, where
    the family writes words of its own into each.
    """
    found, paths = [], []
    picture, video = TOKENS_OF.get(family, QWEN_TOKENS)
    mark = video if family in TOKENS_OF else f"<|vision_start|>{video}<|vision_end|>"
    sizes = VIDEO_SIZES.get(family, ((64, 48), (48, 64)))
    for i, (frames, size) in enumerate(zip((8, 6), sizes, strict=True)):
        path = folder / f"{family}-{i}.npy"
        np.save(path, checkpoints.clip(i, frames, size))
        paths.append(str(path))
        found += [
            {"prompt": f"user: {mark}\n{q} assistant:", "videos": [str(path)], "fps": 2.0}
            for q in QUESTIONS
        ]
    known = checkpoints.FAMILIES[family]
    shot = folder / f"{family}.png"
    checkpoints.picture(7, known.sizes[0]).save(shot)
    both = {"images": [str(shot)], "videos": paths[:1], "fps": 2.0}
    found.append({"prompt": f"user: {known.mark} and {mark} which? assistant:", **both})
    found.append({"prompt": f"user: {picture}{video} which? assistant:", **both})
    if family.startswith("qwen3_vl"):
        two = f"user: {video}{video} which? assistant:"
        found.append({"prompt": two, "videos": paths, "fps": 2.0})
    return found


def compared(
    answer: dict[str, Any], wanted: list[dict[str, Any]], record: Callable[[str, object], None]
) -> None:
    """Hold all regimes to the reference and to what they are for, and record how far the furthest is
    off.
    """
    worst = 0.0
    for regime in [r for r in REGIMES if r in answer]:
        found = answer[regime]
        assert [f["prompt"] for f in found] == [w["prompt"] for w in wanted], regime
        for i, (f, w) in enumerate(zip(found, wanted, strict=True)):
            same, apart = differences(f, w)
            assert same, f"{regime}, request {i}: {f['tokens']} and not {w['tokens']}"
            assert apart <= LOGPROB, f"{regime}, request {i}: log-probabilities differ by {apart}"
            worst = max(worst, apart)
    regimes_are_what_they_say(answer, len(wanted))
    record("figure", f"{worst:.1e} with vLLM {vllm_python()[1]}")
    record("bound", f"{LOGPROB:.0e}")


def regimes_are_what_they_say(answer: dict[str, Any], requests: int) -> None:
    """A hit ends and a chunk splits strictly inside a picture, requests at once share a step, and the
    side that answers does not encode.
    """
    if "hit" in answer:
        assert all(f["cached"] > 0 for f in answer["hit"])
        assert any(inside(f["cached"], f) for f in answer["hit"]), [
            (f["cached"], f["runs"]) for f in answer["hit"]
        ]
    if "batch" in answer:
        assert answer["together"] == min(requests, AT_ONCE)
    if "chunk" in answer:
        split = zip(answer["borders"], answer["chunk"], strict=True)
        assert any(inside(end, f) for ends, f in split for end in ends), answer["borders"]
    if "apart" in answer:
        encoded, again = answer["apart_calls"]
        assert encoded > 0 and again == 0


def inside(place: int, found: dict[str, Any]) -> bool:
    """Whether a place of a prompt has visual tokens of one run on both of its sides."""
    return any(begin < place < end for begin, end in found["runs"])


def sides_of(case: Case, store: Path) -> dict[str, Any]:
    """Options of the engine that encodes and of the one that answers. vLLM 0.28 itself, without the
    plug-in too, cannot run the encoder alone of some families, and encodes with the whole model there.
    """
    sides = {role: connector(role, store) for role in ("producer", "consumer")}
    if vllm_python()[1].startswith("0.28") and case.family in ("smolvlm", "idefics3", "internvl"):
        del sides["producer"]["mm_encoder_only"]
    return sides


def job_of(case: Case, folder: Path, asked: list[dict[str, Any]], **engine: Any) -> dict[str, Any]:
    return {
        "model": str(folder),
        "plan": case.plan,
        "requests": asked,
        "regimes": list(case.regimes),
        "engine": engine,
        "sides": sides_of(case, folder.parent / "store"),
        "chunk": {"max_num_batched_tokens": case.chunk, "disable_chunked_mm_input": False},
    }


@pytest.mark.claim("V1")
@pytest.mark.parametrize("case", CASES, ids=lambda c: f"{c.family}-{c.plan.split(':')[0]}")
def test_answers_are_those_of_attach(
    case: Case, vllm: str, tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    """Tokens equal and log-probabilities within 1e-4 in five regimes, for three shapes and for two
    pictures.
    """
    skip_where_stock_fails(case, vllm)
    model, processor = checkpoints.make(case.family)
    folder = checkpoints.save(case.family, model, processor, tmp_path)
    asked = requests_of(case.family, tmp_path)
    wanted = reference.attach_run(model, processor, case.plan, asked, TOKENS)
    compared(run_job(job_of(case, folder, asked), tmp_path), wanted, record_property)


@pytest.mark.claim("V1")
@pytest.mark.parametrize("case", VIDEOS, ids=lambda c: f"{c.family}-{c.plan}")
def test_answers_about_videos_are_those_of_attach(
    case: Case, vllm: str, tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    """Videos under the rules of EVS and VidCom2, with exact counts and each token's own position."""
    skip_where_stock_fails(case, vllm, videos=True)
    model, processor = checkpoints.make(case.family)
    folder = checkpoints.save(case.family, model, processor, tmp_path)
    asked = videos_of(case.family, tmp_path)
    wanted = reference.attach_run(model, processor, case.plan, asked, TOKENS)
    limits = {"image": 1, "video": 2}
    job = job_of(case, folder, asked, limit_mm_per_prompt=limits, max_model_len=4096)
    compared(run_job(job, tmp_path), wanted, record_property)


@pytest.mark.claim("V1")
@pytest.mark.parametrize("family", ["qwen2_5_vl", "qwen3_vl"])
def test_positions_may_go_beyond_the_length_of_the_context(
    family: str, vllm: str, tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    """Text behind wide pictures stands where whole ones would have put it, which may be further than
    any place of a prompt that fits: vLLM's rotary tables must reach there.
    """
    case = Case(family, "divprune:per_image=8", ("cold", "hit"))
    skip_where_stock_fails(case, vllm)
    model, processor = checkpoints.make(family)
    length = 192
    model.config.get_text_config().max_position_embeddings = length
    folder = checkpoints.save(family, model, processor, tmp_path)
    wide = tmp_path / "wide.png"
    checkpoints.picture(3, (512, 16)).save(wide)
    mark = checkpoints.FAMILIES[family].mark
    asked = [{"prompt": f"user: {mark * 6} which? assistant:", "images": [str(wide)] * 6}]
    wanted = reference.attach_run(model, processor, case.plan, asked, TOKENS)
    limits = {"image": 6, "video": 0}
    job = job_of(case, folder, asked, limit_mm_per_prompt=limits, max_model_len=length)
    answer = run_job(job, tmp_path)
    assert wanted[0]["prompt"] < length < 6 * 64
    for regime in case.regimes:
        same, apart = differences(answer[regime][0], wanted[0])
        assert same and apart <= LOGPROB, (regime, apart)


@pytest.mark.claim("V1")
def test_lab_nano_answers_as_in_attach(
    vllm: str, tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    """The bundled model on rendered pictures, on a wide and a tall part of one, and on two."""
    from foveate.lab.tasks import samples

    case = Case("lab-nano", "divprune:keep=1/2", REGIMES)
    model, processor, folder = checkpoints.save_lab_nano(tmp_path)
    processor.image_processor.resample = checkpoints.NEAREST  # parts are enlarged in whole steps
    processor.save_pretrained(folder)
    asked, paths = [], []

    def ask(question: str, *pictures: Any) -> None:
        for picture in pictures:
            paths.append(str(tmp_path / f"{len(paths)}.png"))
            picture.save(paths[-1])
        marks = " and ".join(["<image>"] * len(pictures))
        prompt = f"{marks} {question.rstrip(' ?')}"
        asked.append({"prompt": prompt, "images": paths[len(paths) - len(pictures) :]})

    for name in ("shape", "count", "table", "code"):
        (sample,) = samples(name, n=1)
        ask(sample.question, sample.image)
    wide, tall = (0, 0, 112, 56), (0, 0, 56, 112)
    (one,), (two,) = samples("exists", n=1), samples("bar", n=1)
    ask(one.question, one.image.crop(wide))
    ask(two.question, two.image.crop(tall))
    ask(one.question, one.image, two.image)
    ask(two.question, two.image.crop(tall), one.image.crop(wide))
    wanted = reference.attach_run(model, processor, case.plan, asked, TOKENS)
    compared(run_job(job_of(case, folder, asked), tmp_path), wanted, record_property)


@pytest.mark.claim("V1")
def test_a_method_that_reads_the_question_has_it_in_the_key(
    vllm: str, tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    """By explicit choice: answers as in attach, and no block of the picture is shared by two
    questions, for each question keeps other tokens.
    """
    case = Case("llava", "cdpruner-lm:keep=1/2", ("cold", "hit"))
    model, processor = checkpoints.make(case.family)
    folder = checkpoints.save(case.family, model, processor, tmp_path)
    asked = requests_of(case.family, tmp_path)[:4]
    wanted = reference.attach_run(model, processor, case.plan, asked, TOKENS)
    job = job_of(case, folder, asked)
    answer = run_job({**job, "question": True}, tmp_path)
    compared(answer, wanted, record_property)
    assert [f["cached"] for f in answer["cold"]] == [0] * len(asked)
