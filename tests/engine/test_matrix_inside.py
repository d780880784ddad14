"""The support matrix says what families do inside the language model: checked anew, here."""

from __future__ import annotations

import pytest

from foveate.cli import families
from tests.engine.matrix_inside import check_inside
from tests.support import tiny

SHORT = ("qwen2_5_vl", "gemma3_w16", "lfm2_vl")


def _check(name: str) -> None:
    found, known = check_inside(name), families.load()["families"][name]["inside"]
    for key in ("layers", *families.INSIDE, "reasons"):
        assert found[key] == known[key], f"{name}, {key}: run `python -m tests.engine.make_matrix`"


@pytest.mark.parametrize("name", SHORT)
def test_plain_windowed_and_recurrent_families(name: str) -> None:
    _check(name)


@pytest.mark.full
@pytest.mark.parametrize("name", [n for n in tiny.FAMILIES if n not in SHORT])
def test_every_family(name: str) -> None:
    _check(name)
