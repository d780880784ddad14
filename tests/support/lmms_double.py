"""As much of lmms-eval's programming interface (0.7) as our model class touches, for machines
without it. `test_lmms_run.py` runs the class inside the real one where it is installed.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

logged: list[dict[str, Any]] = []


@dataclass
class TokenCounts:
    input_tokens: int | None = None
    output_tokens: int | None = None


@dataclass
class GenerationResult:
    text: str
    token_counts: TokenCounts | None = None


class Base:
    def __init__(self) -> None:
        self.task_dict: dict[str, Any] = {}

    def clean(self) -> None:
        pass


def _log(elapsed_s: float, tokens: int, speed: float, extra: dict[str, Any]) -> None:
    logged.append({"elapsed_s": elapsed_s, "tokens": tokens, "speed": speed, **extra})


def install(patch: pytest.MonkeyPatch) -> None:
    """Put the double where the real packages would be, until the patch is undone."""
    silent = SimpleNamespace(
        info=lambda text: None, warning=lambda text: None, error=lambda text: None
    )
    contents: dict[str, dict[str, Any]] = {
        "lmms_eval": {},
        "lmms_eval.api": {},
        "lmms_eval.api.instance": {
            "GenerationResult": GenerationResult,
            "Instance": object,
            "TokenCounts": TokenCounts,
        },
        "lmms_eval.api.model": {"lmms": Base},
        "lmms_eval.models": {},
        "lmms_eval.models.model_utils": {},
        "lmms_eval.models.model_utils.gen_metrics": {"log_metrics": _log},
        "loguru": {"logger": silent},
    }
    for name, values in contents.items():
        module = ModuleType(name)
        vars(module).update(values)
        patch.setitem(sys.modules, name, module)
    patch.delitem(sys.modules, "foveate.audit.lmms_model", raising=False)
