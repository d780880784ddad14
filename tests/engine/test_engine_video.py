"""Videos through the engine: frames in, a video segment with its counts out."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from foveate.core.errors import InputError
from foveate.engine.engine import Engine
from foveate.engine.request import Request
from tests.models.tiny_processors import save_folder
from tests.support import tiny

FAMILIES = ("llava_onevision", "qwen2_vl", "qwen2_5_vl", "qwen3_vl", "internvl", "smolvlm")
NO_MARKS = {"suppress_tokens": [tiny.IMAGE, tiny.VIDEO]}


def clip(frames: int = 6, side: int = 56) -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [rng.integers(0, 255, (side, side, 3), dtype=np.uint8) for _ in range(frames)]


@pytest.fixture(scope="module", params=FAMILIES)
def engine(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Engine:
    name = str(request.param)
    folder = save_folder(name, tiny.make_model(name), tmp_path_factory.mktemp(name))
    return Engine.from_pretrained(folder)


def test_a_video_is_answered_with_fewer_tokens(engine: Engine) -> None:
    request = Request("what is in the picture ?", videos=[clip()])
    full = engine.generate([request], None, max_new_tokens=3, **NO_MARKS)[0]
    kept = engine.generate([request], "divprune:keep=1/3", max_new_tokens=3, **NO_MARKS)[0]
    assert full.ok and kept.ok, (full.error, kept.error)
    a, b = full.report, kept.report
    assert a is not None and b is not None
    assert 0 < b.visual_tokens_kept < b.visual_tokens_in == a.visual_tokens_in
    assert b.prompt_tokens < a.prompt_tokens


def test_a_video_beside_pictures_and_text_in_one_call(engine: Engine) -> None:
    requests = [
        Request("colour ?", videos=[clip(4)]),
        Request("what is in the picture ?", images=[clip(1)[0]]),
        Request("is the picture in the picture ?"),
    ]
    answers = engine.generate(requests, "uniform:keep=1/2", max_new_tokens=3, **NO_MARKS)
    assert all(a.ok for a in answers), [a.error for a in answers]
    alone = [
        engine.generate([r], "uniform:keep=1/2", max_new_tokens=3, **NO_MARKS)[0] for r in requests
    ]
    assert [a.token_ids for a in answers] == [a.token_ids for a in alone]


def test_a_missing_video_is_reported_for_its_request_alone(engine: Engine, tmp_path: Path) -> None:
    requests = [Request("colour ?", videos=[tmp_path / "absent.mp4"]), Request("colour ?")]
    answers = engine.generate(requests, None, max_new_tokens=2, **NO_MARKS)
    assert isinstance(answers[0].error, InputError) and answers[1].ok
