"""From a training run to a stock LLaVA folder: half-precision weights, configs, processor and
tokenizer files.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

from foveate.core.errors import CheckpointError

from . import checkpoint
from .recipe import from_dict
from .tokenizer import BOS, EOS, PAD, build_processor, build_tokenizer

if TYPE_CHECKING:
    from transformers import LlavaForConditionalGeneration

MAX_ANSWER_TOKENS = 8


def load_run(run: Path) -> tuple[LlavaForConditionalGeneration, checkpoint.State]:
    """The model of a run folder in float32, evaluation mode. Errors: CheckpointError if there is no
    whole run.
    """
    from .network import build

    state = checkpoint.load(run)
    if state is None:
        raise CheckpointError(
            f"{run} holds no {checkpoint.NAME}: train first with `python -m foveate.lab.train`"
        )
    model, _ = build(from_dict(state.recipe).model, len(build_tokenizer()), 0)
    model.load_state_dict(state.model)
    return model.eval(), state


def export(run: Path, folder: Path) -> None:
    """Write the model of a run as a folder that `from_pretrained` loads.

    Weights are stored in float16 (half the bytes); the config says float32, so that a CPU computes
    in float32 unless the caller asks for another dtype.
    """
    import torch
    from transformers import GenerationConfig

    model, state = load_run(run)
    recipe = from_dict(state.recipe)
    tokenizer = build_tokenizer()
    folder.mkdir(parents=True, exist_ok=True)
    model.generation_config = GenerationConfig(
        bos_token_id=BOS,
        eos_token_id=EOS,
        pad_token_id=PAD,
        do_sample=False,
        max_new_tokens=MAX_ANSWER_TOKENS,
    )
    model.to(torch.float16).save_pretrained(folder)
    build_processor(recipe.model.patch, tokenizer).save_pretrained(folder)
    _say_float32(folder / "config.json")
    (folder / "model.safetensors").chmod(0o644)  # safetensors writes it for the owner alone


def _say_float32(file: Path) -> None:
    config = json.loads(file.read_text("utf-8"))
    for part in (config, config["text_config"], config["vision_config"]):
        part["dtype"] = "float32"
    file.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", "utf-8")
