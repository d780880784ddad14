"""vLLM's OpenAI server as a process of its own, for benchmarks on a CPU."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.request
from pathlib import Path
from types import TracebackType
from typing import Any

SERVED = "llava"
ENVIRONMENT = {
    "HF_HUB_OFFLINE": "1",
    "VLLM_CPU_KVCACHE_SPACE": "1",  # GiB
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_LOGGING_LEVEL": "WARNING",
    "VLLM_NO_USAGE_STATS": "1",
}


class VllmServer:
    """Runs while the block lasts; its log is written to `log`. plan: None starts vLLM without the
    plug-in. `python` has vLLM, and foveate where there is a plan. threads: of the engine.
    """

    def __init__(
        self,
        python: str,
        model: Path,
        plan: str | None,
        log: Path,
        *,
        threads: int = 1,
        options: tuple[str, ...] = (),
    ) -> None:
        self.plan, self.log = plan, log
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = int(free.getsockname()[1])
        self._command = [
            python, "-m", "vllm.entrypoints.openai.api_server",
            "--model", str(model), "--served-model-name", SERVED,
            "--host", "127.0.0.1", "--port", str(self.port),
            "--dtype", "float32", "--max-model-len", "2048", "--enforce-eager",
            "--block-size", "32", "--max-num-seqs", "32",
            "--limit-mm-per-prompt", '{"image": 1, "video": 0}', *options,
        ]  # fmt: skip
        if plan is not None:
            self._command += ["--additional-config", json.dumps({"foveate": {"plan": plan}})]
        self._environment = {**os.environ, **ENVIRONMENT, "OMP_NUM_THREADS": str(threads)}
        if plan is None:
            self._environment["VLLM_PLUGINS"] = ""
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1"

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    @property
    def options(self) -> list[str]:
        """The command without what differs from machine to machine."""
        return self._command[self._command.index("--dtype") :]

    def __enter__(self) -> VllmServer:
        with self.log.open("wb") as log:
            self._process = subprocess.Popen(
                self._command,
                env=self._environment,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        return self

    def ready(self, timeout_s: float = 600.0) -> None:
        """Wait until it answers; RuntimeError with the end of its log if it ends before."""
        assert self._process is not None
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            if self._process.poll() is not None:
                break
            try:
                with urllib.request.urlopen(f"{self.url}/models", timeout=5):
                    return
            except (OSError, urllib.error.URLError):
                time.sleep(1)
        end = self.log.read_text(errors="replace")[-3000:]
        self.stop()
        raise RuntimeError(f"vLLM did not start (plan {self.plan}):\n{end}")

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()

    def stop(self) -> None:
        """End it and the processes it started; again does nothing."""
        process = self._process
        if process is None or process.returncode is not None:
            return
        self._signal(signal.SIGTERM)
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            self._signal(signal.SIGKILL)
            process.wait()

    def _signal(self, which: int) -> None:
        try:
            os.killpg(self.pid, which)
        except ProcessLookupError:
            return


def version(python: str) -> dict[str, Any]:
    """Versions of vLLM, transformers and torch that `python` has."""
    code = (
        "import json; from importlib.metadata import version, packages_distributions as p; "
        "print(json.dumps({n: version(p()[n][0]) for n in ('vllm', 'transformers', 'torch')}))"
    )
    done = subprocess.run([python, "-c", code], capture_output=True, text=True, check=True)
    found: dict[str, Any] = json.loads(done.stdout)
    return found
