"""P7, memory: peak resident memory that scoring and selecting adds at N = 10240, in a fresh process
for each method.

python -m bench.memory [--methods a,b] [--tokens 10240] [--keep 1/9]
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys

from bench.common import publish
from foveate.core import registry

MIB = 2**20


def child(name: str, tokens: int, keep: str) -> None:
    import torch

    from bench.geometry import Facts, grid_for
    from bench.selection import select_once
    from foveate.core import Plan
    from foveate.measure.memory import PeakRss

    torch.set_num_threads(1)
    video = registry.get(name).video_only
    small = Facts(256, grid_for(video, 256))
    words = torch.randn(30, 896)
    plan = Plan.parse(f"{name}:keep={keep}")
    select_once(plan, small, words)  # imports and thread pools are not the method's
    facts = Facts(tokens, grid_for(video, tokens))
    with PeakRss(interval_s=0.002) as peak, torch.no_grad():
        select_once(plan, facts, words)
    print(json.dumps({"bytes": peak.extra_bytes, "features_bytes": facts.features.nbytes}))


def main() -> None:
    from bench.oracle import runnable

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--methods", default="visionzip,divprune,trimtokenator-lc,uniform")
    parser.add_argument("--tokens", type=int, default=10240)
    parser.add_argument("--keep", default="1/9")
    parser.add_argument("--limit", type=float, default=180.0, help="seconds a method may take")
    parser.add_argument("--child", default=None)
    parser.add_argument("--name", default="memory")
    args = parser.parse_args()
    if args.child:
        child(args.child, args.tokens, args.keep)
        return
    names = runnable() if args.methods == "all" else args.methods.split(",")
    rows = []
    for name in names:
        command = [sys.executable, "-m", "bench.memory", "--child", name]
        command += ["--tokens", str(args.tokens), "--keep", args.keep]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=args.limit)
        except subprocess.TimeoutExpired:
            rows.append([name, "not run", "", ""])
            continue
        if done.returncode:
            rows.append([name, f"failed: {done.stderr.strip().splitlines()[-1][:80]}", "", ""])
            continue
        found = json.loads(done.stdout.strip().splitlines()[-1])
        bound = 3 * found["features_bytes"] + 64 * MIB
        rows.append([name, found["bytes"] / MIB, bound / MIB, found["bytes"] / bound])
    publish(
        args.name,
        f"extra peak memory of scoring and selecting, N = {args.tokens}, keep {args.keep}",
        ["method", "extra_mib", "bound_mib", "share"],
        rows,
        {"bound": 1.0, "tokens": args.tokens, "keep": args.keep},
    )


if __name__ == "__main__":
    main()
