"""CEGI of two lab models: lab-pair and the larger lab-nano, fine-tuned on the same task.

    python -m bench.cegi [--steps 120] [--n 200] [--grid DEU | --grid 380] [--pue 1.2] [--watts 8]

The task is reading bars off an axis at the medium and hard levels, which both models know but do
badly enough to gain. Both take the same number of steps over the same pictures (seed, stage and
step decide them), each with the last stage of its own recipe, answers alone as the loss. Scores are
exact answers on the test split, whose fonts, colours and backgrounds training never shows.

Energy is that of the fine-tuning steps, by the machine's meter. Without a meter it is missing, and
so is CEGI, unless --watts states the power that one busy core is assumed to draw: then energy is
CPU seconds times watts, and table and JSON say so (on a CPU only). Carbon needs --grid; no country
is assumed.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from bench.common import publish
from foveate.core.errors import InputError, UnsupportedError
from foveate.lab import export, nano_path, pair_path, recipe, samples, train
from foveate.lab.reader import Reader
from foveate.lab.score import is_right
from foveate.measure import Meter, mcnemar_exact, meter, paired_bootstrap
from foveate.measure.carbon import Grid, carbon, grid
from foveate.measure.cegi import READING, Cegi, cegi, table

FAMILY, LEVELS, KIND = "bar", (1, 2), "bars"
MODELS: dict[str, tuple[Callable[[], Path], Path]] = {
    "lab-pair": (pair_path, recipe.PACKAGED.with_name("recipe-pair.toml")),
    "lab-nano": (nano_path, recipe.PACKAGED),
}


@dataclass(frozen=True)
class Tuned:
    """One fine-tuning run. joules: None where nothing measured or stated it; energy says which."""

    folder: Path
    parameters: int
    wall_s: float
    cpu_s: float
    joules: float | None
    energy: str


def recipe_of(file: Path, steps: int, batch: int) -> recipe.Recipe:
    """The recipe's last stage alone, on bars of the higher levels, for a number of steps."""
    known = recipe.load(file)
    stage = replace(
        known.stages[-1],
        name="cegi",
        mix={KIND: 1.0},
        easy=0.0,
        steps=steps,
        seconds=0.0,
        batch=batch,
        dense=0.0,
        dense_end=0.0,
    )
    return replace(known, stages=(stage,), seed=7, threads=1, measure_pictures=1)


def stated(cpu_s: float, watts: float | None, why: str) -> tuple[float | None, str]:
    """Energy where no meter has it: CPU seconds at an assumed power, or missing with the reason."""
    if watts is None:
        return None, f"missing: {why}"
    if not watts > 0:
        raise InputError(f"--watts {watts} is out of range: above 0")
    return cpu_s * watts, f"assumed: not measured, CPU seconds x {watts:g} W a busy core"


def fine_tune(
    start: Path, how: recipe.Recipe, folder: Path, source: Meter, watts: float | None
) -> Tuned:
    """Train from a model folder and write the tuned model to `folder`; the steps alone are metered."""
    trainer = train.Trainer(how, folder / "run", say=lambda line: None, start=start)
    stage = how.stages[0]
    metered, why = source.available, getattr(source, "reason", "")
    if metered:
        source.start()
    wall_s, cpu_s = time.perf_counter(), time.process_time()
    for _ in range(stage.steps):
        trainer.train_step(stage)
    wall_s, cpu_s = time.perf_counter() - wall_s, time.process_time() - cpu_s
    joules, energy = None, ""
    if metered:
        try:
            reading = source.stop()
            joules, energy = reading.joules, f"measured: {', '.join(reading.parts_j) or 'a meter'}"
        except (InputError, UnsupportedError) as error:
            why = str(error)
    if joules is None:
        if trainer.device.type != "cpu":  # the watts of a core say nothing of a GPU
            watts, why = None, f"{why}; the training ran on a GPU, which --watts does not speak of"
        joules, energy = stated(cpu_s, watts, why)
    assert trainer.optimiser is not None
    groups = trainer.optimiser.param_groups
    learned = [p for group in groups for p in group["params"] if p.grad is not None]
    trainer.run()  # no step is left: it looks at itself once and saves
    export.export(folder / "run", folder / "model")
    return Tuned(folder / "model", sum(p.numel() for p in learned), wall_s, cpu_s, joules, energy)


def verdicts(folder: Path, n: int) -> list[bool]:
    """Which of n test questions a level the model answers right."""
    reader = Reader(folder)
    found: list[bool] = []
    for level in LEVELS:
        tested = samples(FAMILY, "test", n, 0, level)
        answers = reader([s.images for s in tested], [s.question for s in tested])
        found += [is_right(s, given) for s, given in zip(tested, answers, strict=True)]
    return found


def measured(
    name: str, work: Path, source: Meter, where: Grid | None, args: argparse.Namespace
) -> tuple[Cegi, dict[str, Any]]:
    """One model before and after: its index, and what stands beside it in the JSON."""
    path, file = MODELS[name]
    before = verdicts(path(), args.n)
    tuned = fine_tune(
        path(), recipe_of(file, args.steps, args.batch), work / name, source, args.watts
    )
    after = verdicts(tuned.folder, args.n)
    cost = None
    if where is not None and tuned.joules is not None:
        cost = carbon(tuned.joules, where, args.pue)
    scores = [sum(side) / len(side) for side in (before, after)]
    index = cegi(scores[0], scores[1], cost.kg if cost else None, tuned.parameters)
    gain = paired_bootstrap([float(x) for x in after], [float(x) for x in before])
    pairs = list(zip(before, after, strict=True))
    extra = {
        "questions": len(pairs),
        "points_95": [100 * gain.low, 100 * gain.high],
        "mcnemar_p": mcnemar_exact(pairs.count((True, False)), pairs.count((False, True))),
        "wall_s": tuned.wall_s,
        "cpu_s": tuned.cpu_s,
        "joules": tuned.joules,
        "energy": tuned.energy,
        "carbon": cost.as_dict() if cost else None,
        "cegi": index.as_dict(),
    }
    print(f"{name}: {extra}", flush=True)
    return index, extra


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=120)
    parser.add_argument("--batch", type=int, default=8, help="pictures a step")
    parser.add_argument("--n", type=int, default=200, help="test questions a level")
    parser.add_argument("--grid", help="three-letter country code, or g CO2e a kWh")
    parser.add_argument("--pue", type=float, default=1.0)
    parser.add_argument("--watts", type=float, help="assumed power of one busy core, without meter")
    parser.add_argument("--name", default="cegi")
    args = parser.parse_args(arguments)
    for name in ("steps", "batch", "n"):
        if getattr(args, name) < 1:
            raise InputError(f"--{name} {getattr(args, name)} is out of range: at least 1")
    return args


def run(args: argparse.Namespace, source: Meter) -> None:
    """Both models, the table and results/<name>.json."""
    torch.set_num_threads(1)
    where = grid(args.grid) if args.grid else None
    stated(1.0, args.watts, "")  # wrong figures are refused before the work
    carbon(1.0, where or grid("1"), args.pue)
    with tempfile.TemporaryDirectory() as folder:
        found = {name: measured(name, Path(folder), source, where, args) for name in MODELS}
    kinds = {name: extra["energy"].partition(":")[0] for name, (_, extra) in found.items()}
    rows = [(f"{name}, energy {kinds[name]}", index) for name, (index, _) in found.items()]
    notes = [READING]
    notes += [f"energy of {name}: {extra['energy']}" for name, (_, extra) in found.items()]
    notes.append(
        f"grid: {where}, PUE {args.pue:g}" if where else "grid: not stated, carbon missing"
    )
    print(table(rows))
    print("\n".join(notes))
    columns = ["model", "base", "tuned", "points", "G %", "P million", "energy", "kg CO2e", "CEGI"]
    cells = [
        [name, c.base, c.tuned, c.points, c.gain_percent, c.millions, kinds[name]]
        + ["missing" if x is None else f"{x:.3e}" for x in (c.kg, c.value)]
        for name, (c, _) in found.items()
    ]
    extra = {
        "task": f"{FAMILY}, levels {LEVELS}, test split",
        "steps": args.steps,
        "batch": args.batch,
        "notes": notes,
        "models": {name: more for name, (_, more) in found.items()},
        "table": table(rows),
    }
    publish(args.name, "CEGI of fine-tuning on bars, medium and hard", columns, cells, extra)


if __name__ == "__main__":
    run(parse(), meter())
