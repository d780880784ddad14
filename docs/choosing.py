"""What the index of methods says in its own words: the groups of methods, and how to choose."""

from __future__ import annotations

GROUPS = (
    (
        "pixels",
        "On pixels",
        """\
What is not looked at costs nothing: these act before the vision tower, so they save its time, the
language model's and the cache. They only work where a family follows the size of a picture, has
tiles or reads a video's frames; elsewhere they are refused. What is lost here cannot be found again
further on: a smaller picture has no small print.""",
    ),
    (
        "tower",
        "In the vision tower",
        """\
Tokens are merged or dropped between the tower's blocks, so that later blocks have less to do. On a
small model the tower can be most of the time, and this is the only stage beside pixels that saves
it. The price is that every later block sees less, and that few towers allow it.""",
    ),
    (
        "tokens",
        "After the vision tower",
        """\
The tower sees everything, the language model a part. This saves prefill, the cache and every
decoding step's attention, and nothing of the tower. Three ideas recur. *Saliency*: keep what the
tower itself attends to. *Diversity* or *coverage*: keep tokens that are unlike each other, or that
stand for the others. *Relevance*: keep what the question is about. Many methods weigh two of them;
some merge what they do not keep into what they do.""",
    ),
    (
        "prefill",
        "Inside the language model",
        """\
The first layers see every token, deeper ones fewer. This saves prefill and the cache from the
layer of the drop on, and what is left out may have been read already. Tokens are ranked when the
question has met the picture, which is more than any method before the model can know, and the
reason why the cache of one question cannot serve another. A plan may name one of these behind a
method of an earlier stage: `vscan` and `vscan-lm`, or `aim` and `aim-pagerank`, are halves of one
paper.""",
    ),
    (
        "memory",
        "In the cache",
        """\
All tokens pass through the language model; what it remembers of them for the answer is cut. This
saves memory and the attention of decoding, and nothing of prefill.""",
    ),
    (
        "video",
        "Video",
        """\
Neighbouring frames are alike, which pictures are not. These compare a token with the one at the
same place before, or share the budget over frames. Most refuse a request without a video. `frames`
and `keyframes` leave out whole frames before anything is encoded.""",
    ),
    (
        "control",
        "Controls",
        """\
What needs no idea at all. A method that does not beat them on your pictures, at the same number of
tokens, is not worth its time. `foveate compare` puts `random`, `pool` and, of the pixel methods,
`downscale` beside every comparison.""",
    ),
)
CHOICE = """\
## How to choose

This guide names no winner: which method keeps the right tokens depends on the model, the pictures,
the questions and the budget, and figures of papers come from other ones than yours. What can be
said beforehand:

1. **Find out where the time goes.** `foveate run --compare` shows milliseconds by stage. If
   encoding is most of it, a method after the tower cannot help much; look at pixels and the tower.
2. **See what your model allows.** [The family matrix](../matrix.md) and the *needs* of each method;
   a method that the model cannot serve is refused before anything is computed, with the reason.
3. **One picture, one question, or many?** A method that does not read the question can serve every
   later question about the same picture with the same tokens. One that does must choose anew each
   time.
4. **Is memory planned?** Where *counts* is image, the tokens kept are known before the picture is
   read. Adaptive counts follow the content.
5. **What is the evidence?** Golden and reference say that the computation is the paper's;
   reconstructed says that parts of it are ours. None of them says how good the answers are.
6. **Compare on your own pictures**, controls beside it, and read the intervals before the order:

```sh
foveate compare scans/ --question "what is the total?" --methods visionzip,divprune,scope --keep 1/4
```
"""
