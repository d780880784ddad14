"""What `foveate.attach` says of the same requests: tokens, summed log-probabilities, kept tokens."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from PIL import Image

import foveate


def inputs_of(processor: Any, request: dict[str, Any]) -> Any:
    """What the family's processor makes of a request's pictures or videos."""
    media: dict[str, Any] = {}
    if request.get("images"):
        media["images"] = [Image.open(p).convert("RGB") for p in request["images"]]
    if request.get("videos"):
        frames = [np.load(p) for p in request["videos"]]
        media["videos"] = frames
        media["do_sample_frames"] = False
        media["video_metadata"] = [
            {
                "total_num_frames": len(f),
                "fps": request["fps"],
                "frames_indices": list(range(len(f))),
            }
            for f in frames
        ]
    return processor(text=request["prompt"], return_tensors="pt", **media)


def attach_run(
    model: Any, processor: Any, plan: str, requests: list[dict[str, Any]], tokens: int
) -> list[dict[str, Any]]:
    """Greedy answers of `tokens` tokens, one request at a time."""
    return answers(model, processor, plan, [inputs_of(processor, r) for r in requests], tokens)


@torch.no_grad()
def answers(
    model: Any, processor: Any, plan: str, prepared: list[Any], tokens: int
) -> list[dict[str, Any]]:
    """`attach_run` of requests that the processor has seen."""
    found = []
    for inputs in prepared:
        with foveate.attach(model, plan, processor=processor) as state:
            out = model.generate(
                **inputs,
                max_new_tokens=tokens,
                do_sample=False,
                output_logits=True,
                return_dict_in_generate=True,
            )
        length = inputs["input_ids"].shape[1]
        answer = out.sequences[0, length:].tolist()
        rows = [x[0].float().log_softmax(-1) for x in out.logits]
        last = state.last
        row = None if last is None else last.rows[0]
        found.append(
            {
                "prompt": length if row is None else int(row.index.shape[0]),
                "tokens": answer,
                "logprob": float(sum(r[t] for r, t in zip(rows, answer, strict=True))),
                "gaps": [float(-r.topk(2).values.diff()) for r in rows],
                "kept": None if row is None else [r.anchor.tolist() for r in row.reductions],
            }
        )
    return found
