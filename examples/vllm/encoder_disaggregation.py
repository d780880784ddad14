"""The vision encoder in one process, the language model in another, by vLLM's own connector: what goes
over the wire for each picture, with a Foveate plan and without.

    python encoder_disaggregation.py MODEL PICTURE... [--plan visionzip:keep=1/4]
        [--prompt "USER: <image> what is this? ASSISTANT:"] [--dtype auto]

Runs producer and consumer one after the other, each in a process of its own, first with the plan
`none`, then with the given one. On servers the same settings go to `--ec-transfer-config`
(docs/vllm.md). Needs vLLM and foveate in one environment; the prompt needs the model's own marker of
a picture.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any


def settings(role: str, store: Path) -> dict[str, Any]:
    """Options of one role. The producer never builds the language model's answers."""
    options: dict[str, Any] = {
        "ec_transfer_config": {
            "ec_connector": "ECExampleConnector",
            "ec_role": f"ec_{role}",
            "ec_connector_extra_config": {"shared_storage_path": str(store)},
        }
    }
    if role == "producer":
        options |= {"mm_encoder_only": True, "enable_prefix_caching": False}
    return options


def serve(role: str, plan: str, args: argparse.Namespace, store: Path) -> list[str]:
    """One role over all pictures; the consumer's answers."""
    from PIL import Image
    from vllm import LLM, SamplingParams

    engine = LLM(
        model=args.model,
        dtype=args.dtype,
        max_model_len=args.max_model_len,
        enforce_eager=True,
        limit_mm_per_prompt={"image": 1},
        additional_config={"foveate": {"plan": plan}},
        **settings(role, store),
    )
    asked = [
        {"prompt": args.prompt, "multi_modal_data": {"image": Image.open(p).convert("RGB")}}
        for p in args.pictures
    ]
    found = engine.generate(asked, SamplingParams(temperature=0.0, max_tokens=args.new_tokens))
    return [one.outputs[0].text for one in found] if role == "consumer" else []


def bytes_of(store: Path) -> int:
    return sum(f.stat().st_size for f in store.rglob("*") if f.is_file())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("model")
    parser.add_argument("pictures", nargs="+")
    parser.add_argument("--plan", default="visionzip:keep=1/4")
    parser.add_argument("--prompt", default="USER: <image>\nwhat is this? ASSISTANT:")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--max-model-len", type=int, default=2048)
    parser.add_argument("--new-tokens", type=int, default=16)
    parser.add_argument("--role", choices=("producer", "consumer"), help=argparse.SUPPRESS)
    parser.add_argument("--store", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.role:
        for text in serve(args.role, args.plan, args, args.store):
            print(json.dumps({"answer": text}))
        return
    with tempfile.TemporaryDirectory() as folder:
        for number, plan in enumerate(("none", args.plan)):
            store = Path(folder) / str(number)
            words = [sys.executable, __file__, args.model, *args.pictures, "--prompt", args.prompt]
            words += ["--dtype", args.dtype, "--max-model-len", str(args.max_model_len)]
            words += ["--new-tokens", str(args.new_tokens), "--plan", plan, "--store", str(store)]
            for role in ("producer", "consumer"):
                done = subprocess.run(
                    [*words, "--role", role], env=os.environ, stdout=subprocess.PIPE, check=True
                )
                if role == "producer":
                    each = bytes_of(store) / len(args.pictures)
            answers = [x for x in done.stdout.decode().splitlines() if x.startswith('{"answer"')]
            print(f"{plan}: {each:,.0f} bytes a picture on the wire")
            print("\n".join(answers))


if __name__ == "__main__":
    main()
