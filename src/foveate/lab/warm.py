"""Starting a run from the weights of an earlier model: training goes on after the vocabulary has grown."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import torch

from foveate.core.errors import CheckpointError

if TYPE_CHECKING:
    from transformers import LlavaForConditionalGeneration, PreTrainedTokenizerFast


def warm_start(
    model: LlavaForConditionalGeneration, tokenizer: PreTrainedTokenizerFast, folder: Path
) -> int:
    """Copy the weights of a lab model folder into `model`, in place; rows of the tied embedding are
    matched by the text of their token, so that a larger vocabulary keeps what the smaller one knew.

    Returns the number of embedding rows that start anew. Errors: CheckpointError for a folder that
    is no lab model, is damaged, or has another geometry.
    """
    from transformers import AutoTokenizer, LlavaForConditionalGeneration

    try:
        known = AutoTokenizer.from_pretrained(folder)
        old = LlavaForConditionalGeneration.from_pretrained(folder, dtype=torch.float32)
    except Exception as error:  # transformers names no class for a damaged folder
        raise CheckpointError(
            f"{folder} cannot start a run ({type(error).__name__}): "
            "name a folder that `foveate.lab.export` wrote"
        ) from error
    table, old_table = model.get_input_embeddings().weight, old.get_input_embeddings().weight
    shared = {id(table)}
    with torch.no_grad():
        rest = dict(old.named_parameters())
        for name, weight in model.named_parameters():
            if id(weight) in shared:
                continue
            if name not in rest or rest[name].shape != weight.shape:
                raise CheckpointError(
                    f"{folder} has another geometry than the recipe: {name} is "
                    f"{tuple(rest[name].shape) if name in rest else 'absent'} there and "
                    f"{tuple(weight.shape)} here"
                )
            weight.copy_(rest[name])
        ids = known.get_vocab()
        fresh = 0
        for token, row in tokenizer.get_vocab().items():
            if token in ids:
                table[row] = old_table[ids[token]]
            else:
                fresh += 1
    return fresh
