"""The model card of a lab model, written from measured figures: `python -m foveate.lab.card --run DIR
--model DIR`. The last part of the model folder's name is the model's.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from foveate.core.errors import FoveateError

from . import checkpoint
from .evaluate import Row, evaluate, table
from .tasks import FAMILIES
from .words import COLOURS, KEYS, SHAPES, SIGNS

if TYPE_CHECKING:
    from .reader import Reader

ATTENTION_KEEP = 0.25
DEFAULT_HARDWARE = (
    "one thread of two shared x86-64 cores with AVX-512, matrix products in bfloat16 (those of the "
    "first three stages of lab-nano in float32)"
)
LONG_GROUPS = ("several", "time")
"""Groups whose questions bring up to 64 pictures: fewer samples, and not the longest level."""

HEAD = """\
---
library_name: transformers
pipeline_tag: image-text-to-text
license: apache-2.0
---
# {name}

A vision-language model of {millions:.1f} million parameters that answers short questions about
rendered pictures. It exists to show what dropping visual tokens destroys, offline and in seconds.
It is a stock `LlavaForConditionalGeneration`: a CLIP tower with a CLS token ({vision_layers}
layers of {vision_width}), 112 px at patch {patch} = {tokens} visual tokens, and a Llama language
model ({text_layers} layers of {text_width}).

```python
from transformers import AutoModelForImageTextToText, AutoProcessor
from foveate.lab import {path}

model = AutoModelForImageTextToText.from_pretrained({path}())
processor = AutoProcessor.from_pretrained({path}())
```

Weights are stored in float16; the config asks for float32, which is what a CPU should compute in.

## Questions it knows
{questions}

Colours: {colours}. Shapes: {shapes}. Keys of forms: {keys}. Large print also: {signs}; codes are
capitals and digits without 0, 1, I, O, Q. The chat template lowers the question and drops its
question mark. Any other wording is outside what it was trained on.
"""

BODY = """
## Data
Pictures that this package draws (`foveate.lab.tasks`), none of the world, and the training split of
easy-VQA (package `easy-vqa`, MIT), pictures that nobody here drew. The splits of our own differ
in seed, fonts, colours and backgrounds: training uses eight faces of DejaVu, STIX and Computer
Modern, test uses the face inside Pillow; test colours are other shades of the same names; test
backgrounds (checks, slanted stripes, dots) do not occur in training (plain, stripes, clouds,
ramps). Layouts come from the same distribution under other seeds.

## Recipe
`python -m foveate.lab.train --recipe {recipe} --out DIR` repeats it (seed {seed});
{minutes:.0f} minutes of wall clock on {hardware}. Stages end after wall-clock budgets, so a
repetition on another machine takes another number of steps: same recipe, same quality class, not
the same bits.{started}

{stages}

Beside the answers, training uses dense labels (what is drawn under each half patch), a job for
CLS (colours, shapes, kind of picture, number of things, characters and words present) and
projections that must read as the words drawn there. None of that is in the checkpoint.

## Results
Test split (seed 0), all {tokens} tokens a picture, greedy, exact match (`ground`: IoU at least 0.5);
things: shapes in the picture; prior: the most frequent training answer for the type of question,
without the picture. Training shows at most four pictures at a time, so longer rows are lengths that
the model never saw.

{table}

## CLS attention against evidence
Share of the evidence tokens (patches under the boxes that the answer needs) among the quarter of
tokens with the highest CLS attention, mean over heads; a random quarter would have {keep:.2f}.

{attention}

## Limits
It knows rendered pictures, not the world, and figures taken on it say nothing about a public
model. Families near their blind prior cannot show what a method loses; use those well above it.
It never saw more than four pictures at a time, and no question without a picture.
"""


def stage_rows(recipe: dict[str, Any], log: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """What each stage of a run did: steps, pictures, minutes, and its main settings."""
    rows = []
    for stage in recipe["stages"]:
        mine = [row for row in log if row["stage"] == stage["name"]]
        if mine:
            rows.append(
                {
                    "stage": stage["name"],
                    "steps": mine[-1]["step"],
                    "pictures": mine[-1]["pictures"],
                    "minutes": round(mine[-1]["elapsed_s"] / 60, 1),
                    **{key: stage[key] for key in ("batch", "lr", "mix")},
                }
            )
    return rows


def stage_table(rows: Sequence[dict[str, Any]]) -> str:
    """The stages as a Markdown table."""
    lines = [
        "| stage | steps | pictures | minutes | batch | lr | mix |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        mix = ", ".join(f"{kind} {share}" for kind, share in row["mix"].items())
        values = (row[k] for k in ("stage", "steps", "pictures", "minutes", "batch", "lr"))
        lines.append("| " + " | ".join(str(v) for v in values) + f" | {mix} |")
    return "\n".join(lines)


def attention_table(found: dict[str, list[float]]) -> str:
    """CLS evidence recall by family and layer."""
    layers = len(next(iter(found.values())))
    lines = [
        "| family |" + "".join(f" layer {i + 1} |" for i in range(layers)),
        "|---|" + "---|" * layers,
    ]
    lines += [
        f"| {name} |" + "".join(f" {share:.2f} |" for share in row) for name, row in found.items()
    ]
    return "\n".join(lines)


def examples() -> str:
    """One question per family, as a list."""
    from .tasks import samples

    return "\n".join(f"- {name}: “{samples(name, 'test', 1, 1)[0].question}”" for name in FAMILIES)


def write_card(
    run: Path,
    folder: Path,
    rows: Sequence[Row],
    attention: dict[str, list[float]],
    millions: float,
    hardware: str,
    history: Sequence[dict[str, Any]] = (),
) -> None:
    """README.md and training.json of a model folder, from its run's log and recipe, the stages before
    it (`history`), its evaluation and its CLS figures.
    """
    from .curves import read_log

    state = checkpoint.load(run)
    if state is None:
        raise FoveateError(f"{run} holds no {checkpoint.NAME}")
    recipe, name = state.recipe, folder.name
    stages = [*history, *stage_rows(recipe, read_log(run))]
    tokens = (112 // recipe["model"]["patch"]) ** 2
    head = HEAD.format(
        name=name,
        path=name.replace("lab-", "") + "_path",
        millions=millions,
        tokens=tokens,
        questions=examples(),
        colours=", ".join(COLOURS),
        shapes=", ".join(SHAPES),
        keys=", ".join(KEYS),
        signs=", ".join(SIGNS),
        **recipe["model"],
    )
    started = ""
    if history:
        first = stages[len(history)]["stage"]
        started = (
            f" The shipped weights were made in several runs: from stage {first} on, training went on "
            "from the weights of the stages before, stored in float16, with a larger vocabulary and "
            "fresh helping heads."
        )
    body = BODY.format(
        seed=recipe["seed"],
        recipe="recipe.toml" if name == "lab-nano" else f"recipe-{name.removeprefix('lab-')}.toml",
        minutes=sum(row["minutes"] for row in stages),
        hardware=hardware,
        started=started,
        stages=stage_table(stages),
        tokens=tokens,
        table=table(rows),
        keep=ATTENTION_KEEP,
        attention=attention_table(attention),
    )
    (folder / "README.md").write_text(head + body, "utf-8")
    (folder / "training.json").write_text(json.dumps(stages, indent=1) + "\n", "utf-8")


def tested_rows(reader: Reader, n: int, long: int) -> list[Row]:
    """The test split: n samples a family and level, `long` of those with many pictures."""
    short = [name for name, known in FAMILIES.items() if known.group not in LONG_GROUPS]
    rows = evaluate(reader, short, n=n, levels=(0, 1, 2))
    if rest := [name for name in FAMILIES if name not in short]:
        rows += evaluate(reader, rest, n=long, levels=(0, 1))
    return rows


def main(arguments: list[str] | None = None) -> int:
    """Export a run, evaluate it on the test split and write its card. Returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m foveate.lab.card", description=__doc__)
    parser.add_argument("--run", type=Path, required=True, help="folder of a finished training run")
    parser.add_argument("--model", type=Path, required=True, help="model folder to write")
    parser.add_argument("--n", type=int, default=200, help="test samples per family and level")
    parser.add_argument(
        "--long", type=int, default=60, help="the same, of families of many pictures"
    )
    parser.add_argument("--history", type=Path, help="training.json of the model it started from")
    parser.add_argument(
        "--hardware", default=DEFAULT_HARDWARE, help="what the run was computed on, for the card"
    )
    options = parser.parse_args(arguments)
    from .attention import cls_evidence
    from .export import export
    from .reader import Reader

    try:
        export(options.run, options.model)
        reader = Reader(options.model)
        rows = tested_rows(reader, options.n, options.long)
        found = cls_evidence(reader, list(FAMILIES), keep=ATTENTION_KEEP)
        millions = sum(weight.numel() for weight in reader.model.parameters()) / 1e6
        history = json.loads(options.history.read_text("utf-8")) if options.history else []
        hardware = options.hardware
        write_card(options.run, options.model, rows, found, millions, hardware, history)
        (options.model / "results.json").write_text(
            json.dumps([vars(row) for row in rows], indent=1) + "\n", "utf-8"
        )
    except FoveateError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    print(table(rows))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
