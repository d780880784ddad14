"""End to end: a picture in, two answers and a report out, through the command a user types."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from PIL import Image, ImageDraw


def picture(path: Path) -> Path:
    image = Image.new("RGB", (112, 112), (236, 232, 224))
    ImageDraw.Draw(image).ellipse((20, 24, 54, 58), fill=(200, 30, 30))
    image.save(path)
    return path


def test_a_picture_is_answered_twice_with_and_without_a_plan(tmp_path: Path) -> None:
    source = picture(tmp_path / "circle.png")
    heat = tmp_path / "kept.png"
    command = [
        *(sys.executable, "-m", "foveate.cli", "run", str(source)),
        *("--question", "what shape is red ?", "--plan", "divprune:keep=1/4"),
        *("--compare", "--json", "--picture", str(heat)),
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout.strip().splitlines()[-1])
    full, kept = result["results"][0]["full"], result["results"][0]["plan"]
    assert full["answer"] and kept["answer"]
    assert full["report"]["visual_tokens_in"] == full["report"]["visual_tokens_kept"] == 196
    assert kept["report"]["visual_tokens_kept"] == 49
    assert kept["report"]["prompt_tokens"] == full["report"]["prompt_tokens"] - 147
    assert set(kept["report"]["ms"]) >= {"encode", "select", "prefill", "decode"}
    with Image.open(heat) as shown:
        assert (
            shown.size[0] >= 112
            and len(shown.convert("RGB").getcolors(maxcolors=1 << 20) or []) > 2
        )
