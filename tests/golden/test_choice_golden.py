"""EVS, FasterVLM, VisPruner and CDPruner against the authors' code."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from foveate.core import Counts, PlanRng, Question, arrays
from foveate.core.views import Attention
from foveate.encode.tokens._common import saliency
from foveate.encode.tokens.cdpruner import CDPrunerCLIP, mean_cosine, to_unit_range
from foveate.encode.tokens.evs import EVS
from foveate.encode.tokens.fastervlm import FasterVLM
from foveate.encode.tokens.vispruner import VisPruner
from tests.golden.golden_cases import TOLERANCE, Case, cases, segment

pytestmark = [pytest.mark.claim("F10"), pytest.mark.claim("C1")]

RNG = PlanRng(0)


@pytest.mark.parametrize("case", cases("evs"), ids=str)
def test_evs(case: Case) -> None:
    x, s = case.inputs["x"], case.settings
    grid = (s["t"], s["h"] // 2, s["w"] // 2)
    if grid[0] * grid[1] * grid[2] != x.shape[0]:
        grid = (s["t"], 1, x.shape[0] // s["t"])
    method = EVS(per_image=1)
    k = method.count(grid, int(x.shape[0] * (1 - s["q"])))
    kept = method.select([segment(x, grid=grid, kind="video")], Counts(k, (k,)), None, RNG)[0]
    assert kept.is_pick
    assert kept.anchor.tolist() == np.flatnonzero(case.outputs["mask"]).tolist()


@pytest.mark.parametrize("case", cases("fastervlm"), ids=str)
def test_fastervlm(case: Case) -> None:
    k = case.settings["keep"]
    for b, attention in enumerate(case.inputs["attn_cls"]):
        item = segment(
            np.ones((attention.shape[1], 2), np.float32), at={-2: Attention(cls=attention)}
        )
        assert np.allclose(saliency(item, -2, "test"), case.outputs["score"][b], **TOLERANCE)
        kept = FasterVLM(per_image=k).select([item], Counts(k, (k,)), None, RNG)[0]
        assert kept.anchor.tolist() == arrays.nonzero(case.outputs["mask"][b]).tolist()


@pytest.mark.parametrize("case", cases("vispruner"), ids=str)
def test_vispruner(case: Case) -> None:
    k = case.settings["keep"]
    method = VisPruner(per_image=k, important=case.settings["important_ratio"])
    for b, features in enumerate(case.inputs["features"]):
        item = segment(features, at={-2: Attention(cls=case.inputs["attn_cls"][b])})
        kept = method.select([item], Counts(k, (k,)), None, RNG)[0]
        assert kept.anchor.tolist() == arrays.nonzero(case.outputs["mask"][b]).tolist()


@pytest.mark.parametrize("case", cases("cdpruner"), ids=str)
def test_cdpruner(case: Case) -> None:
    k = case.settings["keep"]
    texts = case.inputs["text_embeds"]
    raw = [-mean_cosine(patches, texts) for patches in case.inputs["image_embeds"]]
    shared = to_unit_range(np.concatenate(raw)).reshape(len(raw), -1)
    for b, features in enumerate(case.inputs["features"]):
        expected = arrays.nonzero(case.outputs["mask"][b]).tolist()
        # Their minimum and maximum run over the batch; a batch of one is the method itself.
        assert sorted(arrays.greedy_dpp(features, shared[b], k).tolist()) == expected
        if len(raw) == len(texts) == 1:
            item = segment(features)
            joint = case.inputs["image_embeds"][b]
            item = replace(item, encoder=replace(item.encoder, joint=joint))
            ask = Question(0, np.zeros(1), np.ones((1, 2)), texts[0])
            kept = CDPrunerCLIP(per_image=k).select([item], Counts(k, (k,)), ask, RNG)[0]
            assert kept.anchor.tolist() == expected
