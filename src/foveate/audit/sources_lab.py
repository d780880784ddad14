"""The lab's rendered tasks and easy-VQA as sources of a workload."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from foveate.audit.sources import Rows, Source
from foveate.audit.workload_pictures import png
from foveate.core.budget import largest_remainder
from foveate.core.errors import SettingError, nearest
from foveate.lab.evaluate import LEVEL_NAMES, MAX_NEW_TOKENS
from foveate.lab.tasks import FAMILIES, SPLITS, Sample, family, samples
from foveate.lab.words import COLOUR_LABELS, SHAPE_LABELS

QUESTIONS = 100
"""Questions of each family and level where no limit is given."""

RULE = (
    "answers are scored by the lab's own rule, word for word; for a model that answers in its own "
    "words, take the metric exact or contains"
)


def lab(names: str, split: str, limit: int | None, seed: int) -> Source:
    """Tasks of the lab by family, `bar,code@hard`; empty means every family of its own pictures.

    `limit` is shared out among the families. The category of a question is its family, with the
    level where it is not the first.

    Errors: SettingError for an unknown family, level or split, before anything is drawn.
    """
    split = _split(split)
    asked = _cells(names)
    counts = [QUESTIONS] * len(asked)
    if limit is not None:
        counts = largest_remainder(limit, [1] * len(asked))
    title = "lab:" + ",".join(_title(name, level) for name, level in asked)

    def rows() -> Rows:
        number = 0
        for (name, level), n in zip(asked, counts, strict=True):
            if not n:
                continue
            for at, drawn in enumerate(samples(name, split, n, seed, level)):
                number += 1
                yield number, _row(drawn, f"{_title(name, level)}/{split}/{seed}/{at}")

    notes = (RULE, f"drawn by the lab: split {split}, seed {seed}")
    return Source(_named(title, split), "row", rows, notes=notes)


def _split(split: str) -> str:
    if split and split not in SPLITS:
        raise SettingError(f"unknown split {split!r}: {nearest(split, SPLITS)}")
    return split or "test"


def _named(title: str, split: str) -> str:
    return title if split == "test" else f"{title}#{split}"


def _cells(names: str) -> list[tuple[str, int]]:
    if not names.strip():
        return [(name, 0) for name, known in FAMILIES.items() if known.group != "outside"]
    found = []
    for word in names.split(","):
        name, mark, level = word.strip().partition("@")
        known = family(name)
        at = _level(level) if mark else 0
        if at >= known.levels:
            levels = ", ".join(LEVEL_NAMES[: known.levels])
            raise SettingError(f"family {name} has no level {level!r}; it has {levels}")
        if (name, at) in found:
            raise SettingError(f"family {word.strip()!r} is named twice")
        found.append((name, at))
    return found


def _level(text: str) -> int:
    names = [*LEVEL_NAMES, *(str(i) for i in range(len(LEVEL_NAMES)))]
    if text not in names:
        raise SettingError(f"unknown level {text!r}: {nearest(text, names)}")
    return names.index(text) % len(LEVEL_NAMES)


def _title(name: str, level: int) -> str:
    return name if level == 0 else f"{name}@{LEVEL_NAMES[level]}"


def _row(drawn: Sample, name: str) -> Mapping[str, Any]:
    grounding = drawn.metric == "iou"
    return {
        "id": name,
        "images": [png(image) for image in drawn.images],
        "question": drawn.question,
        "answer": ",".join(map(str, drawn.boxes[0])) if grounding else drawn.answer,
        "metric": "lab-box" if grounding else "verbatim",
        "category": _title(drawn.family, drawn.level),
        "max_new_tokens": MAX_NEW_TOKENS,
    }


def easyvqa(split: str) -> Source:
    """Every question of a part of easy-VQA, its pictures as they were published, its questions in the
    lab's spelling. Categories are what is asked for: yes-no, shape, colour.

    Errors: SettingError for an unknown split; MissingExtraError where the package is missing.
    """
    from foveate.lab.tasks.easyvqa import load

    split = _split(split)
    files, asked = load(split)

    def rows() -> Rows:
        number = 0
        for picture, path in files.items():
            for at, (question, answer) in enumerate(asked[picture]):
                number += 1
                yield (
                    number,
                    {
                        "id": f"easyvqa/{split}/{picture}/{at}",
                        "image": str(path),
                        "question": question,
                        "answer": answer,
                        "metric": "verbatim",
                        "category": _kind(answer),
                        "max_new_tokens": MAX_NEW_TOKENS,
                    },
                )

    return Source(_named("easyvqa", split), "row", rows, notes=(RULE,))


def _kind(answer: str) -> str:
    if answer in SHAPE_LABELS:
        return "shape"
    return "colour" if answer in COLOUR_LABELS else "yes-no"
