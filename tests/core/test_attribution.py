"""Attribution: the parts sum up to the whole, each stage to what it did."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from foveate.core import flops
from foveate.core.attribution import Stage, Work, attribute, cost
from foveate.core.errors import InputError, PlanError
from foveate.core.method import STAGES
from foveate.core.report import Report, Saving
from foveate.core.shapes import LayerShape, MLPShape, ModelShape, TextShape, VisionShape

LAYERS, HEADS = 4, 2
SHAPE = ModelShape(
    VisionShape(
        16, 48, LayerShape(2, 2, 8, MLPShape(20, gated=False)), 3, ((64, 32), (32, 32)), merge=4
    ),
    TextShape(
        32,
        100,
        tuple(LayerShape(4, HEADS, 8, MLPShape(24), window=w) for w in (None, 9, None, None)),
    ),
    element_bytes=2,
)
FULL = SHAPE.vision.packed([(1, 16, 16)]) if SHAPE.vision else None
REQUEST = Work(FULL, (74,) * LAYERS, steps=5)


@st.composite
def works(draw: st.DrawFn) -> Work:
    vision = SHAPE.vision
    assert vision is not None
    grids = draw(st.lists(st.tuples(st.integers(1, 3), *[st.integers(1, 12)] * 2), max_size=3))
    counts = st.integers(1, 200)
    heads = st.integers(0, 200)
    entries = heads | st.tuples(*[heads] * HEADS)
    return Work(
        encode=draw(st.sampled_from([None, vision.packed(grids)])),
        rows=draw(st.tuples(*[counts] * LAYERS)),
        steps=draw(st.integers(0, 30)),
        past=draw(st.none() | st.tuples(*[entries] * LAYERS)),
        kv=draw(st.none() | st.tuples(*[entries] * LAYERS)),
        kv_bytes=draw(st.none() | st.tuples(*[counts] * LAYERS)),
        encode_scoring=draw(st.integers(0, 10**6)),
        prefill_scoring=draw(st.integers(0, 10**6)),
        decode_scoring=draw(st.integers(0, 10**6)),
    )


@given(works(), st.lists(st.sampled_from(STAGES), unique=True), st.data())
def test_the_parts_sum_up_to_the_whole(
    request_: Work, names: list[str], data: st.DataObject
) -> None:
    """To the last FLOP and byte, whatever the stages did."""
    stages = [Stage(n, data.draw(works())) for n in sorted(names, key=STAGES.index)]
    saved = attribute(SHAPE, request_, stages)
    assert [s.stage for s in saved] == [s.name for s in stages]
    before = cost(SHAPE, request_)
    after = cost(SHAPE, stages[-1].work) if stages else before
    assert sum(s.encode_flops for s in saved) == before.encode - after.encode
    assert sum(s.prefill_flops for s in saved) == before.prefill - after.prefill
    assert sum(s.decode_flops for s in saved) == before.decode - after.decode
    assert sum(s.kv_bytes for s in saved) == before.kv_bytes - after.kv_bytes
    for part in ("encode", "prefill", "decode", "kv"):
        field = "kv_bytes" if part == "kv" else part
        of, left = getattr(before, field), getattr(after, field)
        shares = [getattr(s, f"{part}_share") for s in saved]
        if of:
            # Shares are rounded: their error grows with the largest detour, not with the result.
            assert sum(shares) == pytest.approx(
                1 - left / of if shares else 0, abs=1e-9 * (1 + sum(map(abs, shares)))
            )
        else:
            assert shares == [None] * len(shares)


def test_each_stage_is_credited_with_what_it_did() -> None:
    # An entry of one layer takes 64 bytes: 2 KV heads of 8 numbers of 2 bytes, keys and values.
    vision = SHAPE.vision
    assert vision is not None
    pixels = replace(REQUEST, encode=vision.packed([(1, 8, 16)]), rows=(42,) * LAYERS)
    tokens = replace(pixels, rows=(26,) * LAYERS, encode_scoring=1000)
    prefill = replace(tokens, rows=(26, 26, 14, 14))
    memory = replace(prefill, kv=(20, 20, (9, 14), 14))
    names = ("pixels", "tokens", "prefill", "memory")
    stages = [Stage(n, w) for n, w in zip(names, (pixels, tokens, prefill, memory), strict=True)]
    saved = {s.stage: s for s in attribute(SHAPE, REQUEST, stages)}
    assert saved["pixels"].encode_flops > 0 and saved["pixels"].kv_bytes == 3 * 32 * 64
    assert saved["tokens"].encode_flops == -1000 and saved["tokens"].prefill_flops > 0
    dropped = saved["prefill"]
    assert dropped.encode_flops == 0 and dropped.prefill_flops > 0 and dropped.decode_flops > 0
    assert dropped.kv_bytes == 2 * 12 * 64
    kept = saved["memory"]
    assert (kept.encode_flops, kept.prefill_flops) == (0, 0) and kept.decode_flops > 0
    # The windowed layer holds 8 entries before and after.
    assert kept.kv_bytes == 6 * 64 + 5 * 32
    assert sum(s.flops for s in saved.values()) == sum(
        getattr(cost(SHAPE, REQUEST), p) - getattr(cost(SHAPE, memory), p)
        for p in ("encode", "prefill", "decode")
    )


def test_without_pictures_there_is_no_share_of_encoding() -> None:
    words = replace(REQUEST, encode=None)
    (saved,) = attribute(SHAPE, words, [Stage("memory", replace(words, kv=(9,) * LAYERS))])
    assert saved.encode_flops == 0 and saved.encode_share is None and saved.kv_share


def test_a_prefix_cache_saves_prefill_and_no_bytes() -> None:
    reused = replace(REQUEST, rows=(10,) * LAYERS, past=(64,) * LAYERS)
    (saved,) = attribute(SHAPE, REQUEST, [Stage("memory", reused)])
    assert saved.prefill_flops > 0 and saved.kv_bytes == saved.decode_flops == 0


def test_cost_is_the_sum_of_its_phases() -> None:
    assert SHAPE.vision is not None and FULL is not None
    found = cost(SHAPE, REQUEST)
    assert found.encode == flops.encode(SHAPE.vision, FULL).total
    assert found.prefill == flops.prefill(SHAPE.text, REQUEST.rows).total
    assert found.decode == flops.decode(SHAPE.text, REQUEST.rows, 5).total
    assert found.layer_kv_bytes == flops.kv_bytes(SHAPE.text, REQUEST.rows, 2, steps=5)


@pytest.mark.parametrize(
    ("names", "text"),
    [
        (["tokens", "pixels"], "comes after"),
        (["tokens", "tokens"], "comes after"),
        (["token"], "did you mean tokens"),
    ],
)
def test_stages_out_of_order_are_refused(names: list[str], text: str) -> None:
    with pytest.raises(PlanError, match=text):
        attribute(SHAPE, REQUEST, [Stage(n, REQUEST) for n in names])


@pytest.mark.parametrize(
    "changes",
    [
        {"rows": (3, 3)},
        {"kv": (3, 3)},
        {"past": (3, 3)},
        {"kv_bytes": (3, 3)},
        {"kv_bytes": (3, 3, 3, -1)},
        {"steps": -1},
        {"encode_scoring": -1},
    ],
)
def test_counts_that_do_not_fit_are_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(InputError):
        cost(SHAPE, replace(REQUEST, **changes))
    with pytest.raises(InputError):
        cost(replace(SHAPE, vision=None), REQUEST)


def test_a_report_with_savings_is_json() -> None:
    stages = [Stage("tokens", replace(REQUEST, rows=(26,) * LAYERS))]
    saved = attribute(SHAPE, REQUEST, stages)
    report = Report(
        plan="uniform:keep=1/4", plan_hash="0" * 16, model="m", positions="retain", identity=False,
        visual_tokens_in=64, visual_tokens_kept=16, fixed_tokens_kept=0, text_tokens=10,
        prompt_tokens=26, prompt_tokens_in=74, new_tokens=6, saved=saved,
        layer_kv_bytes=cost(SHAPE, stages[0].work).layer_kv_bytes,
    )  # fmt: skip
    data = json.loads(json.dumps(report.to_dict()))
    assert Saving(**data["saved"][0]) == saved[0]
    assert len(data["layer_kv_bytes"]) == LAYERS
    plain = replace(report, saved=(), layer_kv_bytes=None).to_dict()
    assert plain["saved"] == () and plain["layer_kv_bytes"] is None
