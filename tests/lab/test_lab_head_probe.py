"""The probe of heads against attention weights that the model itself returns."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

import foveate
from foveate.core.errors import InputError, SettingError
from foveate.lab import nano_path
from foveate.lab.evidence import COVERED
from foveate.lab.head_probe import character_boxes, probe_heads, sample_hits, write_scores
from foveate.lab.tasks import samples
from foveate.memory.sparsemm import load_scores


def test_character_boxes_share_the_width() -> None:
    assert character_boxes((10, 5, 40, 20), ["A", "7", "K"]) == [
        (10, 5, 20, 20), (20, 5, 30, 20), (30, 5, 40, 20),
    ]  # fmt: skip
    assert character_boxes((0, 0, 30, 9), ["AB", "C"]) == [(0, 0, 20, 9), (20, 0, 30, 9)]


@torch.no_grad()
def test_hits_are_those_of_the_models_own_attention() -> None:
    engine = foveate.Engine.from_pretrained(nano_path())
    sample = samples("code", "train", 3)[2]
    got = sample_hits(engine, sample)
    ids = engine.processor.tokenizer(sample.answer, add_special_tokens=False)["input_ids"]
    assert got is not None and len(ids) == len(sample.answer)
    request = engine.prepare(foveate.Request(sample.question, images=sample.images))
    inputs = engine.preprocessed([request], foveate.Plan.parse(None)).inputs
    more = torch.tensor([ids[:-1]])
    inputs["input_ids"] = torch.cat([inputs["input_ids"], more], 1)
    inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
    engine.model.set_attn_implementation("eager")
    out = engine.model(**inputs, output_attentions=True)
    image = engine.adapter.token_id("image")
    visual = np.flatnonzero(inputs["input_ids"][0].numpy() == image)
    side = round(len(visual) ** 0.5)
    step = sample.image.width / side
    left, top, right, bottom = sample.boxes[0]
    n, count = inputs["input_ids"].shape[1], len(ids)
    for layer, attention in enumerate(out.attentions):
        for head in range(attention.shape[1]):
            want = 0.0
            for i in range(count):
                best = int(attention[0, head, n - count + i].argmax())
                a = int(left + (right - left) * i / count)
                b = int(np.ceil(left + (right - left) * (i + 1) / count))
                cells = [
                    v for v in range(side * side) if _covered(v, side, step, (a, top, b, bottom))
                ]
                if best in visual and int(np.flatnonzero(visual == best)[0]) in cells:
                    want += 1 / len(cells)
            assert got[layer, head] == pytest.approx(want)


def _covered(cell: int, side: int, step: float, box: tuple[int, int, int, int]) -> bool:
    """Whether a quarter of a cell's pixels lie in the box, or it holds the box's middle."""
    row, column = divmod(cell, side)
    left, top, right, bottom = box
    wide = max(0.0, min(right, (column + 1) * step) - max(left, column * step))
    high = max(0.0, min(bottom, (row + 1) * step) - max(top, row * step))
    middle = ((top + bottom) // 2 // step, (left + right) // 2 // step)
    return wide * high / step**2 >= COVERED or (row, column) == middle


def test_scores_are_written_as_sparsemm_reads_them(tmp_path: Path) -> None:
    engine = foveate.Engine.from_pretrained(nano_path())
    scores = probe_heads(engine, 3)
    assert scores.shape == (6, 6) and scores.sum() == pytest.approx(1)
    write_scores(scores, tmp_path / "heads.json")
    assert np.allclose(load_scores(str(tmp_path / "heads.json")), scores, atol=1e-6)
    with pytest.raises(InputError, match="cannot be written"):
        write_scores(scores, tmp_path / "no" / "heads.json")
    with pytest.raises(SettingError, match="n must be 1"):
        probe_heads(engine, 0)
