"""Runs requests through vLLM in process and writes what came out as JSON; called by the tests with
the Python that has vLLM.

    python engine_run.py JOB.json OUT.json

A job: {"model": folder, "plan": text or null, "requests": [{"prompt", "images": [paths], "kwargs"}],
"regimes": ["cold", "hit", "batch", "chunk", "apart"], "engine": {...}, "chunk": {...},
"encode_only": bool, "sides": {"producer": {...}, "consumer": {...}}}. With encode_only nothing is
answered. Regimes: `cold` one after another; `hit` the same again, from the prefix cache; `batch` all
at once after a reset; `chunk` a second engine whose chunks split the pictures; `apart` an engine that
only encodes, and then one that takes what it wrote to the store. What the scheduler did with prompts
is recorded beside the answers: `together`, the most requests of one step of `batch`, `borders`, where
chunks of each prompt ended, and `apart_calls`, calls of the vision encoder on either side.
"""

from __future__ import annotations

import gc
import json
import os
import sys
from pathlib import Path
from types import SimpleNamespace
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


def runs_of(llm: Any, ids: list[int]) -> list[tuple[int, int]]:
    """Begin and end of each run of places that visual tokens take in a prompt, with the words that a
    family writes between the frames of a video.
    """
    import numpy as np

    from foveate.serve.vllm.families import family_of

    model = llm.llm_engine.model_config
    family, config = family_of(model.architectures[0]), model.hf_config
    # InternVL's config names no placeholder for videos; its processor's is this one.
    processor = SimpleNamespace(tokenizer=llm.get_tokenizer(), video_token="<video>")
    places = [family.placeholder(config, m, processor) for m in family.modalities]
    inside = np.isin(ids, places).astype(int)
    edges = np.flatnonzero(np.diff(inside, prepend=0, append=0)).tolist()
    if family.between is not None:  # marks around nothing are a frame whose tokens stand first
        marks = (config.vision_start_token_id, config.vision_end_token_id)
        frames = [i + 2 for i, pair in enumerate(zip(ids, ids[1:], strict=False)) if pair == marks]
        for i, end in enumerate(edges[1::2]):
            limit = (*edges, len(ids))[2 * i + 2]
            edges[2 * i + 1] = max([end, *(f for f in frames if end < f <= limit)])
    return list(zip(edges[::2], edges[1::2], strict=True))


def record(llm: Any, out: Any) -> dict[str, Any]:
    first = out.outputs[0]
    if first.logprobs is None:
        return {"prompt": len(out.prompt_token_ids)}
    tops = [sorted((x.logprob for x in row.values()), reverse=True) for row in first.logprobs]
    return {
        "cached": out.num_cached_tokens,
        "prompt": len(out.prompt_token_ids),
        "runs": runs_of(llm, out.prompt_token_ids),
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


def steps(llm: Any) -> list[dict[str, int]]:
    """A list that grows by one with each step of the scheduler: tokens of each request in it."""
    scheduler = llm.llm_engine.engine_core.engine_core.scheduler
    own, found = scheduler.schedule, []

    def schedule(*args: Any, **kwargs: Any) -> Any:
        out = own(*args, **kwargs)
        found.append(dict(out.num_scheduled_tokens))
        return out

    scheduler.schedule = schedule
    return found


def borders(taken: list[dict[str, int]], prompts: list[int]) -> list[list[int]]:
    """Where the chunks of each prompt ended before its end, for an engine without prefix caching that
    serves requests in the order in which they came.
    """
    done: dict[str, list[int]] = {}
    for step in taken:
        for name, n in step.items():
            ends = done.setdefault(name, [])
            ends.append((ends[-1] if ends else 0) + n)
    return [[e for e in ends if e < n] for ends, n in zip(done.values(), prompts, strict=True)]


def apart(job: dict[str, Any], asked: list[Any], sampling: Any) -> dict[str, Any]:
    """The producer's and the consumer's encoder calls, and what the consumer answers."""
    from vllm import SamplingParams
    from vllm.distributed.ec_transfer.ec_transfer_state import ensure_ec_transfer_shutdown

    made, answers = [], []
    for role in ("producer", "consumer"):
        llm = engine(job, **job["sides"][role])
        calls = encoder_calls(llm)
        how = sampling if role == "consumer" else SamplingParams(max_tokens=1, temperature=0)
        answers = [record(llm, llm.generate([r], how, use_tqdm=False)[0]) for r in asked]
        made.append(len(calls))
        ensure_ec_transfer_shutdown()  # one connector a process; the next engine has another role
        del llm
        gc.collect()
    return {"apart": answers, "apart_calls": made}


def main(job: dict[str, Any]) -> dict[str, Any]:
    from vllm import SamplingParams

    sampling = SamplingParams(max_tokens=TOKENS, temperature=0, ignore_eos=True, logprobs=2)
    if job.get("encode_only"):
        sampling = SamplingParams(max_tokens=1, temperature=0)
    asked, found = requests(job), {}
    regimes = job["regimes"]

    def run(llm: Any, batch: list[Any]) -> list[Any]:
        return [record(llm, o) for o in llm.generate(batch, sampling, use_tqdm=False)]

    if set(regimes) - {"chunk", "apart"}:
        llm = engine(job)
        calls = encoder_calls(llm)
        for regime in ("cold", "hit"):
            if regime in regimes:
                found[regime] = [run(llm, [r])[0] for r in asked]
        if "batch" in regimes:
            llm.reset_prefix_cache()
            taken = steps(llm)
            found["batch"] = run(llm, asked)
            found["together"] = max(len(step) for step in taken)
        if job.get("count_calls"):
            found["encoder_calls"] = len(calls)
        del llm
        gc.collect()
    if "chunk" in regimes:
        chunks = {"enable_prefix_caching": False, "max_num_seqs": 4, **job["chunk"]}
        llm = engine(job, **chunks)
        taken = steps(llm)
        found["chunk"] = run(llm, asked)
        found["borders"] = borders(taken, [f["prompt"] for f in found["chunk"]])
        del llm
        gc.collect()
    if "apart" in regimes:
        found |= apart(job, asked, sampling)
    return found


if __name__ == "__main__":
    answer = main(json.loads(Path(sys.argv[1]).read_text()))
    Path(sys.argv[2]).write_text(json.dumps(answer))
