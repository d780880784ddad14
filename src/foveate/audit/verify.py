"""Does a receipt follow from its rows? Hashes of the files, then every figure and verdict anew."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from foveate import __version__
from foveate.audit.bounds import Bounds
from foveate.audit.footprint import recomputed
from foveate.audit.receipt import digest_of, evaluated, plain, read_receipt
from foveate.audit.spec import hash_of
from foveate.audit.tables import BLOCKS, ROWS, digest, read_blocks, read_rows
from foveate.core.errors import FoveateError, InputError

WHOLE = ("figures", "figures.arms", "figures.pairs")
"""Parts of which no version leaves anything out."""

RELATIVE = 1e-9
"""Figures are equal within this: sums may be rounded otherwise by another numpy."""


@dataclass(frozen=True)
class Fault:
    """Something that no longer follows: where, such as figures.arms.small.quality.all.score, and how."""

    path: str
    text: str

    def __str__(self) -> str:
        return f"{self.path}: {self.text}"


@dataclass
class Verified:
    """The result: no faults, and the receipt holds. `compared` counts the figures looked at."""

    faults: list[Fault] = field(default_factory=list)
    compared: int = 0
    notes: list[str] = field(default_factory=list)
    decisions: dict[str, str] = field(default_factory=dict)

    @property
    def ok(self) -> bool:
        return not self.faults


def verify(path: Path) -> Verified:
    """Compute a receipt's figures and verdicts from the raw rows beside it and compare.

    InputError where there is no receipt, or one of a format this version does not read.
    """
    receipt, folder = read_receipt(path)
    result = Verified()
    made = receipt.get("foveate")
    if made != __version__:
        result.notes.append(f"made by foveate {made}, verified by {__version__}")
    for name in (ROWS, BLOCKS):
        _check_file(result, receipt, folder, name)
    try:
        if hash_of(receipt["spec"]) != receipt.get("spec_hash"):
            result.faults.append(Fault("spec_hash", "is not that of the spec"))
        result.faults += _against_spec(receipt, made == __version__)
        bounds = Bounds.from_dict(receipt["bounds"])
        rows, blocks = read_rows(folder / ROWS), read_blocks(folder / BLOCKS)
        seed = int(receipt["seeds"]["audit"])
        found = evaluated(rows, blocks, seed, bounds)
        if "carbon" in receipt:
            found["carbon"] = plain(recomputed(found["figures"], receipt["carbon"]))
    except (
        FoveateError, LookupError, TypeError, ValueError, AttributeError, ArithmeticError
    ) as error:  # fmt: skip
        result.faults.append(Fault("receipt", f"its figures cannot be computed again: {error}"))
        return result
    for part, now in found.items():
        # A later version may give more figures than the one that wrote the receipt, not verdicts.
        strict = made == __version__ or part == "verdicts"
        result.faults += differences(part, receipt.get(part), now, result, strict)
    if receipt.get("digest") != digest_of(receipt) and not result.faults:
        result.faults.append(
            Fault("digest", "something beside the figures was edited after the receipt was made")
        )
    result.decisions = {arm: str(v["decision"]) for arm, v in found["verdicts"].items()}
    return result


def _against_spec(receipt: dict[str, Any], same_version: bool) -> Iterator[Fault]:
    """What the receipt took over from its own spec, and no longer agrees with it."""
    spec = receipt["spec"]
    if same_version and "carbon" not in receipt:
        yield Fault("carbon", "is missing from the receipt")
    if plain(Bounds.from_dict(spec["bounds"]).as_dict()) != receipt["bounds"]:
        yield Fault("bounds", "are not those of the spec")
    if receipt["seeds"]["audit"] != spec["seed"]:
        yield Fault("seeds.audit", "is not the seed of the spec")


def differences(
    path: str, said: Any, now: Any, result: Verified, same_version: bool
) -> Iterator[Fault]:
    """Every leaf of `said` that `now` does not bear out, by its path."""
    if isinstance(said, dict) and isinstance(now, dict):
        for key in said:
            if key not in now:
                yield Fault(
                    f"{path}.{key}", "does not follow from the rows: there is no such figure"
                )
            else:
                yield from differences(f"{path}.{key}", said[key], now[key], result, same_version)
        # A later version may compute more than the one that wrote the receipt.
        for key in now.keys() - said.keys():
            if same_version or path in WHOLE:
                yield Fault(f"{path}.{key}", "is missing from the receipt; the rows give it")
        return
    if isinstance(said, list) and isinstance(now, list) and len(said) == len(now):
        for i, (a, b) in enumerate(zip(said, now, strict=True)):
            yield from differences(f"{path}.{i}", a, b, result, same_version)
        return
    result.compared += 1
    if not _equal(said, now):
        yield Fault(path, f"the receipt says {_short(said)}, the rows give {_short(now)}")


def _equal(a: Any, b: Any) -> bool:
    numbers = (int, float)
    if isinstance(a, bool) or isinstance(b, bool):
        return a is b
    if isinstance(a, numbers) and isinstance(b, numbers):
        return math.isclose(a, b, rel_tol=RELATIVE, abs_tol=1e-12)
    return type(a) is type(b) and a == b


def _check_file(result: Verified, receipt: dict[str, Any], folder: Path, name: str) -> None:
    files = receipt.get("files")
    said = files.get(name) if isinstance(files, dict) else None
    file = folder / name
    if not file.is_file():
        raise InputError(
            f"there is no {name} in {folder}: the receipt cannot be verified without it"
        )
    if digest(file) != said:
        result.faults.append(Fault(f"files.{name}", "the file is not the one of this receipt"))


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."
