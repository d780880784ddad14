"""A piece of work in a child process of its own, under a limit: a slow cell cannot hang a grid."""

from __future__ import annotations

import json
import os
import resource
import select
import signal
from collections.abc import Callable
from typing import Any


def forked(
    work: Callable[[], dict[str, Any]], limit_s: float, slack: float = 20.0
) -> dict[str, Any]:
    """What `work` returns, computed in a fork; {"not_run": reason} where it failed or was stopped.

    limit_s bounds the child's CPU seconds; by the clock it gets `slack` times as long, because
    other work may share the core. The parent must have no running threads of its own.
    """
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(read)
        try:
            cpu = max(1, round(limit_s))
            resource.setrlimit(resource.RLIMIT_CPU, (cpu, cpu + 1))
            resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
            answer = work()
        except BaseException as error:  # the parent must hear of any end, interrupts too
            answer = {"not_run": f"{type(error).__name__}: {error}"[:160]}
        with os.fdopen(write, "w") as pipe:
            pipe.write(json.dumps(answer))
        os._exit(0)
    os.close(write)
    with os.fdopen(read) as pipe:
        ready, _, _ = select.select([pipe], [], [], limit_s * slack)
        text = pipe.read() if ready else ""
    if not ready:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        return {"not_run": f"over {limit_s * slack:g} s by the clock"}
    _, status = os.waitpid(child, 0)
    if text:
        found: dict[str, Any] = json.loads(text)
        return found
    signalled = os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0
    if signalled in (signal.SIGXCPU, signal.SIGKILL):  # the latter follows where the first is held
        return {"not_run": f"over {limit_s:g} CPU s"}
    return {"not_run": f"ended by signal {signalled}"}
