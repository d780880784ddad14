"""Accuracy of a model on the lab's tasks, beside what a guesser reaches that never sees the
picture.

`python -m foveate.lab.evaluate --model DIR --n 100 --json`
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from foveate.core.errors import FoveateError, SettingError
from foveate.measure.stats import wilson

from .tasks import FAMILIES, Sample, family, samples
from .words import COLOURS, KEYS, SHAPES

if TYPE_CHECKING:
    from .reader import Generate

PRIOR_SAMPLES = 300
PRIOR_MINIMUM = 30
FEW_OBJECTS = 3


@dataclass(frozen=True)
class Row:
    """Result of one family at one level. Shares lie in 0 to 1; low and high bound the 95 % Wilson
    interval.

    `prior` is the accuracy of the answer that is most frequent in training for the type of
    question.
    """

    family: str
    group: str
    level: int
    n: int
    right: int
    accuracy: float
    low: float
    high: float
    prior: float
    few: float | None
    many: float | None


def question_type(question: str) -> str:
    """A question with its colour, shape or key blanked: all that a blind guesser could count by."""
    closed = {*COLOURS, *SHAPES, *KEYS}
    return " ".join(
        "*" if word.strip("?") in closed else word.strip("?") for word in question.split()
    )


def blind_prior(tested: Sequence[Sample], seed: int = 0) -> float:
    """Accuracy on `tested` (one family and level) of the most frequent training answer per type of
    question.
    """
    name, level = tested[0].family, tested[0].level
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    overall: Counter[str] = Counter()
    for known in samples(name, "train", PRIOR_SAMPLES, seed, level):
        counts[question_type(known.question)][known.answer] += 1
        overall[known.answer] += 1
    hits = 0
    for sample in tested:
        seen = counts[question_type(sample.question)]
        guess = (seen if seen.total() >= PRIOR_MINIMUM else overall).most_common(1)[0][0]
        hits += guess == sample.answer
    return hits / len(tested)


def _share(verdicts: Sequence[bool]) -> float | None:
    return sum(verdicts) / len(verdicts) if verdicts else None


def evaluate(
    generate: Generate,
    families: Sequence[str] | None = None,
    n: int = 100,
    split: str = "test",
    seed: int = 0,
    levels: Sequence[int] = (0,),
) -> list[Row]:
    """Ask `generate` n samples of each family at each of its levels.

    Errors: SettingError for an unknown family or split, an empty list of families, or n below 1.
    """
    names = list(FAMILIES) if families is None else list(families)
    if not names:
        raise SettingError(f"no family is named; known: {', '.join(FAMILIES)}")
    todo = [
        (known, level) for known in map(family, names) for level in levels if level < known.levels
    ]
    if not todo or min(levels) < 0:
        raise SettingError(
            f"no level of {list(levels)} exists for {', '.join(names)}; levels start at 0"
        )
    rows: list[Row] = []
    for known, level in todo:
        tested = samples(known.name, split, n, seed, level)
        answers = generate([s.image for s in tested], [s.question for s in tested])
        if len(answers) != len(tested):
            raise SettingError(f"generate gave {len(answers)} answers for {len(tested)} questions")
        verdicts = [given == s.answer for given, s in zip(answers, tested, strict=True)]
        interval = wilson(sum(verdicts), n)
        low, high = interval.low, interval.high
        pairs = [
            (v, s.objects) for v, s in zip(verdicts, tested, strict=True) if s.kind == "shapes"
        ]
        rows.append(
            Row(
                family=known.name,
                group=known.group,
                level=level,
                n=n,
                right=sum(verdicts),
                accuracy=sum(verdicts) / n,
                low=low,
                high=high,
                prior=blind_prior(tested),
                few=_share([v for v, objects in pairs if objects <= FEW_OBJECTS]),
                many=_share([v for v, objects in pairs if objects > FEW_OBJECTS]),
            )
        )
    return rows


def table(rows: Sequence[Row]) -> str:
    """The rows as a Markdown table."""
    lines = [
        "| group | family | level | n | accuracy | 95 % interval | prior | 1-3 things | 4-6 |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        few, many = ("" if share is None else f"{share:.2f}" for share in (row.few, row.many))
        lines.append(
            f"| {row.group} | {row.family} | {LEVEL_NAMES[row.level]} | {row.n} "
            f"| {row.accuracy:.3f} | {row.low:.3f} to {row.high:.3f} | {row.prior:.2f} "
            f"| {few} | {many} |"
        )
    return "\n".join(lines)


LEVEL_NAMES = ("easy", "medium", "hard")


def main(arguments: list[str] | None = None) -> int:
    """Command line; the last line of --json is one JSON object. Returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m foveate.lab.evaluate", description=__doc__)
    parser.add_argument("--model", type=Path, help="model folder (default: the bundled lab-nano)")
    parser.add_argument("--n", type=int, default=100, help="samples per family and level")
    parser.add_argument(
        "--family", action="append", help="one family; may be given again (default: all)"
    )
    parser.add_argument("--levels", default="0,1,2", help="levels, with commas")
    parser.add_argument("--split", default="test")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--json", action="store_true", help="print one JSON object instead of a table"
    )
    options = parser.parse_args(arguments)
    try:
        try:
            levels = [int(level) for level in options.levels.split(",")]
        except ValueError as error:
            raise SettingError(
                f"--levels is {options.levels!r}; it must be numbers with commas"
            ) from error
        from .nano import nano_path
        from .reader import Reader

        folder = options.model or nano_path()
        rows = evaluate(
            Reader(folder), options.family, options.n, options.split, options.seed, levels
        )
    except FoveateError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    if options.json:
        print(
            json.dumps(
                {
                    "model": str(folder),
                    "split": options.split,
                    "rows": [asdict(row) for row in rows],
                }
            )
        )
    else:
        print(table(rows))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
