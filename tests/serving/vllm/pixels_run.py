"""Asks vLLM's processor, without an engine, what pixel methods make of pictures however they come, and
what its cache does with them.

    python pixels_run.py JOB.json OUT.json

A job: {"model": folder, "prompt": text, "picture": path, "cases": [[plan of the server, plan of the
request or null]]}. The answer holds for each case: `ways`, by the way in which the picture came, its
placeholders, the sum of its processed pixels and its key; and what the cache did (see `cached`).
"""

from __future__ import annotations

import inspect
import json
import os
import sys
from pathlib import Path
from typing import Any
from unittest.mock import patch

os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("VLLM_LOGGING_LEVEL", "WARNING")
os.environ.setdefault("OMP_NUM_THREADS", "1")


class Server:
    """vLLM's processor of one engine config, with its cache of processed items or without."""

    def __init__(self, job: dict[str, Any], plan: str) -> None:
        from vllm.engine.arg_utils import EngineArgs

        made = EngineArgs(
            model=job["model"],
            dtype="float32",
            max_model_len=2048,
            enforce_eager=True,
            limit_mm_per_prompt={"image": 1, "video": 0},
            additional_config={"foveate": {"plan": plan}},
        ).create_engine_config()
        self.config, self.prompt = made.model_config, job["prompt"]

    def processor(self, cache: Any) -> Any:
        from vllm.multimodal import MULTIMODAL_REGISTRY

        make = MULTIMODAL_REGISTRY.create_processor
        own = {"cache": cache} if "cache" in inspect.signature(make).parameters else {}
        return make(self.config, **own)

    def ask(
        self, processor: Any, picture: Any, plan: str | None, cache: Any = None, uuid: Any = None
    ) -> dict[str, Any]:
        from vllm.multimodal.processing import ProcessorInputs, TimingContext

        items = processor.info.parse_mm_data({"image": [picture]})
        inputs = ProcessorInputs(
            processor.info.get_tokenizer().encode(self.prompt),
            items,
            {"image": [uuid]} if uuid else None,
            hf_processor_mm_kwargs={} if plan is None else {"foveate_plan": plan},
        )
        if cache is not None and hasattr(inputs, "cache"):
            inputs.cache = cache
        out = processor.apply(inputs, TimingContext(enabled=False))
        (span,) = out["mm_placeholders"]["image"]
        fields = out["mm_kwargs"]["image"][0]
        return {
            "tokens": int(span.length if span.is_embed is None else span.is_embed.sum()),
            "pixels": float(fields["pixel_values"].data.double().sum()),
            "key": out["mm_hashes"]["image"][0],
        }


def ways(path: str) -> dict[str, Any]:
    """One picture in all the ways in which a client may send it."""
    import numpy as np
    import torch
    from PIL import Image
    from vllm.multimodal.media import MediaWithBytes

    picture = Image.open(path).convert("RGB")
    array = np.asarray(picture)
    return {
        "pil": picture,
        "rows": array,
        "planes": torch.from_numpy(array.transpose(2, 0, 1).copy()),
        "file": MediaWithBytes(picture, Path(path).read_bytes()),
    }


def cached(server: Server, picture: Any, plan: str | None) -> dict[str, Any]:
    """looked: pictures that the method was asked for, after each of: a first request, the same again,
    another plan, one with an id, the id alone. The answers beside them.
    """
    from vllm.multimodal.cache import MultiModalProcessorOnlyCache

    from foveate.serve.vllm.pixels import Looking

    cache = MultiModalProcessorOnlyCache(server.config)
    processor = server.processor(cache)
    answers, looked = [], []
    asked = ((picture, plan, None), (picture, plan, None), (picture, "none", None),
             (picture, plan, "an-id"), (None, plan, "an-id"))  # fmt: skip
    spied = {"autospec": True, "side_effect": Looking._plan}
    with patch.object(Looking, "_plan", **spied) as looks:
        for what, how, uuid in asked:
            answers.append(server.ask(processor, what, how, cache, uuid))
            looked.append(looks.call_count)
    return {"looked": looked, "answers": answers}


def main(job: dict[str, Any]) -> list[Any]:
    from PIL import Image

    found = []
    for plan, own in job["cases"]:
        server = Server(job, plan)
        processor = server.processor(None)
        pictures = ways(job["picture"])
        tiny = Image.new("RGB", (1, 1), (200, 10, 10))
        found.append(
            {
                "ways": {k: server.ask(processor, p, own) for k, p in pictures.items()},
                "tiny": server.ask(processor, tiny, own),
                "cache": cached(server, pictures["file"], own),
            }
        )
    return found


if __name__ == "__main__":
    from vllm.plugins import load_general_plugins

    load_general_plugins()
    Path(sys.argv[2]).write_text(json.dumps(main(json.loads(Path(sys.argv[1]).read_text()))))
