"""The analytic FLOPs against torch's counter, phase by phase, on models that run."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.nn import functional
from torch.utils.flop_counter import FlopCounterMode, flop_registry, sdpa_flop_count
from transformers import AutoModelForImageTextToText

from foveate.core import flops
from foveate.core.errors import UnsupportedError
from foveate.core.shapes import EncodeWork, LayerShape, MLPShape, ModelShape, VisionShape
from foveate.lab import nano_path
from foveate.models.shapes import model_shape, text_shape, vision_shape
from tests.support import tiny

BOUND = 0.02
# The counts agree to the last FLOP; this leaves a newer kernel a little room, and no part of a model.
TIGHT = 0.002
NANO = "lab-nano"
COUNTED = (
    NANO,
    "llava", "vipllava", "llava_next", "llava_onevision", "internvl", "idefics3", "smolvlm",
    "qwen2_vl", "qwen2_5_vl", "qwen2_5_omni", "qwen3_vl", "qwen3_vl_moe", "qwen3_omni_moe",
    "paligemma", "paligemma2", "gemma3", "gemma3_w16", "aya_vision", "aya_vision_w16",
    "cohere2_vision", "mistral3", "pixtral", "glm4v", "glm46v", "glm_ocr", "glm4v_moe",
    "deepseek_vl", "paddleocr_vl",
)  # fmt: skip
REFUSED = tuple(name for name in tiny.FAMILIES if name not in COUNTED)

# torch's table has no formula for the attention kernel of CPUs: it would count 0 for it. This is
# the formula that the table has for the kernels of GPUs.
_CPU_ATTENTION = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu


def _attention(query: Any, key: Any, value: Any, *_: Any, **__: Any) -> int:
    return int(sdpa_flop_count(query, key, value))


def counted(run: Callable[[], Any], depth: int | None = None) -> tuple[int, Any, FlopCounterMode]:
    counter = FlopCounterMode(
        display=False, depth=depth or 2, custom_mapping={_CPU_ATTENTION: _attention}
    )
    with torch.no_grad(), counter:
        out = run()
    return int(counter.get_total_flops()), out, counter


def load(name: str) -> Any:
    if name == NANO:
        return AutoModelForImageTextToText.from_pretrained(nano_path()).eval()
    model = tiny.make_model(name)
    if "moe" in name:
        # The grouped kernel of experts is not in torch's table either; single products are.
        model.set_experts_implementation("eager")
    return model


def inputs(name: str, model: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    if name != NANO:
        mm = tiny.image_inputs(name)
        return mm, tiny.prompt(name, model, mm)
    n = model.config.image_seq_length
    ids = torch.tensor([[1, *[model.config.image_token_id] * n, 5, 6, 7]])
    pixels = torch.randn(1, 3, 112, 112, generator=torch.Generator().manual_seed(0))
    return {"pixel_values": pixels}, {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


def work(model: Any, shape: VisionShape, mm: dict[str, Any], grids: str = "image") -> EncodeWork:
    """What the inputs make the tower work on."""
    if f"{grids}_grid_thw" in mm:
        return shape.packed([tuple(g) for g in mm[f"{grids}_grid_thw"].tolist()])
    pixels = mm["pixel_values"]
    if shape.pass_patches is None:
        side = model.config.vision_config.patch_size
        return shape.packed([(1, h // side, w // side) for h, w in mm["image_sizes"].tolist()])
    if pixels.ndim == 4:
        return shape.passes(int(pixels.shape[0]))
    return shape.passes(int(pixels.flatten(2).any(2).sum()))  # tiles of zeros are padding


def step(model: Any, cache: Any, n: int) -> Callable[[], Any]:
    """One decode step after n tokens."""
    more = {}
    if hasattr(model.base_model, "get_rope_index"):
        more["position_ids"] = torch.full((3, 1, 1), n)
    mask = torch.ones(1, n + 1, dtype=torch.long)
    return lambda: model(
        input_ids=torch.tensor([[5]]),
        attention_mask=mask,
        past_key_values=cache,
        use_cache=True,
        **more,
    )


@pytest.mark.parametrize("name", COUNTED)
def test_every_phase_agrees_with_the_counter(
    name: str, record_property: Callable[[str, Any], None]
) -> None:
    """Counted FLOPs of encode, prefill and one decode step are within 2 % of torch's counter."""
    model = load(name)
    mm, prompt = inputs(name, model)
    shape = model_shape(model.config, model.dtype.itemsize)
    assert shape.vision is not None
    n, layers = int(prompt["input_ids"].shape[1]), len(shape.text.layers)

    encode, out, _ = counted(lambda: model.base_model.get_image_features(**mm, return_dict=True))
    assert out is not None
    both, out, _ = counted(lambda: model(**prompt, **mm, use_cache=True))
    decode, _, _ = counted(step(model, out.past_key_values, n))

    ours = {
        "encode": flops.encode(shape.vision, work(model, shape.vision, mm)).total,
        "prefill": flops.prefill(shape.text, (n,) * layers, head_rows=n).total,
        "decode": flops.decode(shape.text, (n,) * layers, 1).total,
    }
    theirs = {"encode": encode, "prefill": both - encode, "decode": decode}
    errors = {phase: ours[phase] / theirs[phase] - 1 for phase in ours}
    record_property("figure", round(max(map(abs, errors.values())), 6))
    record_property("bound", BOUND)
    assert max(map(abs, errors.values())) <= TIGHT < BOUND, errors


@pytest.mark.parametrize("name", ["qwen2_vl", "qwen2_5_vl", "qwen3_vl", "glm4v"])
def test_each_frame_of_a_video_is_a_segment(name: str) -> None:
    model, mm = load(name), tiny.video_inputs(name)
    assert mm is not None and int(mm["video_grid_thw"][0, 0]) > 1
    shape = vision_shape(model.config)
    theirs, _, _ = counted(lambda: model.base_model.get_video_features(**mm, return_dict=True))
    ours = flops.encode(shape, work(model, shape, mm, "video")).total
    assert abs(ours / theirs - 1) <= TIGHT


def test_each_frame_of_a_video_is_a_pass_where_towers_take_passes() -> None:
    model, mm = load("llava_onevision"), tiny.video_inputs("llava_onevision")
    assert mm is not None
    frames = mm["pixel_values_videos"].shape[:2].numel()
    shape = vision_shape(model.config)
    theirs, _, _ = counted(lambda: model.base_model.get_video_features(**mm, return_dict=True))
    assert abs(flops.encode(shape, shape.passes(frames)).total / theirs - 1) <= TIGHT


def test_the_counter_needs_the_formula_for_the_kernel_of_cpus() -> None:
    """Else the tests above would compare with counts that lack attention."""
    q, k = torch.randn(1, 4, 7, 8), torch.randn(1, 4, 11, 8)
    total, _, counter = counted(lambda: functional.scaled_dot_product_attention(q, k, k))
    assert total == 4 * 4 * 7 * 11 * 8
    assert _CPU_ATTENTION in counter.get_flop_counts()["Global"]
    if _CPU_ATTENTION not in flop_registry:
        with FlopCounterMode(display=False) as bare:
            functional.scaled_dot_product_attention(q, k, k)
        assert bare.get_total_flops() == 0


@pytest.mark.parametrize("name", ["llava", "qwen2_5_vl", "gemma3_w16"])
def test_layers_with_fewer_tokens_cost_what_they_cost_alone(name: str) -> None:
    """Tokens dropped at layer 2: its layers agree with the counter's, module by module."""
    model = load(name)
    text = text_shape(model.config.get_text_config())
    long, short, at = 40, 23, 2
    found = {}
    for n in (long, short):
        ids = torch.randint(3, 280, (1, n), generator=torch.Generator().manual_seed(n))
        _, _, counter = counted(lambda ids=ids: model(input_ids=ids, use_cache=True), depth=99)
        modules = counter.get_flop_counts()
        found[n] = [
            sum(next(v for m, v in modules.items() if m.endswith(f"language_model.layers.{i}"))
                .values())
            for i in range(len(text.layers))
        ]  # fmt: skip
    rows = (long,) * at + (short,) * (len(text.layers) - at)
    theirs = sum(found[n][i] for i, n in enumerate(rows))
    ours = flops.prefill(text, rows, head_rows=0).total
    assert abs(ours / theirs - 1) <= TIGHT
    assert abs(ours / sum(found[long]) - 1) > BOUND  # so the lengths by layer matter here


def test_caches_of_unequal_length_by_kv_head() -> None:
    layer = LayerShape(6, 3, 16, MLPShape(8))
    lengths, rows = (5, 12, 9), 2
    torch.manual_seed(0)

    def run() -> None:
        for entries in lengths:
            q = torch.randn(1, 2, rows, 16)
            kv = torch.randn(1, 1, entries + rows, 16)
            functional.scaled_dot_product_attention(q, kv, kv, enable_gqa=True)

    assert layer.attention(rows, lengths) == counted(run)[0]


def test_scores_without_values() -> None:
    layer = LayerShape(6, 3, 16, MLPShape(8))
    q, k, s = torch.randn(6, 4, 16), torch.randn(6, 16, 11), torch.randn(6, 1, 11)
    assert flops.score_rows(layer, 4, 11) == counted(lambda: q @ k)[0]
    whole = torch.randn(6, 11, 16)
    assert flops.score_left_multiply(layer, 11) == counted(lambda: s @ (whole @ k))[0]


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_described_is_refused_with_the_reason(name: str) -> None:
    config = tiny.family(name).build()
    with pytest.raises(UnsupportedError, match=r"cannot be counted: .{10,}; measure with"):
        model_shape(config, 4)


def _llava(**changes: Any) -> Any:
    config = tiny.family("llava").build()
    for path, value in changes.items():
        owner: Any = config
        *parts, last = path.split("__")
        for part in parts:
            owner = getattr(owner, part)
        setattr(owner, last, value)
    return config


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"text_config__layer_types": ["linear_attention"] * 6}, "linear_attention"),
        ({"text_config__model_type": "mamba"}, "not described"),
        ({"vision_config__model_type": "vitdet"}, "a tower of type vitdet"),
        ({"model_type": "new_family"}, "not described"),
        ({"vision_config": None}, "no vision_config"),
    ],
)
def test_settings_that_change_the_cost_are_refused(changes: dict[str, Any], reason: str) -> None:
    assert isinstance(model_shape(_llava(), 2), ModelShape)
    with pytest.raises(UnsupportedError, match=reason):
        model_shape(_llava(**changes), 2)


@pytest.mark.parametrize("head", [False, True])
def test_the_pooling_head_of_siglip_is_counted_where_it_runs(head: bool) -> None:
    config = tiny.family("gemma3").build()
    config.vision_config.vision_use_head = head
    model = AutoModelForImageTextToText.from_config(config).eval()
    mm, shape = tiny.image_inputs("gemma3"), vision_shape(config)
    theirs, _, _ = counted(lambda: model.base_model.get_image_features(**mm, return_dict=True))
    ours = flops.encode(shape, work(model, shape, mm)).total
    assert shape.pooled is head and abs(ours / theirs - 1) <= TIGHT
