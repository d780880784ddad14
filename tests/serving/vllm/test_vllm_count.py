"""`foveate.count_tokens` against the placeholders that vLLM's processors make."""

from __future__ import annotations

from pathlib import Path

import pytest

import foveate
from tests.serving.vllm.conftest import run_job

pytest.importorskip("torch")
pytest.importorskip("transformers")

# What needs these packages is imported behind the question whether they are here.
from tests.serving.vllm import checkpoints  # noqa: E402

# newlines=all is what the plug-in serves; "none" must agree too, with vLLM's own counts.
PLANS = ("none", "divprune:keep=1/9", "divprune:per_image=20;newlines=all")
PIXELS = ("downscale:keep=1/3", "downscale:side=60+divprune:keep=1/2", "tiles:keep=1/2")
TILED = ("smolvlm", "idefics3", "internvl")
SIZES = ((112, 80), (64, 128), (96, 96), (300, 40), (56, 57), (240, 168))


def test_counts_are_vllms_own(vllm: str, tmp_path: Path) -> None:
    paths = []
    for i, size in enumerate(SIZES):
        paths.append(str(tmp_path / f"{i}.png"))
        checkpoints.picture(i, (400, 400)).crop((0, 0, *size)).save(paths[-1])
    jobs, cases = [], []
    for name, family in checkpoints.FAMILIES.items():
        folder = checkpoints.save(name, *checkpoints.make(name), tmp_path)
        for plan in (*PLANS, *(p for p in PIXELS if _follows(name, p))):
            jobs.append(
                {"model": str(folder), "plan": plan, "prompt": family.mark, "images": paths}
            )
            cases.append((name, plan, folder))
    found = run_job(jobs, tmp_path, "count_run.py")
    assert len(found) == len(cases)
    for (name, plan, folder), counts in zip(cases, found, strict=True):
        expected = [foveate.count_tokens(*size, plan, folder) for size in SIZES]
        assert counts == expected, (vllm, name, plan)


def _follows(family: str, plan: str) -> bool:
    """Whether vLLM can show pictures of a family as the plan asks; LLaVA takes one size."""
    return family in TILED if plan.startswith("tiles") else family != "llava"
