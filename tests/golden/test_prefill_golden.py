"""Methods inside the language model against the authors' code."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest

from foveate.core import arrays
from foveate.prefill._scores import attended, best
from foveate.prefill.aim_pagerank import AIMPageRank, pagerank, rate
from foveate.prefill.dart import DART, claimed
from foveate.prefill.fastv import FastV
from foveate.prefill.sparsevlm import SparseVLM, looking
from tests.golden.golden_cases import TOLERANCE, Case, cases
from tests.prefill.views import ToyView

pytestmark = [pytest.mark.claim("F10"), pytest.mark.claim("C1")]


def tokens(before: int, visual: int, total: int) -> np.ndarray:
    """(S,) modality of a prompt with one picture."""
    out = np.zeros(total, np.int8)
    out[before : before + visual] = 1
    return out


@pytest.mark.parametrize("case", cases("fastv"), ids=str)
def test_fastv(case: Case) -> None:
    s, attention = case.settings, case.inputs["attn"][0]
    length = attention.shape[1]
    matrix = np.zeros((attention.shape[0], length, length), np.float32)
    matrix[:, -1] = attention
    modality = tokens(s["start"], s["visual"], length)
    view = ToyView(np.ones((length, 2), np.float32), modality, attention={"previous": matrix})
    route, _ = FastV(keep=1 - Fraction(str(s["ratio"]))).decide(2, view, None)
    assert route.keep is not None
    text = np.flatnonzero(modality == 0)
    kept = np.sort(np.concatenate([text, view.visual[route.keep.anchor]]))
    assert kept.tolist() == case.outputs["keep"].tolist()


@pytest.mark.parametrize("case", [c for c in cases("aim") if "logits" in c.inputs], ids=str)
def test_aim_pagerank(case: Case) -> None:
    s, logits = case.settings, case.inputs["logits"][0]
    alive, length = case.inputs["valid"][0], logits.shape[1]
    view = ToyView(
        np.ones((length, 2), np.float32),
        tokens(s["system"], s["visual"], length),
        q={"previous": np.ones((logits.shape[0], length, 1), np.float32)},
        logits={"previous": logits},
        layers=28,
    )
    # Their dropped tokens are still in the graph, so it is ranked whole here too.
    score = pagerank(view, s["rounds"], s["temperature"])
    assert np.allclose(score, case.outputs["score"][0], **TOLERANCE)
    method = AIMPageRank()
    assert method.bounds(28) == (14, 22) and s["layer"] + 1 in method.layers(28)
    k = int(rate(s["layer"], 14, 22) * s["visual"])
    visual = view.visual[alive[view.visual]]
    chosen = visual[best(score[visual], k).anchor]
    kept = np.sort(np.concatenate([np.flatnonzero(view.modality == 0), chosen]))
    assert kept.tolist() == np.flatnonzero(case.outputs["keep"][0]).tolist()
    if alive.all():
        route, _ = method.decide(s["layer"] + 1, view, None)
        assert route.keep is not None
        assert view.visual[route.keep.anchor].tolist() == chosen.tolist()


@pytest.mark.parametrize("case", cases("dart"), ids=str)
def test_dart(case: Case) -> None:
    s, keys, hidden = case.settings, case.inputs["key"][0], case.inputs["hidden"][0]
    view = ToyView(hidden, tokens(s["start"], s["visual"], len(hidden)), k={"previous": keys})
    expected = case.outputs["keep"].tolist()
    method = DART(
        keep=Fraction(len(expected), s["visual"]),
        pivots_visual=s["pivot_image"],
        pivots_text=s["pivot_text"],
    )
    first, text = method.pivots(view, len(expected))
    assert sorted([*first, *text]) == sorted(case.outputs["pivot_order"].tolist())
    # Their pivots claim in the order of a hash set, which decides who gets what.
    order = case.outputs["pivot_order"].astype(np.int64)
    likeness = arrays.cosine(hidden[order], hidden[view.visual])
    taken = arrays.mask_of(np.searchsorted(view.visual, first), s["visual"])
    each = (len(expected) - first.size) // order.size
    kept = view.visual[claimed(likeness, taken, [each] * order.size)]
    assert kept.tolist() == expected
    route, _ = method.decide(2, view, None)
    assert route.keep is not None and route.keep.k == len(expected)


@pytest.mark.parametrize("case", cases("sparsevlm"), ids=str)
def test_sparsevlm(case: Case) -> None:
    s, n = case.settings, case.settings["visual"]
    embeds, hidden = case.inputs["embeds"][0], case.inputs["hidden"][0]
    modality = tokens(s["system"], n, len(embeds))
    method = SparseVLM(
        recycle=s["version"] == 1,
        debias=False,  # the vectors of version 2 leave the division out
        at="3 7 16",
        ratios=" ".join([str(Fraction(int(case.outputs["kept"].sum()), n))] * 3),
    )
    _, state = method.decide(0, ToyView(embeds, modality), None)
    assert state.tolist() == case.outputs["raters"].tolist()
    view = ToyView(hidden, modality, attention={"previous": case.inputs["attn"][0]})
    rows = view.rows(state)
    if "head_index" in case.outputs:
        chosen = looking(rows, view.visual, s["top_heads"])
        assert chosen.tolist() == case.outputs["head_index"].tolist()
        rows = rows[chosen]
    score = attended(rows, view.visual)
    assert np.allclose(score, case.outputs["score"][0], **TOLERANCE)
    route, _ = method.decide(s["layer"] + 1, view, state)
    assert route.keep is not None
    kept = np.flatnonzero(case.outputs["kept"][0])
    pick = [int(a) for a in route.keep.anchor if a in set(kept)]
    assert pick == kept.tolist()
    # Their merged tokens stand behind the kept ones, in another order.
    ours = arrays.apply(route.keep, hidden[view.visual])
    out = case.outputs["out"][0][s["system"] :]
    theirs = out[: len(out) - (len(embeds) - s["system"] - n)]
    assert ours.shape == theirs.shape
    assert np.allclose(ours[np.lexsort(ours.T)], theirs[np.lexsort(theirs.T)], **TOLERANCE)
