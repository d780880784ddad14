"""The model class "foveate" of lmms-eval: `generate_until` on our engine under a plan.

It imports lmms-eval, which this package does not depend on: lmms-eval brings many packages of its
own, so it is installed by hand beside `foveate[hf]`. See lmms.py for how it is found.
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lmms_eval.api.instance import GenerationResult, Instance, TokenCounts
from lmms_eval.api.model import lmms
from lmms_eval.models.model_utils.gen_metrics import log_metrics
from loguru import logger

from foveate.audit.lmms import Generation, generation, request_of
from foveate.core.errors import InputError, SettingError, UnsupportedError, nearest
from foveate.core.plan import Plan
from foveate.engine.engine import Engine
from foveate.engine.request import Answer, Request

_ENGINE = ("dtype", "device_map", "revision", "max_pixels", "max_frames")
_OWN = ("pretrained", "plan", "batch_size", "device", "system_prompt", "pictures_first")
_OTHER_MODELS = ("max_batch_size",)  # lmms-eval hands it to every class; it bounds batch_size=auto


class FoveateModel(lmms):
    """--model_args: pretrained (a local folder, a hub id, or "lab-nano" for the bundled model), plan
    (text, or a .toml or .json file), dtype, device_map, revision, max_pixels, max_frames,
    system_prompt, pictures_first. A plan with commas stands in quotes, or in a file.

    Errors: SettingError for an unknown name, those of `Plan.load` and `Engine.from_pretrained`.
    """

    is_simple = False

    def __init__(
        self,
        pretrained: str | Path,
        plan: str = "none",
        batch_size: int | str = 1,
        device: str | None = None,
        system_prompt: str | None = None,
        pictures_first: bool = False,
        **options: Any,
    ) -> None:
        super().__init__()
        for name in _OTHER_MODELS:
            options.pop(name, None)
        for name in options:
            if name not in _ENGINE:
                known = nearest(name, (*_OWN, *_ENGINE))
                raise SettingError(f"--model_args: unknown setting {name!r}: {known}")
        if int(os.environ.get("WORLD_SIZE", "1")) > 1:
            raise UnsupportedError(
                "the model class runs in one process: start lmms-eval without a launcher, and split "
                "the work with --offset and --limit"
            )
        self.plan = Plan.load(_unquoted(plan))
        self.batch_size_per_gpu = _batch(batch_size)
        self.pictures_first = _truth("pictures_first", pictures_first)
        self.system_prompt = None if system_prompt is None else _unquoted(system_prompt)
        if device is not None:
            options.setdefault("device_map", device)
        self.engine: Engine = Engine.from_pretrained(_source(pretrained), **options)
        logger.info(f"plan {self.plan} (hash {self.plan.hash}) on {self.engine.name}")

    @property
    def batch_size(self) -> int:
        return self.batch_size_per_gpu

    @property
    def device(self) -> Any:
        return self.engine.model.device

    @property
    def model(self) -> Any:
        return self.engine.model

    @property
    def tokenizer(self) -> Any:
        return self.engine.processor.tokenizer

    def generate_until(self, requests: Sequence[Instance]) -> list[GenerationResult]:
        """Answers in the order of the requests, with their tokens. One that the engine cannot
        answer ends the run with its error: a gap would count as a wrong answer.
        """
        found: list[GenerationResult | None] = [None] * len(requests)
        groups: dict[str, list[int]] = {}
        for i, request in enumerate(requests):
            groups.setdefault(repr(sorted(request.args[2].items())), []).append(i)
        start_s, answers = time.perf_counter(), []
        for members in groups.values():
            how = generation(requests[members[0]].args[2])
            if how.ignored:
                logger.warning(
                    f"settings of other models, without effect: {', '.join(how.ignored)}"
                )
            for at in range(0, len(members), self.batch_size):
                part = members[at : at + self.batch_size]
                given = self._answer([requests[i] for i in part], how)
                answers += given
                for i, answer in zip(part, given, strict=True):
                    counts = TokenCounts(
                        input_tokens=answer.report.prompt_tokens if answer.report else None,
                        output_tokens=len(answer.token_ids),
                    )
                    found[i] = GenerationResult(how.cut(answer.text), counts)
        _log(answers, time.perf_counter() - start_s)
        return [result for result in found if result is not None]

    def _answer(self, requests: Sequence[Instance], how: Generation) -> list[Answer]:
        asked: list[Request] = []
        for request in requests:
            _, doc_to_messages, _, doc_id, task, split = request.args
            messages = doc_to_messages(self.task_dict[task][split][doc_id])
            asked.append(
                request_of(messages, system=self.system_prompt, pictures_first=self.pictures_first)
            )
        answers = self.engine.generate(
            asked,
            self.plan,
            max_new_tokens=how.max_new_tokens,
            batch_size=self.batch_size,
            **how.options,
        )
        for request, answer in zip(requests, answers, strict=True):
            if answer.error is not None:
                logger.error(f"task {request.args[4]}, document {request.args[3]}: {answer.error}")
                raise answer.error
        return answers

    def loglikelihood(self, requests: Sequence[Instance]) -> list[tuple[float, bool]]:
        """Refused: the engine generates answers and does not score given continuations."""
        raise UnsupportedError(
            "foveate answers by generating; it does not score given continuations: choose a task "
            "whose output_type is generate_until"
        )

    def generate_until_multi_round(self, requests: Sequence[Instance]) -> list[list[str]]:
        """Refused: later rounds of such tasks may show new pictures, which earlier turns cannot."""
        raise UnsupportedError(
            "tasks of several rounds are not supported: choose one whose output_type is "
            "generate_until"
        )

    def clean(self) -> None:
        """Let go of the model, as lmms-eval asks after its requests."""
        del self.engine
        super().clean()


def _log(answers: Sequence[Answer], elapsed_s: float) -> None:
    """What lmms-eval prints of a run, and the visual tokens beside."""
    tokens = sum(len(answer.token_ids) for answer in answers)
    reports = [answer.report for answer in answers if answer.report is not None]
    extra: dict[str, Any] = {"total_requests": len(answers)}
    if reports:
        extra["visual_tokens"] = sum(r.visual_tokens_in for r in reports) / len(reports)
        extra["visual_tokens_kept"] = sum(r.visual_tokens_kept for r in reports) / len(reports)
    log_metrics(elapsed_s, tokens, tokens / elapsed_s if elapsed_s > 0 else 0.0, extra)


def _source(pretrained: str | Path) -> str | Path:
    if str(pretrained) == "lab-nano" and not Path("lab-nano").exists():
        from foveate.lab.nano import nano_path

        return nano_path()
    return pretrained


def _unquoted(text: str) -> str:
    """lmms-eval keeps the quotes that protect a comma in --model_args."""
    text = str(text).strip()
    return text[1:-1] if len(text) > 1 and text[0] == text[-1] and text[0] in "\"'" else text


def _batch(value: int | str) -> int:
    try:
        size = int(value)
    except ValueError:
        raise InputError(
            f"batch_size = {value!r}: give a whole number, it is not searched"
        ) from None
    if size < 1:
        raise InputError(f"batch_size = {size} is out of range: at least 1")
    return size


def _truth(name: str, value: Any) -> bool:
    if not isinstance(value, bool):
        raise InputError(f"{name} = {value!r}: give True or False")
    return value
