"""From the options of `foveate audit run` to a spec."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from foveate.core.errors import InputError

if TYPE_CHECKING:
    from foveate.audit.spec import AuditSpec


@dataclass(frozen=True)
class Given:
    """The options as they were typed, in the order of the command."""

    workload: str | None
    limit: int | None
    seed: int
    metric: str | None
    max_new_tokens: int
    judge: str | None
    baseline: str | None
    candidate: list[str]
    model: str | None
    plan: list[str]
    served_model: str | None
    body: list[str]
    api_key_env: list[str]
    load: list[str]
    blocks: int
    requests: int
    warmup: int
    timeout: float
    time_limit: float | None
    bounds: Path | None
    grid: str | None
    pue: float


UNSET = Given(
    None, None, 0, None, 64, None, None, [], None, [], None, [], [], [], 6, 20, 2, 60.0, None, None,
    None, 1.0,
)  # fmt: skip
"""The options of a command that named none."""


def split_pids(words: Sequence[str]) -> dict[str, int]:
    """ARM=PID, by arm."""
    out = {}
    for word in words:
        name, pid = _named(word, "--pid", "ARM=PID")
        if not pid.isdecimal() or not int(pid):
            raise InputError(f"--pid {word}: {pid!r} is no process id")
        out[name] = int(pid)
    return out


def spec_of(path: Path | None, given: Given, pids: Mapping[str, int]) -> AuditSpec:
    """The spec of a file, or of the options; InputError where both say something."""
    from foveate.audit.spec import checked, expanded, load_spec

    if path is not None:
        both = [f.name for f in fields(Given) if getattr(given, f.name) != getattr(UNSET, f.name)]
        if both:
            options = ", ".join("--" + name.replace("_", "-") for name in both)
            raise InputError(
                f"{options} beside a spec file: write it into {path}, or use options only"
            )
        return with_pids(load_spec(path), pids)
    if given.workload is None:
        raise InputError(
            "give a spec file, or --workload with --baseline and --candidate (or --plan)"
        )
    plain: dict[str, Any] = {
        "workload": given.workload,
        "limit": given.limit,
        "seed": given.seed,
        "metric": given.metric,
        "max_new_tokens": given.max_new_tokens,
        "judge": given.judge,
        "arms": _arms(given),
        "loads": expanded(given.load or ["closed:4"]),
        "blocks": given.blocks,
        "requests": given.requests,
        "warmup": given.warmup,
        "timeout_s": given.timeout,
        "time_limit_s": given.time_limit,
        "bounds": _bounds(given.bounds),
        "grid": given.grid,
        "pue": given.pue,
    }
    return with_pids(checked(plain, "the options"), pids)


def spec_of_receipt(
    receipt: Mapping[str, Any], workload: str | None, pids: Mapping[str, int], send_keys: bool
) -> AuditSpec:
    """The spec to run a receipt's audit again. Process ids are those given now.

    InputError where it names keys of this environment and the caller did not agree to send them:
    addresses and names of variables come from whoever wrote the receipt.
    """
    from foveate.audit.spec import checked

    plain = dict(receipt.get("spec") or {})
    if workload is not None:
        plain["workload"] = workload
    keys = [a for a in plain.get("arms", ()) if a.get("api_key_env")]
    if keys and not send_keys:
        to = "; ".join(f"{a['api_key_env']} to {a.get('url')}" for a in keys)
        raise InputError(f"this receipt would send {to}: add --send-keys if you mean that")
    return with_pids(checked(plain, "the receipt's spec"), pids)


def with_pids(spec: AuditSpec, pids: Mapping[str, int]) -> AuditSpec:
    unknown = sorted(pids.keys() - {arm.name for arm in spec.arms})
    if unknown:
        raise InputError(f"--pid names {unknown[0]!r}, which is no arm of this audit")
    here = [a.name for a in spec.arms if a.name in pids and a.in_process]
    if here:
        raise InputError(f"--pid names {here[0]!r}, which runs in this process")
    arms = tuple(
        a.model_copy(update={"pid": pids[a.name]}) if a.name in pids else a for a in spec.arms
    )
    return spec.model_copy(update={"arms": arms})


def _arms(given: Given) -> list[dict[str, Any]]:
    from foveate.audit.spec import LAB_NANO
    from foveate.audit.target import BASELINE

    arms: list[dict[str, Any]] = []
    if given.baseline is not None:
        if given.model is not None:
            raise InputError("--model is the baseline of --plan; leave out --baseline or --model")
        arms.append({"name": BASELINE, **_target(given.baseline)})
    elif given.plan:
        arms.append({"name": BASELINE, "model": given.model or LAB_NANO})
    else:
        raise InputError("no baseline: give --baseline, or --plan for our engine in this process")
    for word in given.candidate:
        name, target = _named(word, "--candidate", "NAME=URL")
        arms.append({"name": name, **_target(target)})
    if given.plan and arms[0].get("model") is None:
        raise InputError("--plan is for our engine; the baseline is an endpoint: use --candidate")
    arms += [{"name": p, "model": arms[0]["model"], "plan": p} for p in given.plan]
    if len(arms) < 2:
        raise InputError("nothing to compare: give --candidate NAME=URL or --plan PLAN")
    return _with_fields(arms, given)


def _target(text: str) -> dict[str, Any]:
    """An address, or MODEL[::PLAN] for our engine."""
    if text.startswith(("http://", "https://")):
        return {"url": text}
    if "://" in text:
        raise InputError(f"{text!r} is no http(s) address")
    model, _, plan = text.partition("::")
    return {"model": model, "plan": plan} if plan else {"model": model}


def _with_fields(arms: list[dict[str, Any]], given: Given) -> list[dict[str, Any]]:
    """Served model, body and key, each for the endpoints it names."""
    endpoints = {a["name"]: a for a in arms if "url" in a}
    for arm in endpoints.values():
        if given.served_model is not None:
            arm["model"] = given.served_model
    if given.served_model is not None and not endpoints:
        raise InputError("--served-model is for endpoints; no arm is one")
    for word in given.body:
        name, text = _named(word, "--body", "ARM=JSON")
        try:
            found = json.loads(text)
        except ValueError as error:
            raise InputError(f"--body {name}: no JSON: {error}") from None
        if not isinstance(found, dict):
            raise InputError(f"--body {name}: a JSON object is needed, with fields of the request")
        _endpoint(endpoints, name, "--body")["body"] = found
    for word in given.api_key_env:
        name, equals, variable = word.rpartition("=")
        if not equals:
            for arm in endpoints.values():
                arm.setdefault("api_key_env", variable)
        else:
            _endpoint(endpoints, name, "--api-key-env")["api_key_env"] = variable
    return arms


def _endpoint(endpoints: Mapping[str, dict[str, Any]], name: str, option: str) -> dict[str, Any]:
    if name not in endpoints:
        known = ", ".join(endpoints) or "none"
        raise InputError(f"{option} names {name!r}, which is no endpoint of this audit ({known})")
    return endpoints[name]


def _named(word: str, option: str, form: str) -> tuple[str, str]:
    name, equals, value = word.partition("=")
    if not equals or not name or not value:
        raise InputError(f"{option} {word}: write {form}")
    return name, value


def _bounds(path: Path | None) -> dict[str, Any]:
    from foveate.audit.spec import read_bounds

    return read_bounds(path, "--bounds") if path is not None else {}
