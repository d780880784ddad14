"""A vision-language model as a plain function: pictures and questions in, answers out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from PIL import Image

from foveate.core.errors import CheckpointError, InputError

from .nano import check_safetensors

Generate = Callable[[Sequence[Image.Image], Sequence[str]], list[str]]
"""What the evaluator drives: one answer for each picture and question."""


class Reader:
    """A local model folder, asked greedily in batches. Calling it is a `Generate`."""

    def __init__(self, folder: Path, batch: int = 25, device: str = "cpu") -> None:
        from transformers import AutoModelForImageTextToText, AutoProcessor

        if batch < 1:
            raise InputError(f"batch must be 1 or more, got {batch}")
        if not (folder / "config.json").is_file():
            raise CheckpointError(
                f"{folder} has no config.json: name the folder of a vision-language model"
            )
        weights = sorted(folder.glob("*.safetensors"))
        if not weights:
            raise CheckpointError(
                f"{folder} has no safetensors weights; other formats are not read"
            )
        for file in weights:
            check_safetensors(file)
        try:
            self.processor = AutoProcessor.from_pretrained(folder)
            self.model = AutoModelForImageTextToText.from_pretrained(folder, use_safetensors=True)
        except (ValueError, KeyError, OSError) as error:
            raise CheckpointError(
                f"{folder} is no vision-language model that can be loaded: {error}"
            ) from error
        if not hasattr(self.processor, "image_processor"):
            raise CheckpointError(
                f"{folder} has no image processor: it is no vision-language model"
            )
        self.model.to(device).eval()
        self.batch = batch
        self.device = device

    def prompt(self, question: str) -> str:
        """The chat prompt of one picture and one question."""
        content = [{"type": "image"}, {"type": "text", "text": question}]
        turn = [{"role": "user", "content": content}]
        return str(
            self.processor.apply_chat_template(turn, add_generation_prompt=True, tokenize=False)
        )

    @torch.no_grad()
    def __call__(self, images: Sequence[Image.Image], questions: Sequence[str]) -> list[str]:
        if len(images) != len(questions):
            raise InputError(
                f"{len(images)} pictures for {len(questions)} questions: there must be one for each"
            )
        answers: list[str] = []
        for at in range(0, len(images), self.batch):
            part = slice(at, at + self.batch)
            inputs = self.processor(
                images=list(images[part]),
                text=[self.prompt(question) for question in questions[part]],
                padding=True,
                padding_side="left",
                add_special_tokens=False,
                return_tensors="pt",
            ).to(self.device)
            out = self.model.generate(**inputs, do_sample=False, max_new_tokens=8)
            new = out[:, inputs["input_ids"].shape[1] :]
            answers += [
                text.strip() for text in self.processor.batch_decode(new, skip_special_tokens=True)
            ]
        return answers
