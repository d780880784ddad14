"""Asks vLLM's processors, without an engine, how many placeholders they make of pictures.

    python count_run.py JOB.json OUT.json

A job: [{"model": folder, "plan": text, "prompt": text, "images": [paths]}]; the answer holds, for each
of them, the visual tokens of each picture alone.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("VLLM_LOGGING_LEVEL", "WARNING")
os.environ.setdefault("OMP_NUM_THREADS", "1")


def counts(job: dict[str, Any]) -> list[int]:
    from PIL import Image
    from vllm.engine.arg_utils import EngineArgs
    from vllm.multimodal import MULTIMODAL_REGISTRY
    from vllm.multimodal.processing import ProcessorInputs, TimingContext

    made = EngineArgs(
        model=job["model"],
        dtype="float32",
        max_model_len=2048,
        enforce_eager=True,
        limit_mm_per_prompt={"image": 1, "video": 0},
        additional_config={"foveate": {"plan": job["plan"]}},
    ).create_engine_config()
    processor = MULTIMODAL_REGISTRY.create_processor(made.model_config)
    prompt = processor.info.get_tokenizer().encode(job["prompt"])
    found = []
    for path in job["images"]:
        picture = Image.open(path).convert("RGB")
        items = processor.info.parse_mm_data({"image": [picture]})
        out = processor.apply(ProcessorInputs(prompt, items), TimingContext(enabled=False))
        (span,) = out["mm_placeholders"]["image"]
        found.append(int(span.length if span.is_embed is None else span.is_embed.sum()))
    return found


if __name__ == "__main__":
    from vllm.plugins import load_general_plugins

    load_general_plugins()
    answer = [counts(job) for job in json.loads(Path(sys.argv[1]).read_text())]
    Path(sys.argv[2]).write_text(json.dumps(answer))
