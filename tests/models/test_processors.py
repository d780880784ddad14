"""Processors without torchvision against stored results of the real ones, and their errors."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers

from foveate.core.errors import (
    CheckpointError,
    InputError,
    MediaError,
    MissingExtraError,
    UnsupportedError,
)
from foveate.models import frame_processors
from foveate.models import processors as processors_module
from foveate.models import video_preprocess as vp
from foveate.models.compat_processors import NoFrames
from foveate.models.processors import build_processor, check_question, placeholders, video_inputs
from foveate.models.video import Video
from tests.models.tiny_processors import FAMILIES, IMAGE, VIDEO, make_processor, save_folder
from tests.models.video_cases import CASES, FIXTURES, SAMPLING, Case, clip, picture, summary

STORED = dict(np.load(FIXTURES / "video_fixtures.npz"))
VIDEO_FAMILIES = [f for f in FAMILIES if f"video/{f}/input_ids" in STORED]
NESTED = ("smolvlm", "idefics3", "llava_onevision")


def frames_class(hub_name: str) -> Any:
    for kind in vars(frame_processors).values():
        if getattr(kind, "hub_name", "") == hub_name:
            return kind
    raise KeyError(hub_name)


def agree(prefix: str, batch: Any, exact: bool = True) -> None:
    """The batch holds exactly the stored keys, with equal integers and equal pixels."""
    keys = {name.split("/")[2] for name in STORED if name.startswith(prefix + "/")}
    assert keys == set(batch) - {"video_metadata"}
    for key in keys:
        array = batch[key].numpy() if torch.is_tensor(batch[key]) else np.asarray(batch[key])
        if f"{prefix}/{key}" in STORED:
            np.testing.assert_array_equal(array, STORED[f"{prefix}/{key}"], err_msg=key)
            continue
        for what, part in summary(array).items():
            stored = STORED[f"{prefix}/{key}/{what}"]
            if what == "sums" or not exact:
                np.testing.assert_allclose(part, stored, rtol=1e-9, atol=1e-6, err_msg=key)
            else:
                np.testing.assert_array_equal(part, stored, err_msg=f"{key} {what}")


@pytest.fixture(autouse=True)
def no_torchvision(monkeypatch: pytest.MonkeyPatch) -> None:
    """Hold our own way to the stored results on machines that have torchvision, too."""
    monkeypatch.setattr(processors_module, "is_torchvision_available", lambda: False)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("processors")
    return {family: save_folder(family, None, root) for family in FAMILIES}


def test_fixtures_are_small_and_complete() -> None:
    assert (FIXTURES / "video_fixtures.npz").stat().st_size < 300_000
    assert VIDEO_FAMILIES == [
        "llava_onevision", "qwen2_vl", "qwen2_5_vl", "qwen3_vl", "smolvlm", "internvl",
    ]  # fmt: skip


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_frames_equal_the_real_video_processor(case: Case) -> None:
    processor = frames_class(case.hub_name)(**case.settings)
    batch = processor(case.videos(), return_tensors="pt", **case.call)
    agree(f"case/{case.name}", batch)


def test_comparison_notices_one_wrong_frame() -> None:
    """The summaries bite: swapping two frames changes them."""
    case = next(c for c in CASES if c.name == "onevision-small")
    videos = case.videos()
    videos[0] = videos[0][::-1]
    batch = frames_class(case.hub_name)(**case.settings)(videos, return_tensors="pt")
    with pytest.raises(AssertionError):
        agree(f"case/{case.name}", batch)


@pytest.mark.parametrize("number", range(len(SAMPLING)))
def test_sampling_equals_the_real_video_processor(number: int) -> None:
    hub_name, settings, total, rate, asked = SAMPLING[number]
    processor = frames_class(hub_name)(**settings)
    facts = {"total_num_frames": total, "fps": rate, "duration": total / rate}
    batch = processor(
        [np.zeros((total, 64, 64, 3), np.uint8)], video_metadata=[facts], return_metadata=True,
        do_sample_frames=True, **asked,
    )  # fmt: skip
    expected = STORED[f"sampling/{number}"].tolist()
    assert list(batch["video_metadata"][0].frames_indices) == expected
    assert len(expected) < total


@pytest.mark.parametrize("family", FAMILIES)
def test_picture_prompt_equals_the_real_processor(family: str, folders: dict[str, Path]) -> None:
    processor = build_processor(folders[family])
    mark = processor.tokenizer.convert_ids_to_tokens(IMAGE)
    rows = [[picture()], [picture(30, 64), picture(28, 28)]]
    batch = processor(
        text=[f"{mark} what is in the picture", f"{mark}{mark} colour"],
        images=rows if family in NESTED else [p for row in rows for p in row],
        return_tensors="pt",
        padding=True,
    )
    agree(f"picture/{family}", batch)
    assert type(processor).__name__ == type(make_processor(family)).__name__
    assert isinstance(processor, transformers.ProcessorMixin)


@pytest.mark.parametrize("family", VIDEO_FAMILIES)
def test_video_prompt_equals_the_real_processor(family: str, folders: dict[str, Path]) -> None:
    processor = build_processor(folders[family])
    mark = processor.tokenizer.convert_ids_to_tokens(VIDEO)
    times = np.array([2, 9, 16, 23, 31]) / 10
    loaded = Video(clip(5, 40, 52), times, fps_source=10.0, duration_s=4.0)
    batch = processor(
        text=[f"{mark} what is in the picture"],
        **video_inputs([loaded]),
        return_tensors="pt",
        padding=True,
    )
    agree(f"video/{family}", batch)


def test_qwen3_writes_the_time_of_each_frame_group(folders: dict[str, Path]) -> None:
    processor = build_processor(folders["qwen3_vl"])
    loaded = Video(clip(4, 40, 52), np.array([0.0, 1.0, 5.0, 9.0]), 0.4, 10.0)
    batch = processor(text="<|video_pad|>", **video_inputs([loaded]), return_tensors="pt")
    text = processor.tokenizer.decode(batch["input_ids"][0])
    # numbers at the mean rate 0.4 are 0, 0, 2, 4: groups (0, 0) s and (5, 10) s
    assert [part.split(">")[0] for part in text.split("<")[1:] if "seconds" in part] == [
        "0.0 seconds",
        "7.5 seconds",
    ]


@pytest.mark.parametrize("family", FAMILIES)
def test_chat_template_survives_the_folder(family: str, folders: dict[str, Path]) -> None:
    processor = build_processor(str(folders[family]))
    assert processor.chat_template == make_processor(family).chat_template
    content: list[dict[str, Any]] = [{"type": "image"}, {"type": "text", "text": "what is it"}]
    prompt = processor.apply_chat_template(
        [{"role": "user", "content": content}], add_generation_prompt=True
    )
    mark = processor.tokenizer.convert_ids_to_tokens(IMAGE)
    assert prompt.count(mark) == 1 and prompt.endswith("what is it\nassistant: ")
    content[0]["image"] = picture()
    batch = processor.apply_chat_template(
        [{"role": "user", "content": content}],
        add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt",
    )  # fmt: skip
    assert int((batch["input_ids"] == IMAGE).sum()) >= 4


@pytest.mark.parametrize("family", FAMILIES)
def test_text_only_request(family: str, folders: dict[str, Path]) -> None:
    batch = build_processor(folders[family])(text=["what is it"], return_tensors="pt", padding=True)
    assert not [key for key in batch if "pixel" in key]
    assert not (batch["input_ids"] >= IMAGE).any()


@pytest.mark.parametrize("family", FAMILIES)
def test_saved_again_it_is_the_same(family: str, folders: dict[str, Path], tmp_path: Path) -> None:
    first = build_processor(folders[family])
    first.save_pretrained(tmp_path)  # type: ignore[attr-defined]
    saved = json.loads((tmp_path / "processor_config.json").read_text())
    assert saved == json.loads((folders[family] / "processor_config.json").read_text())
    assert saved["processor_class"] == type(first).__name__
    if family in VIDEO_FAMILIES:
        assert saved["video_processor"]["video_processor_type"].endswith("VideoProcessor")


def old_layout(folder: Path, target: Path, **preprocessor: Any) -> Path:
    """The folder as older checkpoints look: one preprocessor file, template as JSON."""
    shutil.copytree(folder, target)
    saved = json.loads((target / "processor_config.json").read_text())
    picture_settings = saved.pop("image_processor") | preprocessor
    picture_settings["processor_class"] = saved["processor_class"]
    assert not picture_settings["image_processor_type"].endswith("Pil")
    saved.pop("video_processor", None)
    (target / "preprocessor_config.json").write_text(json.dumps(picture_settings))
    (target / "processor_config.json").unlink()
    template = (target / "chat_template.jinja").read_text()
    (target / "chat_template.json").write_text(json.dumps({"chat_template": template}))
    (target / "chat_template.jinja").unlink()
    return target


def test_old_file_layout(folders: dict[str, Path], tmp_path: Path) -> None:
    folder = old_layout(
        folders["qwen2_5_vl"], tmp_path / "old", size=None, min_pixels=64, max_pixels=4096
    )
    processor = build_processor(folder)
    assert processor.chat_template == make_processor("qwen2_5_vl").chat_template
    mark = processor.tokenizer.convert_ids_to_tokens(VIDEO)
    batch = processor(
        text=[f"{mark} what is in the picture"], videos=[clip(5, 40, 52)], return_tensors="pt"
    )
    assert batch["video_grid_thw"].tolist() == STORED["video/qwen2_5_vl/video_grid_thw"].tolist()
    for what in ("values", "shape"):
        np.testing.assert_array_equal(
            summary(batch["pixel_values_videos"].numpy())[what],
            STORED[f"video/qwen2_5_vl/pixel_values_videos/{what}"],
        )


def test_class_comes_from_the_model_where_no_file_names_it(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    folder = old_layout(folders["qwen2_vl"], tmp_path / "old")
    path = folder / "preprocessor_config.json"
    settings = json.loads(path.read_text())
    del settings["processor_class"]
    path.write_text(json.dumps(settings))
    config = transformers.Qwen2VLConfig()
    assert type(build_processor(folder, config)).__name__ == "Qwen2VLProcessor"
    config.save_pretrained(folder)
    assert type(build_processor(folder)).__name__ == "Qwen2VLProcessor"


def test_patch_count_agrees_with_the_patches() -> None:
    for case in CASES:
        if not case.name.startswith(("qwen2", "qwen3")) or "unresized" in case.name:
            continue
        if len(case.clips) > 1 or "sampled" in case.name:
            continue
        processor = frames_class(case.hub_name)(**case.settings)
        count = processor.get_num_of_video_patches(*case.clips[0])
        assert count == int(STORED[f"case/{case.name}/video_grid_thw"].prod())


# --- bad input ---------------------------------------------------------------------------------


def test_placeholder_in_the_users_text(folders: dict[str, Path]) -> None:
    for family in FAMILIES:
        processor = build_processor(folders[family])
        mark = processor.tokenizer.convert_ids_to_tokens(IMAGE)
        assert mark in placeholders(processor)
        with pytest.raises(InputError, match="placeholder"):
            check_question(processor, f"is this {mark} a cat?")
        check_question(processor, "is a < b or b > a in this image?")


@pytest.mark.parametrize(
    ("name", "source"),
    [
        ("absolute", "/no/such/folder"),
        ("relative", "./none"),
        ("deep", "models/deep/folder"),
        ("empty", ""),
    ],
)
def test_missing_folder(name: str, source: str) -> None:
    with pytest.raises(CheckpointError, match="does not exist"):
        build_processor(source)
    with pytest.raises(CheckpointError, match="does not exist"):
        build_processor(Path("models/none"))


def test_unknown_hub_id_offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(CheckpointError, match="nobody/no-such-model"):
        build_processor("nobody/no-such-model")


@pytest.mark.parametrize("family", ["llava", "qwen2_vl"])
def test_missing_and_broken_files(family: str, folders: dict[str, Path], tmp_path: Path) -> None:
    def without(*names: str) -> Path:
        target = tmp_path / "-".join(names)
        shutil.copytree(folders[family], target)
        for name in names:
            (target / name).unlink()
        return target

    with pytest.raises(CheckpointError, match="no tokenizer"):
        build_processor(without("tokenizer.json"))
    with pytest.raises(CheckpointError, match=r"preprocessor_config\.json"):
        build_processor(without("processor_config.json"))
    with pytest.raises(CheckpointError, match="is a file"):
        build_processor(folders[family] / "tokenizer.json")
    for name in ("processor_config.json", "tokenizer.json"):
        target = without("chat_template.jinja", name)
        (target / name).write_text('{"cut": ')
        with pytest.raises(CheckpointError, match="cannot be loaded"):
            build_processor(target)
    target = without("chat_template.jinja")
    path = target / "processor_config.json"
    saved = json.loads(path.read_text())
    for part in ("image_processor", "video_processor"):
        saved.pop(part, None)
    path.write_text(json.dumps(saved))
    with pytest.raises(CheckpointError, match=r"image processor|processor cannot be loaded"):
        build_processor(target)


def test_no_vision_language_model(folders: dict[str, Path], tmp_path: Path) -> None:
    folder = tmp_path / "text"
    shutil.copytree(folders["llava"], folder)
    (folder / "processor_config.json").write_text("{}")
    (folder / "preprocessor_config.json").write_text("{}")
    transformers.LlamaConfig().save_pretrained(folder)
    with pytest.raises(CheckpointError, match="no vision-language model"):
        build_processor(folder)


@pytest.mark.parametrize("name", ["OwnProcessor", "os", "AutoModel"])
def test_code_of_a_checkpoint_is_never_run(
    name: str, folders: dict[str, Path], tmp_path: Path
) -> None:
    folder = tmp_path / "remote"
    shutil.copytree(folders["llava"], folder)
    path = folder / "processor_config.json"
    saved = json.loads(path.read_text()) | {
        "processor_class": name,
        "auto_map": {"AutoProcessor": "processing_own.OwnProcessor"},
    }
    path.write_text(json.dumps(saved))
    (folder / "processing_own.py").write_text("raise SystemExit('code was run')\n")
    transformers.LlamaConfig().save_pretrained(folder)
    with pytest.raises(UnsupportedError, match="never run"):
        build_processor(folder)


def test_family_without_video_rules_takes_pictures_only(
    monkeypatch: pytest.MonkeyPatch, folders: dict[str, Path]
) -> None:
    monkeypatch.delitem(frame_processors.FRAMES, "Qwen2VLProcessor")
    processor = build_processor(folders["qwen2_vl"])
    assert isinstance(processor.video_processor, NoFrames)  # type: ignore[attr-defined]
    mark = processor.tokenizer.convert_ids_to_tokens(IMAGE)
    assert "pixel_values" in processor(text=[mark], images=[picture()], return_tensors="pt")
    mark = processor.tokenizer.convert_ids_to_tokens(VIDEO)
    with pytest.raises(UnsupportedError, match="Qwen2VLProcessor"):
        processor(text=[mark], videos=[clip(2, 40, 52)], return_tensors="pt")


def test_missing_package_names_the_extra(
    monkeypatch: pytest.MonkeyPatch, folders: dict[str, Path]
) -> None:
    module = transformers.models.smolvlm.processing_smolvlm
    monkeypatch.setattr(module, "num2words", None)
    with pytest.raises(MissingExtraError, match="num2words"):
        build_processor(folders["smolvlm"])


def test_part_that_only_torchvision_builds(
    monkeypatch: pytest.MonkeyPatch, folders: dict[str, Path]
) -> None:
    kind = transformers.Qwen2VLProcessor
    attributes = [*kind.get_attributes(), "qformer_tokenizer"]
    monkeypatch.setattr(kind, "get_attributes", classmethod(lambda cls: attributes))
    with pytest.raises(UnsupportedError, match="qformer_tokenizer"):
        build_processor(folders["qwen2_vl"])


def test_bad_videos() -> None:
    frames = frames_class("Qwen2VLVideoProcessor")()
    with pytest.raises(MediaError, match="load_video"):
        frames(["clip.mp4"])
    with pytest.raises(MediaError, match="uint8"):
        frames([clip(2, 28, 28).astype(np.float32)])
    with pytest.raises(MediaError, match=r"channels|must be"):
        frames([np.zeros((2, 28, 28, 4), np.uint8)])
    with pytest.raises(MediaError):
        frames([])
    with pytest.raises(MediaError, match="pixels"):
        frames([np.zeros((0, 28, 28, 3), np.uint8)])
    with pytest.raises(MediaError, match="200"):
        frames([np.zeros((2, 4, 900, 3), np.uint8)])
    with pytest.raises(InputError, match="wrong_setting"):
        frames([clip(2, 28, 28)], wrong_setting=1)
    with pytest.raises(InputError, match="num_frames or fps"):
        frames([clip(2, 28, 28)], num_frames=1, fps=1, do_sample_frames=True)
    with pytest.raises(InputError, match="frame rate"):
        frames([clip(2, 28, 28)], fps=1, do_sample_frames=True)
    with pytest.raises(InputError, match="ask for fewer"):
        frames([clip(2, 28, 28)], num_frames=8, do_sample_frames=True)
    with pytest.raises(InputError, match="video_metadata"):
        frames([clip(2, 28, 28)], video_metadata=[{}, {}])
    with pytest.raises(MediaError, match="at least 2 frames"):
        frames_class("Qwen3VLVideoProcessor")()([clip(1, 64, 64)], do_sample_frames=False)
    with pytest.raises(InputError, match="equal frame counts"):
        frames_class("InternVLVideoProcessor")()(
            [clip(1, 28, 28), clip(2, 28, 28)], return_tensors="pt"
        )
    with pytest.raises(UnsupportedError, match="resample"):
        frames_class("InternVLVideoProcessor")(resample=4)([clip(1, 28, 28)])


def test_patches_are_laid_out_in_merge_squares() -> None:
    """Against plain loops: row order (time, square, patch), column order (channel, frame, y, x)."""
    patch, temporal, merge = 2, 2, 2
    video = torch.arange(3 * 3 * 8 * 12).reshape(3, 3, 8, 12)
    rows, grid = vp.pack_patches(video, patch, temporal, merge)
    assert grid == (2, 4, 6)
    number = 0
    for t in range(2):
        for square_y in range(2):
            for square_x in range(3):
                for dy in range(merge):
                    for dx in range(merge):
                        y, x = (square_y * merge + dy) * patch, (square_x * merge + dx) * patch
                        pair = [video[min(2 * t + f, 2)] for f in range(temporal)]
                        cells = [
                            pair[f][c, y + i, x + j]
                            for c in range(3)
                            for f in range(temporal)
                            for i in range(patch)
                            for j in range(patch)
                        ]
                        assert rows[number].tolist() == [int(v) for v in cells]
                        number += 1
    assert number == len(rows)
