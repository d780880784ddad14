"""Asking a planted server through the target of an audit."""

from __future__ import annotations

import asyncio

from foveate.audit.http_target import HttpTarget
from foveate.audit.records import Item, Observed
from foveate.audit.virtual import run_precise


def asked(target: HttpTarget, items: list[Item], pause_s: float = 0.0) -> list[Observed]:
    """One after the other over one session."""

    async def main() -> list[Observed]:
        await target.open()
        try:
            found = []
            for item in items:
                found.append(await target.ask(item))
                await asyncio.sleep(pause_s)
            return found
        finally:
            await target.close()

    return run_precise(main())
