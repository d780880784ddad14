"""A prefix-cache hit that ends right behind <|vision_start|> kills the engine.

Two videos behind the same words, so laid out that <|vision_start|> is the last token of a KV block. The
second request takes that block from the prefix cache, and num_computed_tokens then points at the
first placeholder: recompute_mrope_positions sees a vision start, no placeholder behind it, takes the
media before it for finished, and looks for a further vision start, which does not exist.
"""

from tiny import (
    RATE,
    arguments,
    checkpoint,
    engine,
    let_cpu_runner_prune,
    sampling,
    verdict,
    video_request,
)

given = arguments(__doc__)
BLOCK = 32

if __name__ == "__main__":
    if given.plan is None:
        let_cpu_runner_prune()
    llm = engine(checkpoint(given.work), rate=RATE, plan=given.plan, block_size=BLOCK)
    words = "x" * (BLOCK - 1)  # one token a letter
    cached = []
    for seed in (1, 2):
        try:
            (out,) = llm.generate(
                [video_request(seed, "what happens?", before=words)], sampling(2), use_tqdm=False
            )
        except Exception as error:
            verdict(True, f"video {seed} ended with {type(error).__name__}: {error}")
        cached.append(out.num_cached_tokens)
    if cached != [0, BLOCK]:
        raise SystemExit(f"not the layout that was meant: {cached} tokens came from the cache")
    verdict(False, f"both videos were answered; {cached[1]} tokens of the second were cached")
