"""What a prefill method is told of places in the grid and of a guide's scores."""

from __future__ import annotations

import numpy as np
import pytest

from foveate.core import Plan
from foveate.engine.compress import compress
from foveate.engine.language_door import meta_of
from foveate.models.adapter import adapter_for
from tests.prefill.test_prefill_models import batch
from tests.support import tiny


@pytest.mark.parametrize("name", ["llava_next", "qwen2_5_vl"])
def test_cells_are_places_in_the_grid_and_layout_tokens_have_none(name: str) -> None:
    model = tiny.cached_model(name)
    adapter = adapter_for(model)
    rows, medias = batch(name, model)
    call = {**tiny.pad_batch(rows, "left"), **tiny.join_images(name, medias)}
    full = compress(adapter, Plan.parse("none"), call)
    layout = 0
    for row, meta in zip(full.rows, meta_of(full), strict=True):
        assert (meta.cell[meta.modality == 0] == -1).all()
        for s, grid in enumerate(meta.grids):
            mine = meta.cell[meta.segment == s]
            layout += int((mine == -1).sum())
            assert mine[mine >= 0].tolist() == list(range(int(np.prod(grid))))
            fixed = row.placed[s].piece.fixed
            if fixed is not None:
                assert (mine == -1).tolist() == fixed.tolist()
    assert (layout > 0) == (name == "llava_next")


def test_after_the_encode_stage_cells_and_scores_follow_the_kept_tokens() -> None:
    name = "qwen2_5_vl"
    model = tiny.cached_model(name)
    rows, medias = batch(name, model)
    call = {**tiny.pad_batch(rows, "left"), **tiny.join_images(name, medias)}
    short = compress(adapter_for(model), Plan.parse("divprune:keep=1/3"), call)
    for row in short.rows:
        row.guidance = np.arange(sum(p.piece.n for p in row.placed), dtype=float)
    for row, meta in zip(short.rows, meta_of(short), strict=True):
        start = 0
        for s, (placed, reduction) in enumerate(zip(row.placed, row.reductions, strict=True)):
            mine = meta.segment == s
            assert meta.cell[mine].tolist() == reduction.anchor.tolist()
            assert meta.guidance is not None
            assert (meta.guidance[mine] - start).tolist() == reduction.anchor.tolist()
            start += placed.piece.n
        assert meta.guidance is not None and np.isnan(meta.guidance[meta.modality == 0]).all()
