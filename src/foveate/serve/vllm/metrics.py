"""Counters on the server's own /metrics page: a plug-in that stopped working shows there."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from typing import Any

_made: dict[str, Any] = {}
_making = threading.Lock()


def _counter(name: str, text: str) -> Any:
    """The counter of that name; the registry takes a name once, and threads come at the same time."""
    from prometheus_client import Counter

    with _making:
        if name not in _made:
            _made[name] = Counter(name, text, ["modality"])
        return _made[name]


def count(
    placeholders: Mapping[str, Sequence[Any]], prompt: Sequence[int], tokens: Mapping[str, int]
) -> None:
    """Add one request's pictures and videos and the visual tokens kept of them, vLLM's start-up
    profiling included. prompt: its ids; tokens: the placeholder of each modality.
    """
    items = _counter("foveate_items", "Pictures and videos that passed through Foveate's plug-in")
    kept = _counter("foveate_visual_tokens_kept", "Visual tokens that entered the language model")
    for modality, ranges in placeholders.items():
        items.labels(modality).inc(len(ranges))
        kept.labels(modality).inc(sum(visual(r, prompt, tokens[modality]) for r in ranges))


def visual(span: Any, prompt: Sequence[int], token: int) -> int:
    """Visual tokens of one placeholder range; its other tokens are markers and words."""
    return sum(x == token for x in prompt[span.offset : span.offset + span.length])
