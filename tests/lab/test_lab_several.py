"""Several pictures of one request: training packs them as the stock processor and generate do."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from foveate.core.errors import InputError
from foveate.lab import FAMILIES
from foveate.lab.batches import Packer, draw_scenes
from foveate.lab.curves import read_log
from foveate.lab.export import export
from foveate.lab.looks import TEST_LOOK
from foveate.lab.losses import answer_logits, drawn_first
from foveate.lab.network import attend_in_float32, build, see
from foveate.lab.recipe import Geometry, from_dict
from foveate.lab.tasks import DRAWERS, ROWS, stream
from foveate.lab.tokenizer import PIXEL_MEAN, PIXEL_STD, build_processor, build_tokenizer
from foveate.lab.train import Trainer
from foveate.lab.words import KINDS, ORDINALS, SEVERAL, quarter

# Attention of a fresh model hardly depends on positions; this much makes a wrong one show.
SHARPER = 3.0
GEOMETRY = {
    "vision_width": 32, "vision_layers": 2, "vision_ff": 32, "vision_heads": 2, "patch": 16,
    "text_width": 32, "text_layers": 2, "text_ff": 32, "text_heads": 2,
}  # fmt: skip
ASKED = [kind for kind in KINDS if kind != "page"]
STAGE = {"name": "joint", "batch": 4, "steps": 5, "patches": 20, "questions": 4}


def _quiet(line: str) -> None:
    del line


def _pictures(pixels: torch.Tensor) -> list[Image.Image]:
    levels = ((pixels * PIXEL_STD + PIXEL_MEAN) * 255).round().byte()
    return [Image.fromarray(picture.permute(1, 2, 0).numpy()) for picture in levels]


@pytest.fixture(scope="module")
def trainer(tmp_path_factory: pytest.TempPathFactory) -> Trainer:
    mix = {"album": 0.5, "frames": 0.5}
    recipe = from_dict({"model": GEOMETRY, "stages": [{**STAGE, "mix": mix}], "bfloat16": True})
    trainer = Trainer(recipe, tmp_path_factory.mktemp("run"), _quiet)
    with torch.no_grad():
        for layer in trainer.model.model.language_model.layers:
            layer.self_attn.q_proj.weight.mul_(SHARPER)
    return trainer


@pytest.mark.parametrize("count", [1, 2, 4])
def test_generate_sees_the_positions_of_packed_evaluation(
    trainer: Trainer, tmp_path: Path, count: int
) -> None:
    """Logits of the exported folder, behind the stock processor, against packed scoring."""
    from transformers import AutoModelForImageTextToText, AutoProcessor

    trainer._save()
    export(trainer.folder, tmp_path / "model")
    assert "lab_float32" not in (tmp_path / "model" / "config.json").read_text()
    model = AutoModelForImageTextToText.from_pretrained(tmp_path / "model").eval()
    processor = AutoProcessor.from_pretrained(tmp_path / "model")
    rng = stream("test", "packed", count, 0)
    if count == 1:
        scenes = [DRAWERS["scene"](rng, TEST_LOOK, 0)]
    else:
        scenes = [ROWS["frames"](rng, TEST_LOOK, 0, count) for _ in range(2)]
    batch = Packer(processor.tokenizer, 16).pack(rng, scenes, 3)
    assert batch.pictures_per_row == count
    with torch.no_grad():
        packed, _ = answer_logits(model, see(model, batch.pixels), batch)
    pictures, at = _pictures(batch.pixels), 0
    for row, asks in enumerate(batch.asks):
        shown = pictures[row * count : (row + 1) * count]
        for ask in asks:
            content = [*({"type": "image"} for _ in shown), {"type": "text", "text": ask.question}]
            answer = [{"type": "text", "text": ask.answer}]
            turns = [{"role": "user", "content": content}, {"role": "assistant", "content": answer}]
            text = processor.apply_chat_template(turns, tokenize=False)
            inputs = processor(
                images=shown, text=[text], add_special_tokens=False, return_tensors="pt"
            )
            with torch.no_grad():
                logits = model(**inputs).logits[0]
            given = Packer(processor.tokenizer, 16).answer(ask.answer)
            assert inputs["input_ids"][0, -len(given) :].tolist() == list(given)
            alone = logits[-len(given) - 1 : -1]
            torch.testing.assert_close(packed[at : at + len(given)], alone, atol=1e-4, rtol=1e-4)
            at += len(given)
    assert at == len(packed)


def test_a_shifted_position_would_show(trainer: Trainer, monkeypatch: pytest.MonkeyPatch) -> None:
    """The bound of the test above is small against a position that is one off."""
    model = trainer.model.eval()
    rng = stream("test", "shifted", 0, 0)
    batch = trainer.packer.pack(rng, [ROWS["frames"](rng, TEST_LOOK, 0, 3)], 3)
    with torch.no_grad():
        seen = see(model, batch.pixels)
        right, _ = answer_logits(model, seen, batch)
        batch.position += 1
        wrong, _ = answer_logits(model, seen, batch)
    assert (right - wrong).abs().max() > 1e-3


def test_all_patches_chosen_is_no_choice(trainer: Trainer) -> None:
    model = trainer.model.eval()
    rng = stream("test", "chosen", 0, 0)
    batch = trainer.packer.pack(rng, [ROWS["album"](rng, TEST_LOOK, 0, 2) for _ in range(2)], 4)
    every = torch.arange(batch.planes.shape[-1]).expand(4, -1)
    with torch.no_grad():
        seen = see(model, batch.pixels)
        whole, _ = answer_logits(model, seen, batch)
        chosen, _ = answer_logits(model, seen, batch, every)
        fewer, _ = answer_logits(model, seen, batch, every[:, 1:])
    assert torch.equal(whole, chosen)
    assert not torch.equal(whole, fewer)


def test_chosen_patches_are_all_that_is_drawn() -> None:
    packer = Packer(build_tokenizer(), 8)
    rng = stream("test", "drawn", 0, 0)
    batch = packer.pack(rng, [ROWS["frames"](rng, TEST_LOOK, 0, 4) for _ in range(2)], 4)
    drawn = (batch.planes > 0).any(2).any(1)
    noise = torch.from_numpy(rng.random(drawn.shape, np.float32))
    chosen = drawn_first(batch, 96, noise)
    assert int(drawn.sum(1).max()) < chosen.shape[1] < 96
    kept = torch.zeros_like(drawn).scatter(1, chosen, True)
    assert not (drawn & ~kept).any()
    assert drawn_first(batch, 10, noise).shape == (8, 10)
    assert (chosen[:, 1:] > chosen[:, :-1]).all()


@pytest.mark.parametrize("count", [1, 2, 3, 4, 8, 16])
def test_template_names_each_of_several_pictures(count: int) -> None:
    processor = build_processor(8, build_tokenizer())
    content = [
        *({"type": "image"} for _ in range(count)),
        {"type": "text", "text": "Where is RED?"},
    ]
    text = processor.apply_chat_template([{"role": "user", "content": content}], tokenize=False)
    marks = ["" if count == 1 else " " + quarter(i, count) for i in range(count)]
    assert text == "<s>" + "".join(f"{mark}<image>" for mark in marks) + " where is red"


def test_quarters_of_a_film() -> None:
    assert [quarter(i, 3) for i in range(3)] == list(ORDINALS[:3])
    assert [quarter(i, 8) for i in range(8)] == [name for name in ORDINALS for _ in range(2)]


def test_a_draw_has_rows_of_equally_many_pictures() -> None:
    mix = {"shapes": 0.5, "album": 0.3, "frames": 0.2}
    kinds: set[str] = set()
    sizes: set[tuple[int, int]] = set()
    for seed in range(40):
        scenes = draw_scenes(np.random.default_rng(seed), mix, 8, 1.0)
        (pictures,) = {len(scene.pages()) for scene in scenes}
        kinds |= {scene.kind for scene in scenes}
        sizes.add((pictures, len(scenes)))
        assert len({scene.kind in SEVERAL for scene in scenes}) == 1
    assert kinds == set(mix)
    assert sizes == {(1, 8), (2, 4), (3, 2), (4, 2)}


def test_unequal_rows_cannot_share_a_batch() -> None:
    packer = Packer(build_tokenizer(), 8)
    rng = stream("test", "unequal", 0, 0)
    rows = [ROWS["frames"](rng, TEST_LOOK, 0, count) for count in (2, 3)]
    with pytest.raises(InputError, match=r"scenes of \[2, 3\] pictures"):
        packer.pack(rng, rows, 3)


@pytest.mark.parametrize("kind", ASKED)
def test_every_kind_trains_and_is_measured(tmp_path: Path, kind: str) -> None:
    recipe = from_dict(
        {
            "model": GEOMETRY,
            "stages": [{**STAGE, "steps": 2, "mix": {kind: 1.0}}],
            "measure_pictures": 4,
        }
    )
    trainer = Trainer(recipe, tmp_path, _quiet)
    start = {name: weight.clone() for name, weight in trainer.model.state_dict().items()}
    trainer.run()
    moved = {n for n, w in trainer.model.state_dict().items() if not torch.equal(w, start[n])}
    assert any("language_model" in name for name in moved)
    assert any("vision_tower" in name for name in moved)
    (row,) = read_log(tmp_path)
    families = {name for name, known in FAMILIES.items() if known.kind == kind}
    if kind == "album":  # which of them are drawn depends on the pictures of a row
        assert families & set(row["dev"])
    else:
        assert families <= set(row["dev"])


def test_attention_in_float32_changes_no_answer() -> None:
    geometry = Geometry(**GEOMETRY)
    tokenizer = build_tokenizer()
    plain, _ = build(geometry, len(tokenizer), 0)
    other, _ = build(geometry, len(tokenizer), 0)
    attend_in_float32(other)
    rng = stream("test", "float32", 0, 0)
    batch = Packer(tokenizer, 16).pack(rng, [ROWS["frames"](rng, TEST_LOOK, 0, 2)], 3)
    with torch.no_grad():
        a, b = (answer_logits(m, see(m, batch.pixels), batch)[0] for m in (plain, other))
        torch.testing.assert_close(a, b)
        with torch.autocast("cpu", torch.bfloat16):
            c = answer_logits(other, see(other, batch.pixels), batch)[0]
    assert (c - a).abs().max() < 0.1 * a.abs().max()
