"""Accuracy of a model on the lab's tasks, beside what a guesser reaches that never sees the
picture.

`evaluate` drives any function that answers; `foveate.lab.paired` compares plans on one model.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from foveate.core.errors import SettingError, nearest
from foveate.measure.stats import wilson

from .score import is_right
from .tasks import FAMILIES, SPLITS, Family, Sample, family, samples
from .words import COLOUR_LABELS, SHAPE_LABELS, WORDS

if TYPE_CHECKING:
    from .reader import Generate

PRIOR_SAMPLES = 300
PRIOR_MINIMUM = 30
FEW_OBJECTS = 3
MAX_NEW_TOKENS = 16
"""Longest answer asked for; the longest of the lab's answers takes fewer tokens of lab-nano."""

LEVEL_NAMES = ("easy", "medium", "hard")


@dataclass(frozen=True)
class Cell:
    """One family at one level: the unit of every table."""

    family: str
    group: str
    level: int

    @property
    def title(self) -> str:
        """The family, and its level where it is not the first."""
        return self.family if self.level == 0 else f"{self.family}, {LEVEL_NAMES[self.level]}"


@dataclass(frozen=True)
class Row:
    """Result of one family at one level. Shares lie in 0 to 1; low and high bound the 95 % Wilson
    interval.

    `prior` is the accuracy of the answer that is most frequent in training for the type of
    question. `few` and `many`: accuracy with up to three shapes in the picture and with more.
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
    """A question with its colours, shapes and keys blanked: all that a blind guesser could count by."""
    closed = {*COLOUR_LABELS, *SHAPE_LABELS, *WORDS}
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
        hits += is_right(sample, guess)
    return hits / len(tested)


def _share(verdicts: Sequence[bool]) -> float | None:
    return sum(verdicts) / len(verdicts) if verdicts else None


def cells(
    families: Sequence[str] | None = None,
    n: int = 100,
    split: str = "test",
    seed: int = 0,
    levels: Sequence[int] = (0,),
) -> list[Cell]:
    """Every family at every level of `levels` that it has, without repetition; nothing is drawn.

    Errors: SettingError for an unknown family (with the nearest names) or split, an empty list of
    families, n below 1, a negative seed, or no level left.
    """
    if families is not None and not [name for name in families if name.strip()]:
        raise SettingError(f"no family is named; known: {', '.join(FAMILIES)}")
    if n < 1:
        raise SettingError(f"n must be 1 or more, got {n}")
    if seed < 0:
        raise SettingError(f"seed must be 0 or more, got {seed}")
    if split not in SPLITS:
        raise SettingError(f"unknown split {split!r}: {nearest(split, SPLITS)}")
    known: list[Family] = [family(name) for name in dict.fromkeys(families or FAMILIES)]
    wanted = sorted(set(levels))
    found = [Cell(k.name, k.group, level) for k in known for level in wanted if level < k.levels]
    if not found or wanted[0] < 0:
        names = ", ".join(k.name for k in known)
        raise SettingError(f"no level of {wanted} exists for {names}; levels start at 0")
    return found


def check_drawable(todo: Sequence[Cell], split: str = "test") -> None:
    """Draw one sample of each cell, as it is tested and as the prior needs it.

    Errors: MissingExtraError where fonts or outside data are not installed.
    """
    for cell in todo:
        samples(cell.family, split, 1, 0, cell.level)
        samples(cell.family, "train", 1, 0, cell.level)


def tally(tested: Sequence[Sample], verdicts: Sequence[bool], cell: Cell, prior: float) -> Row:
    """The row of one cell: `verdicts` says which of the tested samples were answered right."""
    interval = wilson(sum(verdicts), len(verdicts))
    pairs = [(v, s.objects) for v, s in zip(verdicts, tested, strict=True) if s.kind == "shapes"]
    return Row(
        family=cell.family,
        group=cell.group,
        level=cell.level,
        n=len(verdicts),
        right=sum(verdicts),
        accuracy=interval.estimate,
        low=interval.low,
        high=interval.high,
        prior=prior,
        few=_share([v for v, objects in pairs if objects <= FEW_OBJECTS]),
        many=_share([v for v, objects in pairs if objects > FEW_OBJECTS]),
    )


def evaluate(
    generate: Generate,
    families: Sequence[str] | None = None,
    n: int = 100,
    split: str = "test",
    seed: int = 0,
    levels: Sequence[int] = (0,),
) -> list[Row]:
    """Ask `generate` n samples of each family at each of its levels.

    Errors: those of `cells`; SettingError where `generate` gives another number of answers.
    """
    rows: list[Row] = []
    for cell in cells(families, n, split, seed, levels):
        tested = samples(cell.family, split, n, seed, cell.level)
        answers = generate([s.images for s in tested], [s.question for s in tested])
        if len(answers) != len(tested):
            raise SettingError(f"generate gave {len(answers)} answers for {len(tested)} questions")
        verdicts = [is_right(s, given) for given, s in zip(answers, tested, strict=True)]
        rows.append(tally(tested, verdicts, cell, blind_prior(tested)))
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
