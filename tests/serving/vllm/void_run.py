"""Requests of which white pictures come out of the vision encoder as infinities, in two rounds through
one engine in process; called by the tests with the Python that has vLLM.

    python void_run.py JOB.json OUT.json

A job as of engine_run.py; the answer: for both rounds, for each request, what engine_run records and
the reason why it ended, and how many requests vLLM itself counts as corrupted.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from engine_run import TOKENS, engine, record, requests

WHITE = 1.0  # mean of the normalised pixels above which a picture is spoiled


def spoil() -> None:
    """Let LLaVA's own encoder overflow on white pictures."""
    from foveate.serve.vllm.startup import stock_class

    stock = stock_class("LlavaForConditionalGeneration")
    own = stock.embed_multimodal

    def embed_multimodal(self: Any, **kwargs: Any) -> Any:
        pixels, found = kwargs["pixel_values"], own(self, **kwargs)
        return [
            f * float("inf") if float(p.mean()) > WHITE else f
            for f, p in zip(found, pixels, strict=True)
        ]

    stock.embed_multimodal = embed_multimodal


def main(job: dict[str, Any]) -> dict[str, Any]:
    from vllm import SamplingParams

    llm = engine(job, disable_log_stats=False)
    spoil()
    sampling = SamplingParams(max_tokens=TOKENS, temperature=0, ignore_eos=True, logprobs=2)
    rounds = []
    for _ in range(2):
        found = llm.generate(requests(job), sampling, use_tqdm=False)
        rounds.append([{**record(llm, o), "finish": o.outputs[0].finish_reason} for o in found])
        llm.reset_prefix_cache()  # blocks are used again; encoded pictures stay
    counts = {m.name: getattr(m, "value", None) for m in llm.get_metrics()}
    return {"rounds": rounds, "corrupted": counts.get("vllm:corrupted_requests")}


if __name__ == "__main__":
    answer = main(json.loads(Path(sys.argv[1]).read_text()))
    Path(sys.argv[2]).write_text(json.dumps(answer))
