"""The same request gives other log-probabilities from the prefix cache than cold.

Positions are computed for the unpruned sequence when a request arrives, and rewritten only while media
are being prefilled. On a hit that covers all media nothing is rewritten: text stands where the
unpruned video would end, though its keys and values were made for other positions.
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
SAME = 1e-4

if __name__ == "__main__":
    if given.plan is None:
        let_cpu_runner_prune()
    llm = engine(checkpoint(given.work), rate=RATE, plan=given.plan)
    # The frames are much more than wide, and the question longer than a block, so that the hit ends
    # behind the video.
    question = "what happens, and what is to be seen at the end of it, in detail?"
    asked = video_request(1, question, frames=32, width=32, height=32)
    found = []
    for _ in range(2):
        (out,) = llm.generate([asked], sampling(), use_tqdm=False)
        found.append((out.num_cached_tokens, out.outputs[0].cumulative_logprob))
    (none, cold), (cached, hit) = found
    placeholders = out.prompt_token_ids.index(303)  # <|vision_end|>
    if none or cached < placeholders:
        raise SystemExit(f"not the case that was meant: {cached} of {placeholders} tokens cached")
    what = f"summed log-probability {cold:.6f} cold, {hit:.6f} with {cached} tokens from the cache"
    verdict(abs(cold - hit) > SAME, what)
