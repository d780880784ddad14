"""AIM's merging and PruMerge(+) against the authors' code."""

from __future__ import annotations

import numpy as np
import pytest

from foveate.core import Reduction, arrays
from foveate.encode.tokens.aim import merge_rounds
from foveate.encode.tokens.prumerge import PruMerge, PruMergePlus, fold, outliers
from tests.golden.golden_cases import TOLERANCE, Case, cases

pytestmark = [pytest.mark.claim("F10"), pytest.mark.claim("C1")]


def ordered(x: np.ndarray) -> np.ndarray:
    """Rows in an order that does not depend on who made them: by their rounded values."""
    return x[np.lexsort(np.round(x, 3).T[::-1])]


@pytest.mark.parametrize("case", [c for c in cases("aim") if "x" in c.inputs], ids=str)
def test_aim_merging(case: Case) -> None:
    for b, x in enumerate(case.inputs["x"]):
        expected = case.outputs["merged"][b]
        metric = case.inputs["metric"][b] if "metric" in case.inputs else None
        anchor, row, weight = merge_rounds(x, expected.shape[0], metric)
        # In their own order, before ours is sorted by place.
        plain = np.zeros((anchor.size, x.shape[0]))
        plain[row, np.arange(x.shape[0])] = weight
        assert np.allclose(plain @ x, expected, **TOLERANCE)
        reduction = Reduction.of(anchor, row, np.arange(x.shape[0]), weight, x.shape[0])
        reduction.check()
        assert np.allclose(ordered(arrays.apply(reduction, x)), ordered(expected), **TOLERANCE)


def single_head(query: np.ndarray, key: np.ndarray) -> np.ndarray:
    """CLS attention of the patches as the authors compute it: one head over the full width."""
    logits = (key @ query[0]).astype(np.float64) / np.sqrt(query.shape[1])
    weights = np.exp(logits - logits.max())
    return (weights / weights.sum())[1:]


@pytest.mark.parametrize("case", cases("prumerge"), ids=str)
def test_prumerge(case: Case) -> None:
    features, query, key = (case.inputs[name][0] for name in ("features", "query", "key"))
    score = single_head(query, key)
    expected = case.outputs["index"]
    method = PruMergePlus() if case.settings["plus"] else PruMerge()
    chosen = method.chosen(score, None)
    # Their count, int(N * (outliers / N)), may lose one to rounding; ours is the count itself.
    lost = outliers(score) - int(len(score) * (outliers(score) / len(score)))
    if not case.settings["plus"]:
        assert chosen.size == expected.size + lost
        chosen = method.chosen(score, expected.size + 1)
    assert chosen.tolist() == np.sort(expected).tolist()
    reduction = fold(score, key[1:], chosen, case.settings["neighbours"], "encoder")
    reduction.check()
    # Theirs: chosen tokens by falling attention, then the samples, then the sum of the rest.
    last = int(np.setdiff1d(reduction.anchor, chosen)[0])
    order = [int(np.flatnonzero(reduction.anchor == i)[0]) for i in [*expected.tolist(), last]]
    got = arrays.apply(reduction, features)[order]
    assert np.allclose(got, case.outputs["tokens"][0], **TOLERANCE)
