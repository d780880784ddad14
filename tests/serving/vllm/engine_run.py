"""Runs requests through vLLM in process and writes what came out as JSON; called by the tests with
the Python that has vLLM.

    python engine_run.py JOB.json OUT.json

A job: {"model": folder, "plan": text or null, "requests": [{"prompt", "images": [paths], "kwargs"}],
"regimes": ["cold", "hit", "batch", "chunk"], "engine": {...}, "chunk": {...}, "encode_only": bool}.
With encode_only nothing is answered, see disaggregation. Regimes: `cold` one
after another; `hit` the same again, from the prefix cache; `batch` all at once after a reset;
`chunk` a second engine whose chunks split the pictures.
"""

from __future__ import annotations

import gc
import json
import os
import sys
from pathlib import Path
from typing import Any

os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
os.environ.setdefault("VLLM_LOGGING_LEVEL", "WARNING")
os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")
os.environ.setdefault("OMP_NUM_THREADS", "1")

TOKENS = 6


def engine(job: dict[str, Any], **more: Any) -> Any:
    from vllm import LLM

    settings = {
        "model": job["model"],
        "dtype": "float32",
        "max_model_len": 2048,
        "enforce_eager": True,
        "max_num_seqs": 8,
        "block_size": 32,
        "limit_mm_per_prompt": {"image": 2, "video": 0},
        **job.get("engine", {}),
        **more,
    }
    if job.get("plan") is not None:
        own = {"plan": job["plan"], "question": bool(job.get("question"))}
        settings["additional_config"] = {"foveate": own}
    return LLM(**settings)


def video(path: str, fps: float) -> tuple[Any, dict[str, Any]]:
    """Frames (t, H, W, 3) as they are, and what vLLM wants to know of their times."""
    import numpy as np

    frames = np.load(path)
    count = len(frames)
    return frames, {
        "total_num_frames": count,
        "fps": fps,
        "duration": count / fps,
        "video_backend": "opencv",
        "frames_indices": list(range(count)),
        "do_sample_frames": False,
    }


def requests(job: dict[str, Any]) -> list[dict[str, Any]]:
    from PIL import Image

    found = []
    for r in job["requests"]:
        media: dict[str, Any] = {}
        if r.get("images"):
            media["image"] = [Image.open(p).convert("RGB") for p in r["images"]]
        if r.get("videos"):
            media["video"] = [video(p, r["fps"]) for p in r["videos"]]
        one: dict[str, Any] = {"prompt": r["prompt"], "multi_modal_data": media}
        if r.get("kwargs"):
            one["mm_processor_kwargs"] = r["kwargs"]
        found.append(one)
    return found


def record(out: Any) -> dict[str, Any]:
    first = out.outputs[0]
    if first.logprobs is None:
        return {"prompt": len(out.prompt_token_ids)}
    tops = [sorted((x.logprob for x in row.values()), reverse=True) for row in first.logprobs]
    return {
        "cached": out.num_cached_tokens,
        "prompt": len(out.prompt_token_ids),
        "tokens": list(first.token_ids),
        "logprob": first.cumulative_logprob,
        "gaps": [row[0] - row[1] for row in tops],
    }


def encoder_calls(llm: Any) -> list[int]:
    """A list that grows by one with each call of the vision encoder."""
    model = llm.llm_engine.model_executor.driver_worker.worker.model_runner.model
    own, calls = model.embed_multimodal, []

    def embed_multimodal(**kwargs: Any) -> Any:
        calls.append(1)
        return own(**kwargs)

    model.embed_multimodal = embed_multimodal
    return calls


def main(job: dict[str, Any]) -> dict[str, Any]:
    from vllm import SamplingParams

    sampling = SamplingParams(max_tokens=TOKENS, temperature=0, ignore_eos=True, logprobs=2)
    if job.get("encode_only"):
        sampling = SamplingParams(max_tokens=1, temperature=0)
    asked, found = requests(job), {}
    regimes = job["regimes"]

    def run(llm: Any, batch: list[Any]) -> list[Any]:
        return [record(o) for o in llm.generate(batch, sampling, use_tqdm=False)]

    if set(regimes) - {"chunk"}:
        llm = engine(job)
        calls = encoder_calls(llm)
        for regime in ("cold", "hit"):
            if regime in regimes:
                found[regime] = [run(llm, [r])[0] for r in asked]
        if "batch" in regimes:
            llm.reset_prefix_cache()
            found["batch"] = run(llm, asked)
        if job.get("count_calls"):
            found["encoder_calls"] = len(calls)
        del llm
        gc.collect()
    if "chunk" in regimes:
        chunks = {"enable_prefix_caching": False, "max_num_seqs": 4, **job["chunk"]}
        llm = engine(job, **chunks)
        found["chunk"] = run(llm, asked)
    return found


if __name__ == "__main__":
    answer = main(json.loads(Path(sys.argv[1]).read_text()))
    Path(sys.argv[2]).write_text(json.dumps(answer))
