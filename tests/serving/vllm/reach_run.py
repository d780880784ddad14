"""Asks one request after another through an engine in process, each with an answer that fills the context,
and goes on where one is refused; called by the tests with the Python that has vLLM.

    python reach_run.py JOB.json OUT.json

A job as of engine_run.py; the answer: of each request, tokens of its prompt and of its answer and why it
ended, or the error and its kind.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from engine_run import engine, requests


def main(job: dict[str, Any]) -> list[dict[str, Any]]:
    from vllm import SamplingParams

    llm = engine(job)
    sampling = SamplingParams(max_tokens=None, temperature=0, ignore_eos=True)
    found: list[dict[str, Any]] = []
    for request in requests(job):
        try:
            (out,) = llm.generate([request], sampling, use_tqdm=False)
        except Exception as error:  # of any kind, for the tests ask of which
            found.append({"kind": type(error).__name__, "error": str(error)})
            continue
        one = out.outputs[0]
        tokens = [len(out.prompt_token_ids), len(one.token_ids)]
        found.append({"tokens": tokens, "finish": one.finish_reason})
    return found


if __name__ == "__main__":
    answer = main(json.loads(Path(sys.argv[1]).read_text()))
    Path(sys.argv[2]).write_text(json.dumps(answer))
