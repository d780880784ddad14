"""A text tower that the user supplies: CLIP's and SigLIP's joint space, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional
from transformers import CLIPConfig, CLIPModel, SiglipConfig, SiglipModel

import foveate
from foveate.core.errors import CheckpointError, InputError, UnsupportedError
from foveate.encode.tokens.cdpruner import to_unit_range
from foveate.engine.engine import Engine
from foveate.engine.request import Request
from foveate.models.joint import JointSpace
from tests.cli.cli_cases import call, last_json
from tests.models.tiny_processors import make_processor, make_tokenizer, save_folder
from tests.support import tiny

PLAN = "cdpruner-clip:keep=1/4"
ASK = "what is in the picture ?"
TEXT = {
    "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2,
    "vocab_size": 300, "max_position_embeddings": 10, "bos_token_id": 1, "eos_token_id": 290,
    "pad_token_id": 0,
}  # fmt: skip
EYES = {
    "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4,
    "image_size": 28, "patch_size": 7,
}  # fmt: skip


def clip_model(width: int = 32) -> Any:
    torch.manual_seed(3)
    eyes = {**EYES, "hidden_size": width}
    return CLIPModel(CLIPConfig(text_config=TEXT, vision_config=eyes, projection_dim=20)).eval()


def siglip_model() -> Any:
    torch.manual_seed(4)
    words = {**TEXT, "hidden_size": 32, "projection_size": 32}
    return SiglipModel(SiglipConfig(text_config=words, vision_config=EYES)).eval()


def clip_tokenizer() -> Any:
    """Writes <s> before and <end> after a text, as CLIP's does."""
    from tokenizers.processors import TemplateProcessing

    made = make_tokenizer({290: "<end>"})
    made.backend_tokenizer.post_processor = TemplateProcessing(
        single="<s> $A <end>", special_tokens=[("<s>", 1), ("<end>", 290)]
    )
    return made


@pytest.fixture(scope="module")
def llava(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return tiny.make_model("llava")


@pytest.fixture(scope="module")
def folder(llava: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A CLIP whose picture side is the tower of the tiny LLaVA."""
    model = clip_model()
    inner = {k: v for k, v in llava.base_model.vision_tower.state_dict().items()}
    missing = model.vision_model.load_state_dict(inner, strict=False)
    assert not missing.missing_keys
    path = tmp_path_factory.mktemp("clip")
    model.save_pretrained(path)
    clip_tokenizer().save_pretrained(path)
    return path


def picture(seed: int = 0) -> Image.Image:
    rng = np.random.default_rng(seed)
    return Image.fromarray(rng.integers(0, 256, (28, 28, 3), dtype=np.uint8))


@torch.no_grad()
def by_hand(llava: Any, folder: Path, pixels: torch.Tensor, words: str) -> np.ndarray:
    """Relevance (n,) of patches by transformers' own parts: hidden state before the last block's,
    final norm, projection; text features of each part; minus the mean cosine, to [0, 1].
    """
    model = CLIPModel.from_pretrained(folder)
    tower = llava.base_model.vision_tower
    state = tower(pixels, output_hidden_states=True).hidden_states[-2][0, 1:]
    patches = model.visual_projection(model.vision_model.post_layernorm(state))
    ids = clip_tokenizer()(words, add_special_tokens=False)["input_ids"]
    parts = [ids[i : i + 8] for i in range(0, len(ids), 8)]
    texts = [
        model.get_text_features(input_ids=torch.tensor([[1, *p, 290]])).pooler_output[0]
        for p in parts
    ]
    cosines = torch.stack([functional.cosine_similarity(patches, t[None], dim=-1) for t in texts])
    return to_unit_range(-cosines.mean(0).double().numpy())


@torch.no_grad()
def test_relevance_is_that_of_clips_own_parts(llava: Any, folder: Path) -> None:
    from foveate.core import Plan, arrays
    from foveate.engine.attach import reading_ids
    from foveate.engine.compress import compress

    processor = make_processor("llava")
    pixels = processor.image_processor(images=[picture()], return_tensors="pt")["pixel_values"]
    ids = [tiny.IMAGE] * 16 + processor.tokenizer(ASK, add_special_tokens=False)["input_ids"]
    assert len(ids) - 16 > 8  # more than one part of this text tower
    call = {"input_ids": torch.tensor([ids]), "pixel_values": pixels}
    from foveate.models.adapter import adapter_for

    tower = reading_ids(str(folder), processor)
    short = compress(adapter_for(llava), Plan.parse(PLAN), call, text_tower=tower)
    segment = short.rows[0].segments[0]
    relevance = by_hand(llava, folder, pixels, ASK)
    want = np.sort(arrays.greedy_dpp(segment.features, relevance, 4))
    assert short.rows[0].reductions[0].anchor.tolist() == want.tolist()
    joint = JointSpace.from_pretrained(folder)
    assert joint(ASK).shape[0] > 1 and joint("").shape == (1, 20)
    assert segment.encoder.joint.shape == (16, 20)
    flipped = np.sort(arrays.greedy_dpp(segment.features, to_unit_range(1 - relevance), 4))
    assert flipped.tolist() != want.tolist()  # the sign matters here, or nothing was shown


def test_both_doors_take_a_folder_and_choose_alike(
    llava: Any, folder: Path, tmp_path: Path
) -> None:
    vlm = save_folder("llava", llava, tmp_path)
    engine = Engine.from_pretrained(vlm, text_tower=folder)
    requests = [Request(ASK, images=[picture(i)]) for i in range(3)]
    answers = engine.generate(requests, PLAN, max_new_tokens=2)
    assert all(a.ok and len(a.kept[0].anchors) == 4 for a in answers), [a.error for a in answers]
    prepared = engine.prepare(requests[0])
    inputs = engine.processor(text=[prepared.text], images=prepared.pictures, return_tensors="pt")
    given = JointSpace.from_pretrained(folder)
    with foveate.attach(engine.model, PLAN, processor=engine.processor, text_tower=given) as state:
        engine.model.generate(**inputs, max_new_tokens=2)
    kept = state.last.rows[0].reductions[0].anchor
    assert kept.tolist() == answers[0].kept[0].anchors.tolist()


def test_the_command_line_takes_a_text_tower(llava: Any, folder: Path, tmp_path: Path) -> None:
    vlm = save_folder("llava", llava, tmp_path)
    picture().save(tmp_path / "picture.png")
    words = ("run", tmp_path / "picture.png", "-q", ASK, "--model", vlm, "--plan", PLAN, "--json")
    done = call(*words, "--max-new-tokens", 1, "--text-tower", folder)
    assert done.exit_code == 0, done.stderr
    assert last_json(done.stdout)["results"][0]["plan"]["report"]["visual_tokens_kept"] == 4
    done = call(*words, "--max-new-tokens", 1)
    assert done.exit_code == 5 and "--text-tower" in last_json(done.stdout)["error"]["message"]


@torch.no_grad()
def test_siglip_shows_its_head_one_patch_at_a_time(tmp_path: Path) -> None:
    model = siglip_model()
    model.save_pretrained(tmp_path)
    make_tokenizer({290: "<end>"}).save_pretrained(tmp_path)
    joint = JointSpace.from_pretrained(tmp_path)
    state = torch.randn(5, 32, generator=torch.Generator().manual_seed(0))
    got = joint.patches(state)
    head, norm = model.vision_model.head, model.vision_model.post_layernorm
    want = torch.cat([head(norm(row)[None, None]) for row in state])
    assert torch.allclose(got, want, atol=1e-6) and got.shape == (5, 32)
    ids = joint.tokenizer("what is", add_special_tokens=False)["input_ids"]
    padded = torch.tensor([ids + [0] * (10 - len(ids))])
    text = model.get_text_features(input_ids=padded)
    text = text if torch.is_tensor(text) else text.pooler_output
    assert torch.allclose(joint("what is"), text, atol=1e-6)


def test_what_cannot_be_read_is_refused(llava: Any, folder: Path, tmp_path: Path) -> None:
    processor = make_processor("llava")
    with (
        pytest.raises(UnsupportedError, match="text tower"),
        foveate.attach(llava, PLAN, processor=processor),
    ):
        llava.generate(**_inputs(llava, processor), max_new_tokens=1)
    with pytest.raises(InputError, match="without its tokenizer"):
        Engine(llava, processor, text_tower=clip_model())
    with pytest.raises(InputError, match="processor="), foveate.attach(llava, PLAN, text_tower="x"):
        raise AssertionError
    with pytest.raises(CheckpointError, match="cannot be loaded"):
        JointSpace.from_pretrained(tmp_path / "absent")
    with pytest.raises(UnsupportedError, match="llava"):
        JointSpace.from_pretrained(save_folder("llava", llava, tmp_path))
    narrow = JointSpace(clip_model(16), clip_tokenizer())
    with (
        pytest.raises(UnsupportedError, match="width 16, this model's tower 32"),
        foveate.attach(llava, PLAN, processor=processor, text_tower=narrow),
    ):
        llava.generate(**_inputs(llava, processor), max_new_tokens=1)


def test_a_plain_function_answers_in_the_encoders_width_or_is_refused(llava: Any) -> None:
    processor = make_processor("llava")
    inputs = _inputs(llava, processor)
    for width in (32, 20):
        tower = lambda _, width=width: torch.linspace(-1, 1, width)  # noqa: E731
        with foveate.attach(llava, PLAN, processor=processor, text_tower=tower) as state:
            if width == 32:
                llava.generate(**inputs, max_new_tokens=1)
                encoder = state.last.rows[0].segments[0].encoder
                assert torch.equal(encoder.joint, encoder.hidden[-2])
            else:
                with pytest.raises(UnsupportedError, match="32 dimensions.*20"):
                    llava.generate(**inputs, max_new_tokens=1)


def test_a_family_without_encoder_tokens_is_refused_with_a_tower_too(folder: Path) -> None:
    model = tiny.cached_model("idefics2")
    mm = tiny.image_inputs("idefics2")
    call = {**tiny.prompt("idefics2", model, mm), **mm}
    tower = JointSpace.from_pretrained(folder)
    with (
        pytest.raises(UnsupportedError, match="does not give"),
        foveate.attach(model, PLAN, processor=make_processor("llava"), text_tower=tower),
    ):
        model.generate(**call, max_new_tokens=1)


def _inputs(llava: Any, processor: Any) -> dict[str, Any]:
    return dict(processor(text=["<image> " + ASK], images=[picture()], return_tensors="pt"))
