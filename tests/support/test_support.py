"""The tiny models themselves: each family builds, runs, and takes the inputs made for it."""

from __future__ import annotations

import inspect

import pytest
import torch
from torch import Tensor

from tests.support import tiny


@pytest.fixture(autouse=True, scope="module")
def _one_thread():  # type: ignore[no-untyped-def]
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def features(name: str, mm: dict[str, Tensor], modality: str = "image") -> Tensor:
    """All projected features (n, d) in order."""
    base = tiny.cached_model(name).base_model
    with torch.no_grad():
        out = getattr(base, f"get_{modality}_features")(**mm, return_dict=True)
    pooled = out.last_hidden_state if out.pooler_output is None else out.pooler_output
    parts = list(pooled.flatten(0, -3)) if torch.is_tensor(pooled) else list(pooled)
    return torch.cat([p.flatten(0, -2) for p in parts])


def logits(name: str, row: dict[str, Tensor], mm: dict[str, Tensor]) -> Tensor:
    with torch.no_grad():
        out: Tensor = tiny.cached_model(name)(**row, **mm, use_cache=False).logits
    return out


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def close(a: Tensor, b: Tensor, tolerance: float = 1e-4) -> bool:
    return a.shape == b.shape and bool((a - b).abs().max() <= tolerance * b.abs().max())


def test_names() -> None:
    assert len(tiny.FAMILIES) == len(set(tiny.FAMILIES)) == 45
    assert set(tiny.FAMILIES) == set(tiny._TINY)
    assert set(tiny.REPRESENTATIVE) <= set(tiny.FAMILIES)
    assert tiny.RECURRENT == ("qwen3_5", "lfm2_vl", "minicpmv4_6", "minicpmv4_7")


@pytest.mark.parametrize("name", tiny.FAMILIES)
def test_pictures_change_finite_logits(name: str) -> None:
    model = tiny.cached_model(name)
    mm = tiny.image_inputs(name)
    row = tiny.prompt(name, model, mm)
    assert int((row["input_ids"] == tiny.IMAGE).sum()) == features(name, mm).shape[0]
    out = logits(name, row, mm)
    assert out.shape == (1, row["input_ids"].shape[1], tiny.VOCAB)
    assert torch.isfinite(out).all()
    other = {**mm, "pixel_values": mm["pixel_values"].roll(1, -1) * 1.5}
    changed = (logits(name, row, other)[0, -1] - out[0, -1]).abs().max()
    # Far above what rounding does, so a test that shows the wrong tokens cannot pass by accident.
    assert changed > 0.05 * out[0, -1].abs().max()


@pytest.mark.parametrize("name", tiny.FAMILIES)
def test_features_differ_from_token_to_token(name: str) -> None:
    """Else dropping the wrong token would go unnoticed."""
    found = features(name, tiny.image_inputs(name))
    assert found.std(0).mean() > 0.2 * found.std() > 0


@pytest.mark.parametrize("name", tiny.FAMILIES)
def test_prompt_takes_what_forward_wants(name: str) -> None:
    model = tiny.cached_model(name)
    mm = tiny.image_inputs(name)
    row = tiny.prompt(name, model, mm, lead=4, tail=7)
    ids = row["input_ids"][0]
    spots = (ids == tiny.IMAGE).nonzero()[:, 0]
    around = tiny.family(name).around_run is not None
    assert int(spots[0]) == 4 + around and len(ids) - int(spots[-1]) - 1 == 7 + around
    types = {k for k in row if k.endswith("token_type_ids")}
    taken = {*inspect.signature(model.forward).parameters}
    assert types == {k for k in ("mm_token_type_ids", "token_type_ids") if k in taken}
    for key in types:
        marks = ids == tiny.IMAGE
        assert torch.equal(row[key][0].bool(), marks & ("paligemma" not in name))


@pytest.mark.parametrize("name", tiny.FAMILIES)
def test_split_and_join(name: str) -> None:
    mm = tiny.image_inputs(name)
    parts = tiny.split_images(name, mm)
    assert len(parts) == 2
    assert same(tiny.join_images(name, parts), mm)
    alone = torch.cat([features(name, p) for p in parts])
    assert close(alone, features(name, mm))
    three = tiny.random_images(name, 3, seed=7)
    assert len(tiny.split_images(name, three)) == 3
    assert same(three, tiny.random_images(name, 3, seed=7))
    assert not same(three, tiny.random_images(name, 3, seed=8))
    sizes = {p.shape for p in tiny.family(name).pictures.random(1, 0, False).values()}
    first, second = tiny.split_images(name, tiny.random_images(name, 2, seed=0, unequal=False))
    assert {v.shape for v in first.values()} == {v.shape for v in second.values()} == sizes


@pytest.mark.parametrize("name", tiny.FAMILIES)
def test_unequal_pictures_where_allowed(name: str) -> None:
    pictures = tiny.family(name).pictures
    counts = [features(name, p).shape[0] for p in pictures.split(tiny.image_inputs(name))]
    assert (counts[0] != counts[1]) == (len(pictures.sizes) > 1)


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("name", tiny.FAMILIES)
def test_padded_batch_equals_rows(name: str, side: str) -> None:
    model = tiny.cached_model(name)
    parts = tiny.split_images(name, tiny.image_inputs(name))
    rows = [
        tiny.prompt(name, model, mm, lead=3 + 4 * i, tail=6, seed=i) for i, mm in enumerate(parts)
    ]
    batch = tiny.pad_batch(rows, side)  # type: ignore[arg-type]
    out = logits(name, batch, tiny.join_images(name, parts))
    for i, (row, mm) in enumerate(zip(rows, parts, strict=True)):
        real = batch["attention_mask"][i].bool()
        assert torch.equal(batch["input_ids"][i][real], row["input_ids"][0])
        assert close(out[i][real], logits(name, row, mm)[0])


@pytest.mark.parametrize("name", tiny.VIDEO_FAMILIES)
def test_videos_change_finite_logits(name: str) -> None:
    model = tiny.cached_model(name)
    for count in (1, 2):
        mm = tiny.video_inputs(name, count)
        assert mm is not None
        row = tiny.video_prompt(name, model, mm)
        placeholders = row["input_ids"] == tiny.family(name).video_id
        assert int(placeholders.sum()) == features(name, mm, "video").shape[0]
        out = logits(name, row, mm)
        assert torch.isfinite(out).all()
        other = {**mm, "pixel_values_videos": mm["pixel_values_videos"].roll(1, -1) * 1.5}
        changed = (logits(name, row, other)[0, -1] - out[0, -1]).abs().max()
        assert changed > 0.05 * out[0, -1].abs().max()


@pytest.mark.parametrize("name", ["qwen2_5_vl", "qwen3_vl", "qwen2_5_omni", "glm4v"])
def test_video_positions_follow_time(name: str) -> None:
    """Temporal positions of the placeholders grow from step to step, and only there."""
    model = tiny.cached_model(name)
    mm = tiny.video_inputs(name)
    assert mm is not None
    row = tiny.video_prompt(name, model, mm)
    extra = {"video_grid_thw": mm["video_grid_thw"], "attention_mask": row["attention_mask"]}
    if "mm_token_type_ids" in row:
        extra["mm_token_type_ids"] = row["mm_token_type_ids"]
    if "video_second_per_grid" in row:
        extra["second_per_grids"] = row["video_second_per_grid"]
    positions, _ = model.base_model.get_rope_index(row["input_ids"], **extra)
    spots = row["input_ids"][0] == tiny.family(name).video_id
    time = positions[0, 0][spots].reshape(3, -1)
    assert (time == time[:, :1]).all()
    assert (time[1:, 0] > time[:-1, 0]).all()


def test_families_without_videos_say_so() -> None:
    assert tiny.video_inputs("llava") is None
    with pytest.raises(ValueError, match="no videos"):
        tiny.video_prompt("llava", tiny.cached_model("llava"), {})


def test_anyres_tiles_are_the_models_own() -> None:
    from transformers.models.llava_next.modeling_llava_next import image_size_to_num_patches

    pictures = tiny.family("llava_next").pictures
    pinpoints = tiny.cached_model("llava_next").config.image_grid_pinpoints
    for size in pictures.sizes:
        count = pictures.one(size, torch.Generator().manual_seed(0))["pixel_values"].shape[1]
        assert count == image_size_to_num_patches(list(size), pinpoints, 28)


@pytest.mark.parametrize("name", ["llava", "qwen3_vl", "gemma3n"])
def test_models_follow_their_seed(name: str) -> None:
    state = torch.get_rng_state()
    one, two, other = (tiny.make_model(name, seed=s).state_dict() for s in (3, 3, 4))
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(one[k], two[k]) for k in one)
    assert any(not torch.equal(one[k], other[k]) for k in one)
    low = tiny.make_model(name, seed=3, dtype=torch.bfloat16)
    assert next(low.parameters()).dtype == torch.bfloat16
    assert not low.training


def test_attention_is_chosen() -> None:
    assert tiny.make_model("llava").config._attn_implementation == "sdpa"
    assert tiny.make_model("paligemma2").config._attn_implementation == "eager"
    assert tiny.make_model("llava", attention="eager").config._attn_implementation == "eager"
