"""What the adapter says of a family, against the model itself: token maps, attention facts,
features before the projector.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch

from foveate.core.views import Need
from foveate.models import compat
from foveate.models.adapter import adapter_for
from foveate.models.encoded import encoder_view, flatten_hidden
from foveate.models.grids import block_group
from tests.support import tiny

NEEDS = frozenset(
    {
        Need("features", -1),
        Need("saliency", -2),
        Need("keys", -2),
        Need("received", -1),
    }
)
NO_MAP = {"idefics2", "minicpmv4_6", "minicpmv4_7", "molmo2", "got_ocr2", "aria", "gemma3n"}
TOKENWISE = ("llava", "pixtral", "llava_next", "llava_onevision")
FAMILIES = [f for f in tiny.FAMILIES if not f.endswith("_w16")]
# Their tower states are recorded by transformers before a leaf can be put in; `project` is checked
# instead.
MAPPED = [
    f for f in FAMILIES if f not in NO_MAP and f not in (*TOKENWISE, "vipllava", "aya_vision")
]


def free(piece: Any) -> list[int]:
    return [i for i in range(piece.n) if piece.fixed is None or not bool(piece.fixed[i])]


@pytest.mark.parametrize("name", MAPPED)
def test_group_is_what_the_gradient_of_the_projector_says(name: str) -> None:
    model = tiny.make_model(name)
    adapter = adapter_for(model)
    mm = tiny.image_inputs(name)
    leaf: dict[str, torch.Tensor] = {}

    def cut(_: Any, __: Any, out: Any) -> Any:
        state = out[0] if isinstance(out, tuple) else out
        leaf["x"] = state.detach().clone().requires_grad_(True)
        return (leaf["x"], *out[1:]) if isinstance(out, tuple) else leaf["x"]

    handle = compat.tower_blocks(adapter.vision)[adapter.feature_layer()].register_forward_hook(cut)
    try:
        encoded = adapter.encode(mm)
    finally:
        handle.remove()
    front, back = adapter.specials()
    for piece in encoded.pieces:
        assert piece.source is not None and piece.group is not None
        for place, token in enumerate(free(piece)[:8]):
            (slope,) = torch.autograd.grad(piece.payload[token].sum(), leaf["x"], retain_graph=True)
            flat = adapter.reorder(flatten_hidden(slope, front, back)[0], mm)
            touched = set((flat.abs().sum(-1) > 0).nonzero()[:, 0].tolist())
            assert touched == set(piece.source[piece.group == place].tolist())


@pytest.mark.parametrize("name", TOKENWISE)
@torch.no_grad()
def test_projecting_encoder_features_gives_the_models_own_tokens(name: str) -> None:
    adapter = adapter_for(tiny.make_model(name))
    encoded = adapter.encode(tiny.image_inputs(name), needs=NEEDS)
    for piece in encoded.pieces:
        view = encoder_view(encoded, piece, NEEDS)
        assert view is not None and view.tokenwise
        there = (view.group >= 0).nonzero()[:, 0]
        order = torch.empty_like(there)
        order[view.group[there]] = there
        got = adapter.project(view.features[order])
        want = piece.features[torch.as_tensor(free(piece))]
        assert got.shape == want.shape
        assert torch.allclose(got, want, atol=1e-5 * float(want.abs().max()))


@pytest.mark.parametrize("name", ["llava", "llava_onevision", "internvl", "smolvlm", "paligemma"])
@torch.no_grad()
def test_attention_facts_equal_eager_attention(name: str) -> None:
    """received, cls and keys of one layer against the attention matrices that eager attention
    returns.
    """
    model = tiny.make_model(name)
    adapter = adapter_for(model)
    mm = tiny.image_inputs(name)
    encoded = adapter.encode(mm, needs=NEEDS | {Need("received", -2)})
    front, _ = adapter.specials()
    eager = tiny.make_model(name, attention="eager")
    blocks = compat.tower_blocks(adapter_for(eager).vision)
    seen: list[torch.Tensor] = []
    attention = compat.attention_modules(blocks[-2])[0]
    handle = attention.register_forward_hook(lambda _m, _a, out: seen.append(out[1]))
    adapter_for(eager).encode(mm)
    handle.remove()
    facts = encoded.tokens.attention[len(blocks) - 2]
    maps = [s.float() for s in seen]
    received = torch.cat([m.sum(-2)[..., front:].movedim(1, -1).flatten(0, 1) for m in maps])
    assert torch.allclose(facts.received.T, received, atol=1e-5)
    if front:
        cls = torch.cat([m[:, :, 0, 1:].movedim(1, -1).flatten(0, 1) for m in maps])
        assert torch.allclose(facts.cls.T, cls, atol=1e-6)


@pytest.mark.parametrize("name", [f for f in FAMILIES if f not in NO_MAP])
@torch.no_grad()
def test_received_attention_of_a_picture_is_a_distribution(name: str) -> None:
    adapter = adapter_for(tiny.make_model(name))
    encoded = adapter.encode(tiny.image_inputs(name), needs=frozenset({Need("received", -1)}))
    one_pass = [
        p for p in encoded.pieces if p.source is not None and len(set(p.part.tolist())) == 1
    ]
    assert one_pass
    for piece in one_pass:
        view = encoder_view(encoded, piece, frozenset({Need("received", -1)}))
        assert view is not None and view.at[-1].received is not None
        total = float(view.at[-1].received.sum())
        specials = sum(adapter.specials())
        assert total == pytest.approx(1.0, abs=1e-4) if not specials else 0.5 < total < 1.0


@pytest.mark.parametrize("name", FAMILIES)
@torch.no_grad()
def test_pieces_cover_the_features_in_order_with_their_grid(name: str) -> None:
    adapter = adapter_for(tiny.make_model(name))
    encoded = adapter.encode(tiny.image_inputs(name))
    flat = torch.cat([p.payload for p in encoded.pieces])
    again = adapter.repack(
        encoded, [p.payload for p in encoded.pieces], [p.deepstack for p in encoded.pieces]
    )
    container = again.pooler_output if again.pooler_output is not None else again.last_hidden_state
    back = (
        container.reshape(-1, container.shape[-1])
        if torch.is_tensor(container)
        else torch.cat(container)
    )
    assert torch.equal(back, flat)
    for piece in encoded.pieces:
        t, h, w = piece.grid
        assert t * h * w == len(free(piece))


def test_block_group_maps_square_blocks_and_refuses_the_rest() -> None:
    assert block_group(16, 4, "cpu").tolist() == [0, 0, 1, 1, 0, 0, 1, 1, 2, 2, 3, 3, 2, 2, 3, 3]  # type: ignore[union-attr]
    assert block_group(5, 5, "cpu").tolist() == [0, 1, 2, 3, 4]  # type: ignore[union-attr]
    for patches, n in ((16, 6), (15, 4), (4, 9), (0, 4), (25, 4)):
        assert block_group(patches, n, "cpu") is None


@pytest.mark.parametrize("back", [-1, -2])
@torch.no_grad()
def test_a_layer_counted_from_the_front_is_the_one_counted_from_the_back(back: int) -> None:
    """The projector reads a hidden state, of which the first is the embeddings: block 0 gives state 1."""
    model = tiny.make_model("llava")
    adapter = adapter_for(model)
    depth = len(compat.tower_blocks(adapter.vision))
    model.config.vision_feature_layer = back
    adapter.config.vision_feature_layer = back
    block = adapter.feature_layer() % depth
    tokens = adapter.encode(tiny.image_inputs("llava")).pieces[0].payload
    for config in (model.config, adapter.config):
        config.vision_feature_layer = depth + 1 + back
    assert adapter.feature_layer() % depth == block
    again = adapter.encode(tiny.image_inputs("llava")).pieces[0].payload
    assert torch.equal(tokens, again)
