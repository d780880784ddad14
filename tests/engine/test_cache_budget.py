"""The feature cache's budgets, in memory and in a folder, and the command line's use of both."""

from __future__ import annotations

import logging
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
import torch

from foveate.core.errors import SettingError
from foveate.engine.cache import CacheStats, FeatureCache
from foveate.models.adapter import AutoAdapter, adapter_for
from tests.cli.cli_cases import call
from tests.engine.test_cache import ask, family, images, runs, same, short
from tests.engine.test_engine import picture
from tests.models.tiny_processors import save_folder
from tests.support import tiny

__all__ = ["family"]  # a fixture


# --- the byte budget ----------------------------------------------------------------------------
def fill(adapter: AutoAdapter, cache: FeatureCache, seed: int) -> CacheStats:
    mm = adapter.media_kwargs(tiny.random_images("llava", 1, seed=seed), "image")
    with torch.no_grad():
        cache.encode(adapter, mm)
    return cache.stats


def test_memory_keeps_to_its_budget_and_the_last_used_stay() -> None:
    adapter = adapter_for(tiny.cached_model("llava"))
    size = fill(adapter, FeatureCache(), 0).bytes
    assert size > 0
    cache = FeatureCache(2 * size)
    for seed in (0, 1, 0, 2):  # 1 is the longest unused when 2 comes
        stats = fill(adapter, cache, seed)
        assert stats.bytes <= 2 * size
    assert (stats.entries, stats.evictions, stats.hits, stats.misses) == (2, 1, 1, 3)
    assert fill(adapter, cache, 0).hits == 2
    assert fill(adapter, cache, 1).misses == 4


def test_what_is_larger_than_the_budget_pushes_nothing_out() -> None:
    adapter = adapter_for(tiny.cached_model("llava"))
    cache = FeatureCache(1)
    stats = [fill(adapter, cache, 0) for _ in range(2)][-1]
    assert (stats.entries, stats.bytes, stats.misses, stats.evictions) == (0, 0, 2, 0)


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"max_bytes": 0}, "max_bytes"),
        ({"max_bytes": -5}, "max_bytes"),
        ({"max_bytes": True}, "max_bytes"),
        ({"max_bytes": 1.5}, "max_bytes"),
        ({"max_disk_bytes": 5}, "folder="),
        ({"folder": "here", "max_disk_bytes": 0}, "max_disk_bytes"),
    ],
)
def test_bad_settings_are_named(
    settings: dict[str, Any], named: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SettingError, match=named):
        FeatureCache(**settings)
    assert not list(tmp_path.iterdir())


def test_a_file_is_no_folder(tmp_path: Path) -> None:
    path = tmp_path / "taken"
    path.write_text("x")
    with pytest.raises(SettingError, match="folder"):
        FeatureCache(folder=path)


def test_threads_share_one_cache() -> None:
    adapter = adapter_for(tiny.cached_model("llava"))
    size = fill(adapter, FeatureCache(), 0).bytes
    cache, errors = FeatureCache(2 * size), []

    def work() -> None:
        try:
            for i in range(12):
                fill(adapter, cache, i % 3)
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=work) for _ in range(3)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    stats = cache.stats
    assert not errors and stats.hits + stats.misses == 36
    assert stats.bytes == sum(e.nbytes for e in cache._entries.values()) <= 2 * size


# --- on disk ------------------------------------------------------------------------------------
def test_a_folder_outlives_the_cache(family: str, tmp_path: Path) -> None:
    model = tiny.cached_model(family)
    inputs = ask(family, images(family), [1, 2])
    for plan in ("none", "visionzip:keep=1/2"):
        same(model, plan, inputs, FeatureCache(folder=tmp_path))
        cache = FeatureCache(folder=tmp_path)
        assert runs(model, plan, inputs, cache) == 0
        assert cache.stats.disk_hits == cache.stats.hits > 0
        same(model, plan, inputs, FeatureCache(folder=tmp_path))
    names = {p.suffix for p in tmp_path.iterdir()}
    assert names == {".safetensors"}


CHILD = """
import sys, torch
torch.set_num_threads(1)
from tests.engine.test_cache import FeatureCache, ask, images, runs, tiny
print(runs(tiny.cached_model("llava"), "none", ask("llava", images("llava"), [1, 2]),
           FeatureCache(folder=sys.argv[1])))
"""


def test_another_process_finds_what_this_one_kept(tmp_path: Path) -> None:
    found = subprocess.run(
        [sys.executable, "-c", CHILD, str(tmp_path)], capture_output=True, text=True, check=True
    )
    assert int(found.stdout.split()[-1]) > 0
    inputs = ask("llava", images("llava"), [1, 2])
    assert runs(tiny.cached_model("llava"), "none", inputs, FeatureCache(folder=tmp_path)) == 0


@pytest.mark.parametrize("damage", ["cut", "empty", "flipped", "text", "swapped", "class"])
def test_damaged_files_are_misses_and_go(
    damage: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model = tiny.cached_model("llava")
    inputs = ask("llava", images("llava", 1), [1])
    short(model, "none", inputs, FeatureCache(folder=tmp_path))
    (path,) = tmp_path.iterdir()
    whole = path.read_bytes()
    if damage == "swapped":
        short(
            model,
            "none",
            ask("llava", images("llava", 1, seed=9), [1]),
            FeatureCache(folder=tmp_path),
        )
        (other,) = set(tmp_path.iterdir()) - {path}
        path.write_bytes(other.read_bytes())
        other.unlink()
    else:
        path.write_bytes(
            {
                "cut": whole[:-100],
                "empty": b"",
                "flipped": whole[:-3] + bytes([whole[-3] ^ 64]) + whole[-2:],
                "text": b"no tensors here" * 20,
                "class": whole.replace(
                    b"BaseModelOutputWithPooling", b"PreTrainedModelForSurprise"
                ),
            }[damage]
        )
    cache = FeatureCache(folder=tmp_path)
    with caplog.at_level(logging.WARNING, "foveate"):
        same(model, "none", inputs, cache)
    assert cache.stats.damaged_files == 1 and "damaged" in caplog.text
    assert cache.stats.disk_hits == 0
    assert runs(model, "none", inputs, FeatureCache(folder=tmp_path)) == 0  # written anew


def test_the_folder_keeps_to_its_budget_and_leaves_other_files_alone(tmp_path: Path) -> None:
    adapter = adapter_for(tiny.cached_model("llava"))
    (tmp_path / "mine.safetensors").write_bytes(b"x" * 9)
    one = FeatureCache(folder=tmp_path)
    size = fill(adapter, one, 0).disk_bytes
    small = FeatureCache(folder=tmp_path, max_disk_bytes=2 * size + size // 2)
    for seed in range(1, 5):
        stats = fill(adapter, small, seed)
        on_disk = sum(p.stat().st_size for p in tmp_path.glob("?" * 64 + ".safetensors"))
        assert stats.disk_bytes == on_disk <= small.disk.max_bytes  # type: ignore[union-attr]
    assert stats.disk_evictions == 3
    fresh = FeatureCache(folder=tmp_path)
    assert fill(adapter, fresh, 4).disk_hits == 1
    assert fill(adapter, fresh, 0).misses == 1
    small.clear()
    assert [p.name for p in tmp_path.iterdir()] == ["mine.safetensors"]
    assert small.stats.entries == small.stats.disk_bytes == 0


def test_a_folder_that_fills_up_costs_a_warning_not_the_answer(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("foveate.engine.cache_disk.save_file", full)
    adapter, cache = adapter_for(tiny.cached_model("llava")), FeatureCache(folder=tmp_path)
    with caplog.at_level(logging.WARNING, "foveate"):
        fill(adapter, cache, 0)
    assert "No space left" in caplog.text and not list(tmp_path.iterdir())
    assert fill(adapter, cache, 0).hits == 1


# --- on the command line ------------------------------------------------------------------------
def test_the_command_line_keeps_a_folder_and_chat_its_pictures(tmp_path: Path) -> None:
    folder = save_folder("llava", tiny.make_model("llava"), tmp_path / "model")
    shot, store = tmp_path / "shot.png", tmp_path / "features"
    picture(40, 40, 1).save(shot)
    words = ("run", shot, "-q", "colour ?", "--model", folder, "--max-new-tokens", 2, "--json")
    first = call(*words, "--feature-cache", store)
    again = call(*words, "--feature-cache", store)
    assert first.exit_code == again.exit_code == 0, first.stderr + again.stderr
    note = "encoder features from the cache"
    assert note not in first.stdout and note in again.stdout
    assert [p.suffix for p in store.iterdir()] == [".safetensors"]
    chat = ("run", shot, "--chat", "--model", folder, "--max-new-tokens", 2, "--json")
    turns = call(*chat, stdin="what ?\ncolour ?\n")
    assert turns.exit_code == 0 and turns.stdout.count(note) == 1
    assert call(*words, "--feature-cache", shot).exit_code == 2
    both = call(*words, "--feature-cache", store, "--compare", "--plan", "uniform:keep=1/2")
    assert both.exit_code == 2 and "--feature-cache" in both.stderr + both.stdout
