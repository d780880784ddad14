"""Positions above 256 are rounded in bfloat16, so that neighbouring tokens stand at one place.

They travel as extra channels of the embeddings, in the embeddings' dtype. bfloat16 has 8 bits of
precision: 257 becomes 256, and from 512 on only every fourth number exists. The image here has
264 rows of tokens; time steps of long videos get there as well.
"""

from typing import Any

from tiny import (
    IMAGE,
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
ROWS = 264  # of two tokens, each 8 x 8 pixels


def watched(model: Any, seen: list[Any]) -> None:
    """Note the positions (3, S) that the model gives after encoding, and the prompt's ids."""
    original = model.recompute_mrope_positions

    def recompute(input_ids: Any, *args: Any, **kwargs: Any) -> Any:
        out = original(input_ids, *args, **kwargs)
        seen.append((list(input_ids), out[1].clone()))
        return out

    model.recompute_mrope_positions = recompute


if __name__ == "__main__":
    if given.plan is None:
        let_cpu_runner_prune()
    llm = engine(checkpoint(given.work), rate=RATE, plan=given.plan, dtype="bfloat16")
    seen: list[Any] = []
    llm.apply_model(lambda model: watched(model, seen))
    asked = image_request(3, 16, 8 * ROWS, "what is this?")
    llm.generate([asked], sampling(1), use_tqdm=False)
    ids, positions = seen[-1]
    places = [tuple(p) for i, p in zip(ids, positions.T.tolist(), strict=True) if i == IMAGE]
    shared = len(places) - len(set(places))
    verdict(shared > 0, f"{shared} of {len(places)} visual tokens stand where another one stands")
