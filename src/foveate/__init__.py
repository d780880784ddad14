"""Foveate: vision-language models that look only where they need to.

Importing this module imports no torch; each public name loads its own module when it is first used.
"""

from __future__ import annotations

import importlib
import logging
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from foveate.core import Budget, Plan, Report, methods
    from foveate.core.errors import FoveateError
    from foveate.engine.attach import attach
    from foveate.engine.cache import FeatureCache
    from foveate.engine.engine import Engine
    from foveate.engine.loading import load
    from foveate.engine.request import Answer, Request
    from foveate.serve.vllm.count import count_tokens

__version__ = "0.1.0.dev0"

__all__ = [
    "Answer",
    "Budget",
    "Engine",
    "FeatureCache",
    "FoveateError",
    "Plan",
    "Report",
    "Request",
    "__version__",
    "attach",
    "count_tokens",
    "load",
    "methods",
]

_HOMES = {
    "Answer": "foveate.engine.request",
    "Budget": "foveate.core",
    "Engine": "foveate.engine.engine",
    "FeatureCache": "foveate.engine.cache",
    "FoveateError": "foveate.core.errors",
    "Plan": "foveate.core",
    "Report": "foveate.core",
    "Request": "foveate.engine.request",
    "attach": "foveate.engine.attach",
    "count_tokens": "foveate.serve.vllm.count",
    "load": "foveate.engine.loading",
    "methods": "foveate.core",
}

logging.getLogger("foveate").addHandler(logging.NullHandler())


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'foveate' has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
