"""Train lab-nano from scratch: `python -m foveate.lab.train --recipe FILE --out DIR`. With `--start
MODEL --stage NAME` it goes on from the weights of a model folder at that stage of the recipe.

Every picture of a step comes from the random stream (seed, stage, step), so a run that was killed
and resumed goes on with exactly the pictures and weights of an uninterrupted one. Matrix products are
in bfloat16 on a GPU, and on a CPU where the recipe says so; weights and optimiser stay in float32.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from foveate.core.errors import CheckpointError, FoveateError, SettingError, nearest

from . import checkpoint
from .batches import Batch, Packer, draw_scenes
from .losses import WordTable, aligned_loss, answer_logits, dense_loss, drawn_first
from .measure import dev_batches, dev_figures
from .network import attend_in_float32, build, see
from .recipe import PACKAGED, Recipe, Stage, load
from .tokenizer import build_tokenizer
from .warm import warm_start

AVERAGE = 0.98
PROGRESS_S = 20.0
FADE_FROM = 0.5
"""Helping losses start to move to their end weight after this share of a stage."""


class Trainer:
    """One run in one folder: `state.pt` (resume), `log.jsonl` (figures)."""

    def __init__(
        self,
        recipe: Recipe,
        folder: Path,
        say: Callable[[str], None] | None = None,
        start: Path | None = None,
        stage: str | None = None,
    ) -> None:
        self.recipe, self.folder = recipe, folder
        self.say = say or (lambda line: print(line, file=sys.stderr, flush=True))
        folder.mkdir(parents=True, exist_ok=True)
        torch.set_num_threads(recipe.threads)
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.tokenizer = build_tokenizer()
        self.packer = Packer(self.tokenizer, recipe.model.patch)
        model, heads = build(recipe.model, len(self.tokenizer), recipe.seed)
        self.model, self.heads = model.to(self.device), heads.to(self.device)
        if recipe.bfloat16 and self.device.type == "cpu":
            attend_in_float32(self.model)
        self.table = WordTable(self.tokenizer).to(self.device)
        self.stage, self.step, self.elapsed_s, self.total_s = 0, 0, 0.0, 0.0
        self.optimiser: torch.optim.AdamW | None = None
        self.averages: dict[str, float] = {}
        self._resume(start, stage)

    def _resume(self, start: Path | None, stage: str | None) -> None:
        state = checkpoint.load(self.folder)
        if state is None:
            self._start(start, stage)
            return
        if state.recipe != self.recipe.to_dict():
            raise CheckpointError(
                f"{self.folder} holds a run of another recipe: "
                "name another folder with --out, or delete it"
            )
        self.model.load_state_dict(state.model)
        self.heads.load_state_dict(state.heads)
        self.stage, self.step = state.stage, state.step
        self.elapsed_s, self.total_s = state.elapsed_s, state.total_s
        if state.optimiser is not None:
            self.optimiser = self._optimiser(self.recipe.stages[self.stage])
            self.optimiser.load_state_dict(state.optimiser)
        self.say(
            f"resumed at stage {self.stage + 1} of {len(self.recipe.stages)}, step {self.step}"
        )

    def _start(self, start: Path | None, stage: str | None) -> None:
        names = [known.name for known in self.recipe.stages]
        if stage is not None:
            if stage not in names:
                raise SettingError(f"unknown stage {stage!r}: {nearest(stage, names)}")
            self.stage = names.index(stage)
        if start is not None:
            fresh = warm_start(self.model, self.tokenizer, start)
            self.say(f"weights of {start.name}; {fresh} rows of the embedding start anew")

    def _save(self) -> None:
        state = checkpoint.State(
            stage=self.stage,
            step=self.step,
            elapsed_s=self.elapsed_s,
            total_s=self.total_s,
            model=self.model.state_dict(),
            heads=self.heads.state_dict(),
            optimiser=self.optimiser.state_dict() if self.optimiser else None,
            recipe=self.recipe.to_dict(),
        )
        checkpoint.save(self.folder, state)

    def _parts(self, stage: Stage) -> list[nn.Module]:
        if stage.answers > 0:
            return [self.model, self.heads]
        return [self.model.model.vision_tower, self.model.model.multi_modal_projector, self.heads]

    def _optimiser(self, stage: Stage) -> torch.optim.AdamW:
        embedding = self.model.get_input_embeddings().weight
        weights = [
            p for part in self._parts(stage) for p in part.parameters() if p is not embedding
        ]
        groups: list[dict[str, Any]] = [
            {
                "params": [p for p in weights if p.ndim > 1],
                "weight_decay": stage.decay,
                "scale": 1.0,
            },
            {"params": [p for p in weights if p.ndim < 2], "weight_decay": 0.0, "scale": 1.0},
        ]
        if stage.answers > 0:  # tied with the output: slower, or it collapses to a few directions
            groups.append(
                {"params": [embedding], "weight_decay": stage.decay, "scale": stage.embedding_lr}
            )
        return torch.optim.AdamW(groups, lr=stage.lr, betas=(0.9, 0.97), eps=1e-8)

    def _share(self, stage: Stage) -> float:
        return self.step / stage.steps if stage.steps else min(1.0, self.elapsed_s / stage.seconds)

    def _over(self, stage: Stage) -> bool:
        by_steps = stage.steps > 0 and self.step >= stage.steps
        return by_steps or (stage.seconds > 0 and self.elapsed_s >= stage.seconds)

    def batch(self, stage_index: int, step: int) -> tuple[Batch, Tensor]:
        """The batch of a step and the noise that chooses background patches."""
        stage = self.recipe.stages[stage_index]
        rng = np.random.default_rng([1, self.recipe.seed, stage_index, step])  # 1: the train stream
        batch = self.packer.pack(
            rng, draw_scenes(rng, stage.mix, stage.batch, stage.easy), stage.questions
        )
        noise = rng.random((len(batch.planes), batch.planes.shape[-1]), np.float32)
        return batch.to(self.device), torch.from_numpy(noise).to(self.device)

    def loss(
        self, stage: Stage, batch: Batch, noise: Tensor, share: float
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The weighted sum of the losses at a share of the stage, and figures for the log."""
        fade = max(0.0, min(1.0, (share - FADE_FROM) / 0.4))
        helping = stage.dense + (stage.dense_end - stage.dense) * fade
        seen = see(self.model, batch.pixels)
        total = torch.zeros((), device=self.device)
        figures: dict[str, Tensor] = {}
        if helping > 0:
            dense, figures = dense_loss(self.heads, seen, batch)
            aligned = aligned_loss(self.model, seen, batch, self.table)
            total = total + helping * (dense + stage.aligned * aligned)
            figures |= {"dense": dense, "aligned": aligned}
        if stage.answers > 0:
            chosen = drawn_first(batch, stage.patches, noise) if stage.patches else None
            logits, targets = answer_logits(self.model, seen, batch, chosen)
            answers = F.cross_entropy(logits, targets)
            total = total + stage.answers * answers
            figures |= {"answers": answers, "token": (logits.argmax(-1) == targets).float().mean()}
        return total, figures

    def train_step(self, stage: Stage) -> None:
        """One batch, one update."""
        if self.optimiser is None:
            self.optimiser = self._optimiser(stage)
        share = self._share(stage)
        rate = stage.final + (1 - stage.final) * 0.5 * (1 + math.cos(math.pi * share))
        rate *= min(1.0, (self.step + 1) / stage.warm_steps)
        for group in self.optimiser.param_groups:
            group["lr"] = stage.lr * rate * group["scale"]
        batch, noise = self.batch(self.stage, self.step)
        fast = self.device.type == "cuda" or self.recipe.bfloat16
        with torch.autocast(self.device.type, torch.bfloat16, enabled=fast):
            total, figures = self.loss(stage, batch, noise, share)
        self.optimiser.zero_grad(set_to_none=True)
        total.backward()
        weights = [p for group in self.optimiser.param_groups for p in group["params"]]
        norm = nn.utils.clip_grad_norm_(weights, 1.0)
        if not torch.isfinite(norm):
            raise FoveateError(
                f"the loss is not finite at step {self.step} of stage {stage.name}: lower its lr"
            )
        self.optimiser.step()
        self.step += 1
        for name, value in figures.items():
            value = value.detach()
            old = self.averages.get(name, float(value))
            self.averages[name] = AVERAGE * old + (1 - AVERAGE) * float(value)

    def run(self) -> None:
        """All stages from where the run stands; saves as it goes and at the end."""
        kinds = [kind for stage in self.recipe.stages for kind in stage.mix]
        drawn = dev_batches(self.packer, self.recipe.measure_pictures, kinds)
        dev = {kind: [batch.to(self.device) for batch in row] for kind, row in drawn.items()}
        while self.stage < len(self.recipe.stages):
            stage = self.recipe.stages[self.stage]
            start, before = time.monotonic() - self.elapsed_s, self.total_s - self.elapsed_s
            saved = told = measured = time.monotonic()
            while not self._over(stage):
                self.train_step(stage)
                now = time.monotonic()
                self.elapsed_s, self.total_s = now - start, before + now - start
                if now - told >= PROGRESS_S:
                    told = now
                    self.say(self._progress(stage))
                if now - measured >= self.recipe.measure_every:
                    self._measure(stage, dev)
                    measured = time.monotonic()
                if now - saved >= self.recipe.save_every:
                    self._save()
                    saved = time.monotonic()
            self._measure(stage, dev)
            self.stage, self.step, self.elapsed_s, self.optimiser = self.stage + 1, 0, 0.0, None
            self.averages = {}
            self._save()

    def _progress(self, stage: Stage) -> str:
        share = max(self._share(stage), self.elapsed_s / stage.seconds if stage.seconds else 0.0)
        left = self.elapsed_s * (1 / max(share, 1e-6) - 1)
        rest = self.recipe.stages[self.stage + 1 :]
        later = sum(s.seconds for s in rest) if all(s.seconds for s in rest) else 0.0
        figures = " ".join(f"{name} {value:.3f}" for name, value in self.averages.items())
        pictures = self.step * stage.batch / max(self.elapsed_s, 1e-6)
        return (
            f"{stage.name} {share:6.1%} step {self.step} {pictures:.1f} pictures/s, "
            f"left {(left + later) / 60:.1f} min | {figures}"
        )

    def _measure(self, stage: Stage, dev: dict[str, list[Batch]]) -> None:
        self.model.eval()
        figures = dev_figures(self.model, self.heads, dev, stage.answers > 0)
        self.model.train()
        row = {"stage": stage.name, "step": self.step, "pictures": self.step * stage.batch}
        row |= {"elapsed_s": round(self.elapsed_s, 1), "total_s": round(self.total_s, 1)}
        averages = {name: round(value, 4) for name, value in self.averages.items()}
        with (self.folder / "log.jsonl").open("a") as log:
            log.write(json.dumps(row | {"average": averages, "dev": figures}) + "\n")
        self.say(f"dev after {stage.name} step {self.step}: {json.dumps(figures)}")


def main(arguments: list[str] | None = None) -> int:
    """Command line; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m foveate.lab.train", description=__doc__)
    parser.add_argument(
        "--recipe", type=Path, default=PACKAGED, help="TOML file (default: the packaged one)"
    )
    parser.add_argument(
        "--out", type=Path, required=True, help="folder of the run; resumes what it holds"
    )
    parser.add_argument("--start", type=Path, help="model folder whose weights a new run takes")
    parser.add_argument("--stage", help="stage of the recipe at which a new run starts")
    options = parser.parse_args(arguments)
    try:
        recipe = load(options.recipe)
        trainer = Trainer(recipe, options.out, start=options.start, stage=options.stage)
        trainer.run()
    except FoveateError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
