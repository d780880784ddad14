"""--video-pruning-rate changes the answers about portrait images, which are not pruned at all.

The fourth position channel holds the width of the grid, and recompute_mrope_positions lets text go on
at base + width, while Qwen2.5-VL's rule is base + the largest of (t, h, w).
"""

from tiny import (
    RATE,
    arguments,
    checkpoint,
    engine,
    image_request,
    let_cpu_runner_prune,
    sampling,
    verdict,
)

given = arguments(__doc__)
SAME = 1e-4
SHAPES = {"landscape": (128, 64), "portrait": (64, 128)}

if __name__ == "__main__":
    if given.plan is None:
        let_cpu_runner_prune()
    folder = checkpoint(given.work)
    found: dict[str, list[float]] = {name: [] for name in SHAPES}
    for on in (False, True):
        llm = engine(folder, rate=RATE if on else None, plan=given.plan if on else None)
        for name, size in SHAPES.items():
            asked = image_request(7, *size, "what is this?")
            (out,) = llm.generate([asked], sampling(), use_tqdm=False)
            found[name].append(out.outputs[0].cumulative_logprob)
        del llm
    moved = [name for name, (off, on) in found.items() if abs(off - on) > SAME]
    words = "; ".join(f"{n} {off:.6f} without, {on:.6f} with" for n, (off, on) in found.items())
    verdict(bool(moved), f"summed log-probability, video pruning on or off: {words}")
