"""Splicing by hand: merges with special tokens, fixed tokens, padding and re-padding."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from foveate.core import Need, Plan, Reduction, TokenMethod
from foveate.core.errors import InputError, PlanError
from foveate.engine import splice
from foveate.engine.compress import compress
from foveate.models.adapter import adapter_for
from tests.support import tiny


@dataclass(frozen=True)
class WithSpecials(TokenMethod):
    """Row 0 is the class token, row 1 merges it with tokens 0 and 3, then tokens 4 and 9 as they are."""

    name: ClassVar[str] = "with-specials"
    summary: ClassVar[str] = "test"
    needs = frozenset({Need("features", -1)})

    def select(self, segments, counts, question, rng):  # type: ignore[no-untyped-def]
        n = segments[0].n
        rows, cols, weights = [0, 1, 1, 1, 2, 3], [n, n, 0, 3, 4, 9], [1, 0.5, 0.25, 0.25, 1, 1]
        one = Reduction.of([0, 0, 4, 9], rows, cols, weights, n, "encoder")
        return [one for _ in segments]


@torch.no_grad()
def test_encoder_space_merges_with_a_class_token_equal_a_sequence_spliced_by_hand() -> None:
    model = tiny.make_model("llava")
    adapter = adapter_for(model)
    mm = tiny.split_images("llava", tiny.image_inputs("llava"))[0]
    row = tiny.prompt("llava", model, mm)
    short = compress(adapter, Plan((WithSpecials(per_image=4),)), {**row, **mm})
    got = model(**short.kwargs, use_cache=False).logits[0]

    tower = model.base_model.vision_tower(mm["pixel_values"], output_hidden_states=True)
    state = tower.hidden_states[model.config.vision_feature_layer][0]
    cls, patches = state[0], state[1:]
    merged = torch.stack(
        [cls, 0.5 * cls + 0.25 * patches[0] + 0.25 * patches[3], patches[4], patches[9]]
    )
    visual = model.base_model.multi_modal_projector(merged)
    ids = row["input_ids"][0]
    text = model.get_input_embeddings()(ids)
    where = (ids == tiny.IMAGE).nonzero()[:, 0]
    embeds = torch.cat([text[: where[0]], visual, text[where[-1] + 1 :]])[None]
    want = model.lm_head(
        model.get_decoder()(inputs_embeds=embeds, use_cache=False).last_hidden_state
    )[0]
    assert got.shape == want.shape
    assert (got - want).abs().max() <= 2e-5 * want.abs().max()


@pytest.mark.parametrize("name", ["llava_next", "llava_onevision"])
def test_newlines_stay_exactly_where_their_row_keeps_a_token(name: str) -> None:
    model = tiny.make_model(name)
    adapter = adapter_for(model)
    mm = tiny.image_inputs(name)
    row = tiny.prompt(name, model, mm)
    short = compress(adapter, Plan.parse("random:keep=1/5;seed=3"), {**row, **mm})
    seen = 0
    for placed, chosen in zip(short.rows[0].placed, short.rows[0].reductions, strict=True):
        fixed = placed.piece.fixed
        if fixed is None:
            continue
        flags = fixed.tolist()
        kept = {int(placed.free[a]) for a in chosen.anchor}
        stays, row_has = set(kept), False
        for i, is_fixed in enumerate(flags):
            if is_fixed:
                if row_has:
                    stays.add(i)
                row_has = False
            elif i in kept:
                row_has = True
        in_row = set(placed.at.tolist()) & set(short.rows[0].index.tolist())
        assert in_row == {int(placed.at[i]) for i in stays}
        seen += 1
    assert seen


@given(
    st.lists(st.tuples(st.integers(0, 6), st.integers(1, 9)), min_size=1, max_size=5), st.booleans()
)
def test_padding_side_and_regather_are_inverse_to_padding(
    rows: list[tuple[int, int]], right: bool
) -> None:
    width = max(p + n for p, n in rows)
    mask = torch.zeros(len(rows), width, dtype=torch.long)
    values = torch.zeros(len(rows), width, dtype=torch.long)
    index = []
    for i, (_, n) in enumerate(rows):
        where = torch.arange(n) if right else torch.arange(width - n, width)
        mask[i, where] = 1
        values[i, where] = torch.arange(1, n + 1)
        index.append(where.numpy())
    side = splice.padding_side(mask)
    if not mask.all():
        assert side == ("right" if right else "left")
    out = splice.regather(values, index, side, -7)
    for i, (_, n) in enumerate(rows):
        real = out[i][out[i] != -7]
        assert real.tolist() == list(range(1, n + 1))
        lead = out[i, : out.shape[1] - n] if side == "left" else out[i, n:]
        assert (lead == -7).all()


def test_masks_with_holes_or_two_sides_are_refused() -> None:
    with pytest.raises(InputError, match="holes"):
        splice.padding_side(torch.tensor([[1, 0, 1]]))
    with pytest.raises(InputError, match="one side only"):
        splice.padding_side(torch.tensor([[0, 1, 1], [1, 1, 0]]))


def broken(name: str, answer: Any) -> type[TokenMethod]:
    def select(self, segments, counts, question, rng):  # type: ignore[no-untyped-def]
        return answer(segments, counts)

    body = {"name": name, "summary": "test", "select": select, "__annotations__": {}}
    return dataclass(frozen=True)(type("Broken", (TokenMethod,), body))


@pytest.mark.parametrize(
    ("answer", "says"),
    [
        (lambda s, c: [], "answered 0 reductions"),
        (lambda s, c: [Reduction.pick([0], x.n) for x in s], "its budget says"),
        (
            lambda s, c: [
                Reduction.pick(range(k), x.n + 9) for x, k in zip(s, c.per_segment, strict=True)
            ],
            "tokens, not",
        ),
        (
            lambda s, c: [
                Reduction.pick(range(k), x.n, "encoder")
                for x, k in zip(s, c.per_segment, strict=True)
            ],
            "encoder space",
        ),
        (
            lambda s, c: [
                Reduction.pick(range(k), x.n, "cache")
                for x, k in zip(s, c.per_segment, strict=True)
            ],
            "space 'cache'",
        ),
    ],
)
def test_a_method_that_breaks_its_contract_is_named(answer: Any, says: str) -> None:
    model = tiny.make_model("internvl")
    mm = tiny.image_inputs("internvl")
    row = tiny.prompt("internvl", model, mm)
    plan = Plan((broken("breaks", answer)(keep="1/2"),))  # type: ignore[arg-type]
    with pytest.raises(PlanError, match="breaks"):
        try:
            compress(adapter_for(model), plan, {**row, **mm})
        except PlanError as error:
            assert says in str(error)
            raise


def test_weighted_rows_are_exact_sums() -> None:
    x = torch.arange(12, dtype=torch.float32).reshape(4, 3)
    r = Reduction.of([2, 0], [0, 0, 1], [2, 3, 0], [0.5, 0.5, 2.0], 4)
    assert torch.equal(splice.weighted(r, x), torch.stack([2 * x[0], (x[2] + x[3]) / 2]))
    assert splice.weighted(r, x.half()).dtype == torch.float16
    assert np.array_equal(splice.weighted(Reduction.pick([1, 3], 4), x).numpy(), x[[1, 3]].numpy())
