"""Asks a server through the OpenAI client and writes what came out as JSON; called by the tests with the
Python that has vLLM, and so the client.

    python openai_run.py JOB.json OUT.json

A job: {"url": text, "requests": [body of a chat request, "stream" among its fields]}. An answer is
{"tokens", "logprob", "prompt", "pieces"}, or {"status", "message"} where the server refuses.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from openai import APIError, APIStatusError, OpenAI

TIMEOUT_S = 120.0


def ask(client: OpenAI, body: dict[str, Any]) -> dict[str, Any]:
    try:
        out = client.chat.completions.create(**body)
        pieces = list(out) if body.get("stream") else [out]
    except APIStatusError as error:
        said = error.body if isinstance(error.body, dict) else {}
        return {"status": error.status_code, "message": said.get("message")}
    except APIError as error:
        return {"status": None, "message": error.message}
    tokens, total, prompt = [], 0.0, None
    for piece in pieces:
        if piece.usage is not None:
            prompt = piece.usage.prompt_tokens
        for choice in piece.choices:
            for one in choice.logprobs.content if choice.logprobs else []:
                tokens.append(int(one.token.removeprefix("token_id:")))
                total += one.logprob
    return {"tokens": tokens, "logprob": total, "prompt": prompt, "pieces": len(pieces)}


def main(job: dict[str, Any]) -> list[dict[str, Any]]:
    with OpenAI(base_url=job["url"], api_key="none", max_retries=0, timeout=TIMEOUT_S) as client:
        return [ask(client, body) for body in job["requests"]]


if __name__ == "__main__":
    answer = main(json.loads(Path(sys.argv[1]).read_text()))
    Path(sys.argv[2]).write_text(json.dumps(answer))
