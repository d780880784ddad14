"""What a plan does to vLLM under load: LLaVA with 576 visual tokens an image, through the OpenAI
server, beside the same server without the plug-in.

    python -m bench.vllm_load --python PYTHON_WITH_VLLM [--blocks 6] [--images 64] [--fresh]

Both servers run all the time; in each block they take turns, first one, then the other, at each
concurrency, with the same pictures, which are new in every turn pair, so that nothing comes from a
cache. CPU seconds are those of the server's process tree. Rounds are kept as they end, and a later
call goes on behind them; --fresh begins anew. The bound of a ratio is the lower end of the two-sided
90 % interval of Student's t over the logarithms of block pairs.
"""

from __future__ import annotations

import argparse
import asyncio
import io
import json
import os
import statistics
import time
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from bench.common import RESULTS, machine
from bench.vllm_llava import EDGE, save_llava
from bench.vllm_server import VllmServer, version
from foveate.audit.http_target import HttpTarget
from foveate.audit.load import Closed, run_block
from foveate.audit.records import Item, Picture, Row
from foveate.measure.ratio import Ratio
from foveate.serve.vllm.count import count_picture

PLAN = "visionzip:keep=1/9"
CONCURRENCY = (1, 8, 32)
NEW_TOKENS = 8
THREADS = 1  # of each engine
ARMS = ("whole", "plan")
BLOCKS = 6
CPU_MOST, RATE_LEAST, CONFIDENCE = 0.6, 0.95, 0.90
RESULT = RESULTS / "vllm-load.json"
Round = dict[str, Any]


def pictures(seed: int, n: int) -> list[Picture]:
    """n distinct pictures of coloured blocks, as PNG."""
    found = []
    for i in range(n):
        blocks = np.random.default_rng((seed, i)).integers(0, 255, (24, 24, 3), dtype=np.uint8)
        out = io.BytesIO()
        Image.fromarray(blocks).resize((EDGE, EDGE), 0).save(out, "PNG")
        found.append(Picture(out.getvalue(), "image/png"))
    return found


def items(block: int, concurrency: int, n: int) -> list[Item]:
    """One turn's requests; both arms get the same."""
    question = "what is in the picture, and what colour is it?"
    seed = block * 1000 + concurrency
    return [
        Item(f"{seed}-{i}", (p,), question, (), "loyalty", "load", NEW_TOKENS)
        for i, p in enumerate(pictures(seed, n))
    ]


async def turn(
    target: HttpTarget, asked: list[Item], concurrency: int, place: tuple[int, int]
) -> Round:
    """One arm's turn: CPU seconds a request, requests a second, median latency."""
    rows: list[Row] = []
    block = await run_block(
        target,
        asked,
        Closed(concurrency),
        block=place[0],
        place=place[1],
        seed=0,
        warmup_requests=0,
        timeout_s=600.0,
        time_limit_s=None,
        on_row=rows.append,
    )
    failed = [r.observed.error_detail for r in rows if r.observed.error is not None]
    if failed:
        raise RuntimeError(f"{len(failed)} requests of {target.arm} failed: {failed[0]}")
    seen = [r.observed for r in rows]
    window_s = block.end_s - block.start_s
    assert block.gained.cpu_s is not None
    return {
        "arm": target.arm,
        "block": place[0],
        "concurrency": concurrency,
        "requests": block.requests,
        "cpu_s_a_request": block.gained.cpu_s / block.requests,
        "requests_a_s": block.requests / window_s,
        "latency_s": statistics.median(o.done_s - o.sent_s for o in seen),
        "prompt_tokens": sorted({o.prompt_tokens for o in seen if o.prompt_tokens is not None}),
        "completion_tokens": sum(o.completion_tokens or 0 for o in seen),
        "load_average": os.getloadavg()[0],
    }


def holds(rounds: list[Round]) -> list[dict[str, Any]]:
    """What was found, and whether the bounds hold, by concurrency; blocks with both arms alone."""
    found = []
    for concurrency in CONCURRENCY:
        by_arm = {
            arm: {
                r["block"]: r for r in rounds if (r["arm"], r["concurrency"]) == (arm, concurrency)
            }
            for arm in ARMS
        }
        both = sorted(by_arm["whole"].keys() & by_arm["plan"].keys())
        if not both:
            continue
        pairs = [(by_arm["plan"][b], by_arm["whole"][b]) for b in both]
        cpu = Ratio.of(*zip(*[[r["cpu_s_a_request"] for r in p] for p in pairs], strict=True))
        rate = Ratio.of(*zip(*[[r["requests_a_s"] for r in p] for p in pairs], strict=True))
        latency = Ratio.of(*zip(*[[r["latency_s"] for r in p] for p in pairs], strict=True))
        spans = {"cpu": cpu.interval(CONFIDENCE), "rate": rate.interval(CONFIDENCE)}
        found.append(
            {
                "concurrency": concurrency,
                "blocks": len(both),
                "cpu_ratio": cpu.estimate,
                "cpu_ratio_90": [spans["cpu"].low, _finite(spans["cpu"].high)],
                "rate_ratio": rate.estimate,
                "rate_ratio_90": [spans["rate"].low, _finite(spans["rate"].high)],
                "latency_ratio": latency.estimate,
                "cpu_holds": cpu.estimate <= CPU_MOST,
                "rate_holds": spans["rate"].low >= RATE_LEAST,
            }
        )
    return found


def _finite(value: float) -> float | None:
    return value if np.isfinite(value) else None


def claims(found: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Lines for `make claims`; None where fewer blocks were run than the claim asks for."""
    lines = []
    for f in found:
        enough = f["blocks"] >= BLOCKS
        for name, what, bound in (
            ("cpu", "server CPU seconds a request", f"at most {CPU_MOST}"),
            ("rate", "requests a second", f"lower bound at least {RATE_LEAST}"),
        ):
            low, high = f[f"{name}_ratio_90"]
            span = f"{low:.2f} to {'inf' if high is None else f'{high:.2f}'}"
            lines.append(
                {
                    "id": "V2",
                    "what": f"vLLM's server under load, {PLAN}, {f['concurrency']} at once: {what} "
                    "over the uncompressed server's",
                    "figure": f"{f[f'{name}_ratio']:.2f} (90 %: {span}, {f['blocks']} blocks)",
                    "bound": bound,
                    "holds": f[f"{name}_holds"] if enough else None,
                }
            )
    return lines


def write(path: Path, rounds: list[Round], about: dict[str, Any]) -> None:
    found = holds(rounds)
    enough = len(found) == len(CONCURRENCY) and all(f["blocks"] >= BLOCKS for f in found)
    every = enough and all(f["cpu_holds"] and f["rate_holds"] for f in found)
    bounds = {"cpu_ratio_most": CPU_MOST, "rate_ratio_least": RATE_LEAST, "confidence": CONFIDENCE}
    data = {**about, "bounds": bounds, "found": found, "complete": enough, "holds": every}
    data["claims"] = claims(found)
    path.write_text(json.dumps({**data, "rounds": rounds}, indent=1) + "\n")


def table(found: list[dict[str, Any]]) -> str:
    lines = ["concurrency  blocks  CPU s/request   requests/s          latency"]
    for f in found:
        low, high = f["rate_ratio_90"]
        span = f"{low:.2f} to {'inf' if high is None else f'{high:.2f}'}"
        cpu, rate = f["cpu_ratio"], f["rate_ratio"]
        marks = f"{'' if f['cpu_holds'] else 'CPU '}{'' if f['rate_holds'] else 'RATE'}"
        lines.append(
            f"{f['concurrency']:11d}  {f['blocks']:6d}  x {cpu:.3f}         x {rate:.2f} ({span})  "
            f"x {f['latency_ratio']:.2f}  {'fails: ' + marks if marks else 'holds'}"
        )
    return "\n".join(lines)


async def measure(given: argparse.Namespace, rounds: list[Round], about: dict[str, Any]) -> None:
    work: Path = given.work
    model = save_llava(work / "llava")
    plans = {"whole": None, "plan": PLAN}
    counted = count_picture(EDGE, EDGE, PLAN, model)
    servers = {
        a: VllmServer(given.python, model, plans[a], work / f"{a}.log", threads=THREADS)
        for a in ARMS
    }
    with servers["whole"], servers["plan"]:
        for server in servers.values():
            server.ready()
        about["options"] = servers["plan"].options
        about["visual_tokens"] = {"whole": counted.whole, "plan": counted.kept}
        targets = {}
        for arm, server in servers.items():
            extra = {"ignore_eos": True}
            targets[arm] = HttpTarget(
                arm, server.url, extra_body=extra, pid=server.pid, timeout_s=600
            )
            await targets[arm].open()
            await turn(targets[arm], items(999, 8, 8), 8, (-1, 0))  # warm-up, not kept
        done = {(r["arm"], r["block"], r["concurrency"]) for r in rounds}
        for block in range(given.blocks):
            # Who goes first alternates, and so does the order of the loads.
            order = ARMS if block % 2 == 0 else ARMS[::-1]
            for concurrency in CONCURRENCY if block % 2 == 0 else CONCURRENCY[::-1]:
                if all((a, block, concurrency) in done for a in ARMS):
                    continue
                asked, pair = items(block, concurrency, given.images), []
                for place, arm in enumerate(order):
                    pair.append(await turn(targets[arm], asked, concurrency, (block, place)))
                check(pair, counted.whole - counted.kept)
                rounds += pair
                write(given.result, rounds, about)
                print(
                    time.strftime("%H:%M:%S"), f"block {block}, {concurrency} at once", flush=True
                )
        for target in targets.values():
            await target.close()


def check(pair: list[Round], saved: int) -> None:
    """The servers did what they should: as many tokens fewer as the plan says, answers as long."""
    by_arm = {r["arm"]: r for r in pair}
    (whole,), (less,) = by_arm["whole"]["prompt_tokens"], by_arm["plan"]["prompt_tokens"]
    if whole - less != saved:
        raise RuntimeError(f"{whole} and {less} prompt tokens: the plan should save {saved}")
    if len({r["completion_tokens"] for r in pair}) != 1:
        raise RuntimeError("the servers wrote answers of different lengths")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--python", default=os.environ.get("VLLM_PYTHON"), help="has vLLM, foveate")
    parser.add_argument("--blocks", type=int, default=BLOCKS)
    parser.add_argument("--images", type=int, default=64, help="pictures a turn")
    parser.add_argument("--result", type=Path, default=RESULT)
    parser.add_argument("--work", type=Path, default=Path("runs/vllm-load"))
    parser.add_argument("--fresh", action="store_true", help="forget rounds of earlier calls")
    given = parser.parse_args()
    if not given.python:
        parser.error("name the Python that has vLLM and foveate: --python or VLLM_PYTHON")
    given.work.mkdir(parents=True, exist_ok=True)
    about: dict[str, Any] = {
        "plan": PLAN,
        "images": given.images,
        "new_tokens": NEW_TOKENS,
        "engine_threads": THREADS,
        "machine": {**machine(), **version(given.python)},
    }
    rounds: list[Round] = []
    if given.result.exists() and not given.fresh:
        old = json.loads(given.result.read_text())
        same = all(old.get(k) == about[k] for k in ("plan", "images", "new_tokens"))
        if not same:
            parser.error(f"{given.result.name} holds rounds of another setting; use --fresh")
        rounds = old["rounds"]
    done = {(r["arm"], r["block"], r["concurrency"]) for r in rounds}
    wanted = {(a, b, c) for a in ARMS for b in range(given.blocks) for c in CONCURRENCY}
    if wanted <= done:
        # Nothing is left: the figures are written anew from the rounds that are there.
        about = {k: v for k, v in old.items() if k not in ("rounds", "claims")}
        write(given.result, rounds, about)
    else:
        asyncio.run(measure(given, rounds, about))
    print(table(holds(rounds)))
    print(json.dumps({"bench": "vllm-load", "found": holds(rounds)}))


if __name__ == "__main__":
    main()
