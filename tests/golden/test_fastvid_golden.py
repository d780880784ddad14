"""FastVID against the authors' code: segments, kept positions, merged features."""

from __future__ import annotations

import numpy as np
import pytest

from foveate.core import arrays
from foveate.encode.tokens.fastvid import cut, fast_video, split
from tests.golden.golden_cases import TOLERANCE, Case, cases

pytestmark = [pytest.mark.claim("F10"), pytest.mark.claim("C1")]


@pytest.mark.parametrize("case", cases("fastvid"), ids=str)
def test_fastvid(case: Case) -> None:
    s = case.settings
    frames = case.inputs["frame_feature"]
    t, size, start = len(frames), s["frame_tokens"], s["start"]
    lengths = cut(frames, s["c"], s["tau"])
    segments = case.outputs["segments"].tolist()
    assert lengths == segments
    hidden = case.inputs["hidden"][0]
    x = hidden[start : start + t * size]
    budget = np.full(t, int(size * s["ratio"]))
    parts = split(budget, lengths, size, s["d"], s["p"])
    reduction = fast_video(x, case.inputs["attn"], lengths, parts, s["beta"], s["p"])
    reduction.check()
    after = start + t * size
    keep = np.concatenate(
        [np.arange(start), start + reduction.anchor, np.arange(after, hidden.shape[0])]
    )
    assert keep.tolist() == case.outputs["keep"].tolist()
    out = np.concatenate([hidden[:start], arrays.apply(reduction, x), hidden[after:]])
    assert np.allclose(out, case.outputs["out"], **TOLERANCE)
