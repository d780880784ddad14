"""Visual-token compression inside vLLM: an out-of-tree plug-in, loaded by vLLM in every process
through the entry point `vllm.general_plugins`.

    vllm serve MODEL --additional-config '{"foveate": {"plan": "visionzip:keep=1/4"}}'

Importing this package imports nothing heavy: vLLM only logs a plug-in that fails to import and goes
on without it, so all that can fail happens in `register`, whose errors stop the server.
"""

from __future__ import annotations


def register() -> None:
    """Put the families of foveate.serve.vllm.families in the place of vLLM's own, and check plans at
    start-up. May be called more than once. Raises what goes wrong: vLLM then does not start.
    """
    from foveate.serve.vllm.startup import install

    install()
