"""The model card of lab-nano, written from measured figures: `python -m foveate.lab.card --run DIR
--model DIR`.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from foveate.core.errors import FoveateError

from . import checkpoint
from .evaluate import Row, evaluate, table
from .tasks import FAMILIES
from .words import COLOURS, KEYS, SHAPES, SIGNS

ATTENTION_KEEP = 0.25
DEFAULT_HARDWARE = "two shared x86-64 cores with AVX-512, one thread used, float32"

HEAD = """\
---
library_name: transformers
pipeline_tag: image-text-to-text
license: apache-2.0
---
# lab-nano

A vision-language model of {millions:.1f} million parameters that answers short questions about
rendered pictures. It exists to show what dropping visual tokens destroys, offline and in seconds.
It is a stock `LlavaForConditionalGeneration`: a CLIP tower with a CLS token ({vision_layers}
layers of {vision_width}), 112 px at patch {patch} = {tokens} visual tokens, and a Llama language
model ({text_layers} layers of {text_width}).

```python
from transformers import AutoModelForImageTextToText, AutoProcessor
from foveate.lab import demo_pictures, nano_path

model = AutoModelForImageTextToText.from_pretrained(nano_path())
processor = AutoProcessor.from_pretrained(nano_path())
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
Only pictures that this package draws (`foveate.lab.tasks`), none of the world. The splits differ
in seed, fonts, colours and backgrounds: training uses eight faces of DejaVu, STIX and Computer
Modern, test uses the face inside Pillow; test colours are other shades of the same names; test
backgrounds (checks, slanted stripes, dots) do not occur in training (plain, stripes, clouds,
ramps). Layouts come from the same distribution under other seeds.

## Recipe
`python -m foveate.lab.train --out DIR` repeats it (packaged `recipe.toml`, seed {seed});
{minutes:.0f} minutes of wall clock on {hardware}. Stages end after wall-clock budgets, so a
repetition on another machine takes another number of steps: same recipe, same quality class, not
the same bits.

{stages}

Beside the answers, training uses dense labels (what is drawn under each half patch), a job for
CLS (colours, shapes, kind of picture, number of things, characters and words present) and
projections that must read as the words drawn there. None of that is in the checkpoint.

## Results
Test split (seed 0), all {tokens} tokens, greedy, exact match; things: shapes in the picture;
prior: the most frequent training answer for the type of question, without the picture.

{table}

## CLS attention against evidence
Share of the evidence tokens (patches under the boxes that the answer needs) among the quarter of
tokens with the highest CLS attention, mean over heads; a random quarter would have {keep:.2f}.

{attention}

## Limits
It knows rendered pictures, not the world, and figures taken on it say nothing about a public
model. Families near their blind prior cannot show what a method loses; use those well above it.
It saw one picture per question, and no question without a picture.
"""


def stage_table(recipe: dict[str, Any], log: Sequence[dict[str, Any]]) -> str:
    """What each stage did: steps, pictures, minutes, and its main settings."""
    lines = [
        "| stage | steps | pictures | minutes | batch | lr | mix |",
        "|---|---|---|---|---|---|---|",
    ]
    for stage in recipe["stages"]:
        last = [row for row in log if row["stage"] == stage["name"]][-1]
        mix = ", ".join(f"{kind} {share}" for kind, share in stage["mix"].items())
        lines.append(
            f"| {stage['name']} | {last['step']} | {last['pictures']} "
            f"| {last['elapsed_s'] / 60:.1f} | {stage['batch']} | {stage['lr']} | {mix} |"
        )
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
) -> None:
    """README.md of a model folder, from its run's log and recipe, its evaluation and its CLS
    figures.
    """
    from .curves import read_log

    state = checkpoint.load(run)
    if state is None:
        raise FoveateError(f"{run} holds no {checkpoint.NAME}")
    recipe = state.recipe
    tokens = (112 // recipe["model"]["patch"]) ** 2
    head = HEAD.format(
        millions=millions,
        tokens=tokens,
        questions=examples(),
        colours=", ".join(COLOURS),
        shapes=", ".join(SHAPES),
        keys=", ".join(KEYS),
        signs=", ".join(SIGNS),
        **recipe["model"],
    )
    body = BODY.format(
        seed=recipe["seed"],
        minutes=state.total_s / 60,
        hardware=hardware,
        stages=stage_table(recipe, read_log(run)),
        tokens=tokens,
        table=table(rows),
        keep=ATTENTION_KEEP,
        attention=attention_table(attention),
    )
    (folder / "README.md").write_text(head + body, "utf-8")


def main(arguments: list[str] | None = None) -> int:
    """Export a run, evaluate it on the test split and write its card. Returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m foveate.lab.card", description=__doc__)
    parser.add_argument("--run", type=Path, required=True, help="folder of a finished training run")
    parser.add_argument("--model", type=Path, required=True, help="model folder to write")
    parser.add_argument("--n", type=int, default=200, help="test samples per family and level")
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
        rows = evaluate(reader, n=options.n, levels=(0, 1, 2))
        found = cls_evidence(reader, list(FAMILIES), keep=ATTENTION_KEEP)
        millions = sum(weight.numel() for weight in reader.model.parameters()) / 1e6
        write_card(options.run, options.model, rows, found, millions, options.hardware)
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
