"""What is audited: one arm of an audit, an endpoint or our engine under one plan."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from foveate.audit.records import Gauges, Item, Observed

BASELINE = "baseline"
"""The arm that every candidate is compared with: the uncompressed model."""


class Target(Protocol):
    """One arm. `ask` never raises for what the server did wrong: that is in Observed.error.

    Times in Observed are `asyncio.get_running_loop().time()`, so that a test may run on a virtual
    clock. `open` raises a typed error if the target cannot serve at all.
    """

    arm: str

    async def open(self) -> None: ...

    async def ask(self, item: Item) -> Observed: ...

    async def close(self) -> None: ...

    def describe(self) -> Mapping[str, Any]:
        """For the receipt: model, plan and its hash, URL without secrets, versions."""

    def reset(self) -> None:
        """Start the peaks of `gauges` anew."""

    def gauges(self) -> Gauges:
        """The counters now; None for what cannot be read."""
