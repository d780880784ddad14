"""What token methods share: the loop over segments, and a segment's encoder facts brought to its
projected tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import array_api_compat
import numpy as np

from foveate.core import arrays
from foveate.core.budget import Counts
from foveate.core.errors import InputError, UnsupportedError
from foveate.core.views import Array, Attention, EncoderView, Question, Reduction, Segment

ANY_FAMILY = "methods that need projected tokens alone run on every family: divprune, uniform, pool"


def pairs(segments: list[Segment], counts: Counts) -> Iterator[tuple[Segment, int]]:
    """Each segment with its tokens to keep; InputError where counts and segments do not fit."""
    if len(segments) != len(counts.per_segment):
        raise InputError(f"{len(counts.per_segment)} counts for {len(segments)} segments")
    for segment, k in zip(segments, counts.per_segment, strict=True):
        if not 0 <= k <= segment.n:
            raise InputError(f"cannot keep {k} of {segment.n} tokens of image {segment.image}")
        yield segment, k


def identity(segment: Segment) -> Reduction:
    return Reduction.pick(np.arange(segment.n), segment.n)


def each(
    segments: list[Segment],
    counts: Counts,
    choose: Callable[[Segment, int], Reduction],
    *,
    always: bool = False,
) -> list[Reduction]:
    """Call `choose` for each segment with 0 < k < n and finite features; none and all need no
    choice.
    """
    out = []
    for segment, k in pairs(segments, counts):
        if k == 0:
            out.append(Reduction.pick(np.empty(0, dtype=np.int64), segment.n))
        elif segment.n == 1 or (k == segment.n and not always):
            out.append(identity(segment))
        else:
            arrays.check_finite(segment.features, f"features of image {segment.image}:")
            with arrays.exact(segment.features):
                out.append(choose(segment, k))
    return out


def full_grid(segment: Segment, method: str) -> tuple[int, int, int]:
    """The grid (t, h, w), which must hold all tokens; UnsupportedError otherwise."""
    t, h, w = segment.grid
    if t * h * w != segment.n:
        raise UnsupportedError(
            f"{method} needs tokens on a full grid, but {segment.n} tokens do not fill "
            f"{t} x {h} x {w}; a method without a grid works here: divprune"
        )
    return t, h, w


def lacks(method: str, what: str) -> UnsupportedError:
    """The error for a fact that this family or host cannot give."""
    return UnsupportedError(
        f"{method} needs {what}, which this family or host does not give; {ANY_FAMILY}"
    )


def encoder_of(segment: Segment, method: str) -> EncoderView:
    """The segment's encoder view, or UnsupportedError."""
    if segment.encoder is None:
        raise lacks(method, "the vision encoder's own tokens")
    return segment.encoder


def attention_of(segment: Segment, layer: int, method: str) -> Attention:
    """The attention facts of one encoder layer, or UnsupportedError."""
    view = encoder_of(segment, method)
    if layer not in view.at:
        raise lacks(method, f"attention of encoder layer {layer}")
    return view.at[layer]


def to_projected(segment: Segment, values: Array, method: str) -> Array:
    """(n, …): mean of encoder rows (m, …) over each projected token's group."""
    group = arrays.to_numpy(encoder_of(segment, method).group)
    if int(values.shape[0]) != group.shape[0]:
        raise InputError(f"{int(values.shape[0])} encoder rows for {group.shape[0]} encoder tokens")
    if np.array_equal(group, np.arange(segment.n)):
        return values
    return arrays.segment_mean(values, group, segment.n)


def _scores(segment: Segment, values: Array | None, what: str, method: str) -> np.ndarray:
    if values is None:
        raise lacks(method, what)
    if len(values.shape) == 2:
        xp = arrays.namespace(values)
        values = xp.mean(xp.astype(values, arrays.wide(values)), axis=0)
    arrays.check_finite(values, what)
    score = arrays.scores_of(to_projected(segment, values, method), what)
    # 40 bits of the largest: libraries that add in another order give the same score.
    peak = 2.0 ** np.frexp(np.max(np.abs(score), initial=0.0))[1]
    return arrays.on_grid(score / peak, 40) * peak


def saliency(segment: Segment, layer: int, method: str) -> np.ndarray:
    """(n,) float64: CLS attention, or received attention where the tower has no CLS token.

    Mean over heads and over each projected token's group.
    """
    at = attention_of(segment, layer, method)
    values = at.cls if at.cls is not None else at.received
    return _scores(segment, values, f"attention of encoder layer {layer}", method)


def received(segment: Segment, layer: int, method: str) -> np.ndarray:
    """(n,) float64: mean attention received, mean over heads and group."""
    values = attention_of(segment, layer, method).received
    return _scores(segment, values, f"received attention of encoder layer {layer}", method)


def mean_keys(segment: Segment, layer: int, method: str) -> Array:
    """(n, a): keys of one encoder layer, mean over heads and over each projected token's group."""
    keys = attention_of(segment, layer, method).keys
    if keys is None:
        raise lacks(method, f"keys of encoder layer {layer}")
    arrays.check_finite(keys, f"keys of encoder layer {layer}")
    xp = arrays.namespace(keys)
    heads = int(keys.shape[1])
    # Head by head: a float64 copy of all keys would be twice the size of the encoder's features.
    total = sum(xp.astype(keys[:, h, :], arrays.wide(keys)) for h in range(heads))
    return to_projected(segment, total / heads, method)


def full_keys(segment: Segment, layer: int, method: str) -> Array:
    """(n, heads * a): keys of one encoder layer, heads side by side, mean over each token's
    group.
    """
    keys = attention_of(segment, layer, method).keys
    if keys is None:
        raise lacks(method, f"keys of encoder layer {layer}")
    arrays.check_finite(keys, f"keys of encoder layer {layer}")
    xp = arrays.namespace(keys)
    return to_projected(segment, xp.reshape(keys, (int(keys.shape[0]), -1)), method)


def encoder_features(segment: Segment, layer: int, method: str) -> Array:
    """(n, c): encoder features of a layer, mean over each projected token's group."""
    view = encoder_of(segment, method)
    features = view.hidden.get(layer, view.features)
    if features is None:
        raise lacks(method, "encoder features")
    arrays.check_finite(features, "encoder features")
    return to_projected(segment, features, method)


def joint_features(segment: Segment, method: str) -> Array:
    """(n, e): encoder tokens in the space of the user's text tower, mean over each token's group."""
    joint = encoder_of(segment, method).joint
    if joint is None:
        raise lacks(method, "encoder tokens in the space of a text tower")
    arrays.check_finite(joint, "encoder tokens in the text tower's space")
    return to_projected(segment, joint, method)


def words_of(question: Question | None, method: str) -> Array:
    """(q, d) embeddings of the turn's words, finite; InputError without a question."""
    if question is None or int(question.embeddings.shape[0]) == 0:
        raise InputError(
            f"{method} chooses by the question, and none was given; ask one or use divprune"
        )
    arrays.check_finite(question.embeddings, "question embeddings")
    return question.embeddings


def on_device_of(x: Array, like: Array) -> Array:
    """x in the library and on the device of `like`, float64 where there is one."""
    xp = arrays.namespace(like)
    device = array_api_compat.device(like)
    if array_api_compat.is_torch_array(x) and array_api_compat.is_torch_array(like):
        return xp.astype(x.detach().to(device), arrays.wide(like))
    return xp.asarray(arrays.to_numpy(x), dtype=arrays.wide(like), device=device)


def refuse_without_video(segments: list[Segment], method: str) -> None:
    """UnsupportedError unless a segment of the request has several frames."""
    if not any(s.grid[0] > 1 for s in segments):
        raise UnsupportedError(
            f"{method} compares the frames of a video, and nothing in this request has more than "
            "one; for images use a method such as divprune or visionzip"
        )


def blocks(x: Array) -> Iterator[tuple[slice, Array]]:
    """Rows of x (n, d) in float64, about 8 MiB at a time, so that no second copy of x is held."""
    xp = arrays.namespace(x)
    x = x.detach() if array_api_compat.is_torch_array(x) else x
    step = max(1, (1 << 20) // max(int(x.shape[1]), 1))
    for start in range(0, int(x.shape[0]), step):
        part = slice(start, start + step)
        yield part, xp.astype(x[part, :], arrays.wide(x))


def frame_means(features: Array, t: int) -> Array:
    """(t, d) float32: the mean token of each of t equal frames of (n, d)."""
    n = int(features.shape[0])
    return arrays.segment_mean(features, np.repeat(np.arange(t), n // t), t)
