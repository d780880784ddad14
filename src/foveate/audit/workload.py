"""The workload of an audit: which questions are asked about which pictures, the same for every arm.

`load_workload` reads a source, refuses what cannot be used with the rows named, drops repetitions,
draws a sample by seed and gives a hash, before anything is asked. Pictures are held in memory, those
of the chosen items only; the source is gone through twice for that.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from foveate.audit import workload_settle
from foveate.audit.metrics import LOYALTY, check_metric
from foveate.audit.records import Item, Picture
from foveate.audit.sources import Source, open_source
from foveate.audit.workload_pictures import picture, raw_bytes
from foveate.audit.workload_rows import Draft, RowError, draft, unused
from foveate.core.budget import largest_remainder
from foveate.core.errors import InputError, MediaError, SettingError

MAX_NEW_TOKENS = 64
"""Longest answer asked for where a row says nothing."""

FORMAT = "foveate-workload/1"


@dataclass(frozen=True)
class Workload:
    """Items in the order in which they are asked. `notes` say what was left out or changed."""

    items: tuple[Item, ...]
    name: str
    notes: tuple[str, ...] = ()

    @cached_property
    def hash(self) -> str:
        """SHA-256 over what every item asks and how it is scored, in order; hexadecimal. The name, the
        notes and where the items came from do not count.
        """
        rows = [
            [
                item.id,
                item.question,
                list(item.references),
                item.metric,
                item.category,
                [p.digest for p in item.pictures],
                item.max_new_tokens,
            ]
            for item in self.items
        ]
        text = json.dumps([FORMAT, rows], ensure_ascii=True, separators=(",", ":"))
        return hashlib.sha256(text.encode("ascii")).hexdigest()


def load_workload(
    source: str,
    *,
    limit: int | None = None,
    seed: int = 0,
    metric: str | None = None,
    max_new_tokens: int = MAX_NEW_TOKENS,
) -> Workload:
    """Read a workload: a .jsonl or .parquet file, a folder saved by `datasets` (FOLDER#SPLIT),
    `lab:FAMILY[@LEVEL],…` or `easyvqa`.

    limit: at most so many items, the same share of every category, by largest remainder. seed: draws
    the sample and the order, so that any first part of the items is a sample too. metric: in place
    of the rows' own. max_new_tokens: where a row says nothing.

    Errors: SettingError for a limit or an answer length below 1, a negative seed, an unknown metric,
    family or level; InputError that names the rows without a picture, a question or references, with
    fields of the wrong type, or with ids that others have.
    """
    if limit is not None and limit < 1:
        raise SettingError(f"limit is {limit}; it must be at least 1")
    if seed < 0:
        raise SettingError(f"seed is {seed}; it must be 0 or more")
    if max_new_tokens < 1:
        raise SettingError(f"max_new_tokens is {max_new_tokens}; it must be at least 1")
    if metric is not None:
        check_metric(metric)
    opened = open_source(source, limit=limit, seed=seed)
    drafts, keys, notes = _read(opened)
    chosen, faults = workload_settle.settle(drafts, metric)
    workload_settle.refuse(opened.name, opened.unit, faults, len(drafts))
    notes += workload_settle.notes(drafts, chosen, metric)

    unique = _unique(keys)
    if len(unique) < len(drafts):
        notes.append(
            f"{len(drafts) - len(unique)} of {len(drafts)} rows repeat the pictures, question and "
            "references of an earlier row and were left out"
        )
    _check_ids(opened, {number: drafts[number] for number in unique})
    order = sample([drafts[number].category for number in unique], limit, seed)
    numbers = [unique[place] for place in order]
    if len(numbers) < len(unique):
        notes.append(f"{len(numbers)} of {len(unique)} drawn by seed {seed}, by category")
    elif limit is not None and limit > len(numbers):
        notes.append(f"{limit} were asked for; there are {len(numbers)}")
    pictures, encoded = _pictures(opened, numbers)
    if encoded:
        notes.append(
            f"{encoded} pictures are sent as PNG: endpoints need not read their own format"
        )
    items = tuple(
        _item(number, drafts[number], chosen[number], pictures[number], max_new_tokens)
        for number in numbers
    )
    return Workload(items, opened.name, (*opened.notes, *notes))


Key = tuple[tuple[str, ...], str, tuple[str, ...]]


def _read(source: Source) -> tuple[dict[int, Draft], dict[int, Key], list[str]]:
    """Every row as a draft without its pictures, and what makes it a repetition of another."""
    drafts: dict[int, Draft] = {}
    keys: dict[int, Key] = {}
    faults: dict[int, str] = {}
    idle: set[str] = set()
    for number, row in source.rows():
        idle |= unused(row)
        try:
            found = draft(row)
            digests = tuple(
                hashlib.sha256(raw_bytes(value, source.folder)).hexdigest()
                for value in found.pictures
            )
        except (RowError, MediaError) as error:
            faults[number] = str(error)
            continue
        drafts[number] = Draft(**{**vars(found), "pictures": ()})
        keys[number] = (digests, found.question, found.references)
    workload_settle.refuse(source.name, source.unit, faults, len(drafts) + len(faults))
    if not drafts:
        raise InputError(f"workload {source.name} has no rows")
    notes = [f"fields that were not used: {', '.join(sorted(idle))}"] if idle else []
    return drafts, keys, notes


def _unique(keys: Mapping[int, Key]) -> list[int]:
    """Numbers of the rows that repeat no earlier one."""
    first: dict[Key, int] = {}
    for number, key in keys.items():
        first.setdefault(key, number)
    return list(first.values())


def _check_ids(source: Source, drafts: Mapping[int, Draft]) -> None:
    seen: dict[str, int] = {}
    faults: dict[int, str] = {}
    for number, one in drafts.items():
        name = one.id or str(number)
        if name in seen:
            faults[number] = f"the id {name!r} is that of {source.unit} {seen[name]}"
        seen.setdefault(name, number)
    workload_settle.refuse(source.name, source.unit, faults, len(drafts))


def sample(categories: Sequence[str], limit: int | None, seed: int) -> list[int]:
    """Places of the chosen items, in the order in which they are asked.

    Every place draws 64 bits of Philox; each category gives those with the lowest, as many as the
    largest remainder grants it, and the draws order them all. O(n log n).
    """
    draws = np.random.Philox(np.random.SeedSequence(seed)).random_raw(len(categories)).tolist()
    order = sorted(range(len(categories)), key=lambda place: (draws[place], place))
    if limit is None or limit >= len(categories):
        return order
    sizes = Counter(categories)
    names = sorted(sizes)
    shares = largest_remainder(
        limit, [sizes[name] for name in names], caps=[sizes[name] for name in names]
    )
    left = dict(zip(names, shares, strict=True))
    found = []
    for place in order:
        if left[categories[place]]:
            left[categories[place]] -= 1
            found.append(place)
    return found


def _pictures(source: Source, numbers: Sequence[int]) -> tuple[dict[int, tuple[Picture, ...]], int]:
    """The pictures of the chosen rows, equal ones held once, and how many were encoded again."""
    wanted = set(numbers)
    held: dict[str, Picture] = {}
    encoded = 0
    found: dict[int, tuple[Picture, ...]] = {}
    faults: dict[int, str] = {}
    for number, row in source.rows():
        if number not in wanted:
            continue
        loaded = []
        try:
            for value in draft(row).pictures:
                data = raw_bytes(value, source.folder)
                digest = hashlib.sha256(data).hexdigest()
                if digest not in held:
                    held[digest], again = picture(data)
                    encoded += again
                loaded.append(held[digest])
        except (RowError, MediaError) as error:
            faults[number] = str(error)
        found[number] = tuple(loaded)
        if len(found) == len(wanted):
            break
    workload_settle.refuse(source.name, source.unit, faults, len(wanted))
    return found, encoded


def _item(
    number: int, one: Draft, metric: str, pictures: tuple[Picture, ...], max_new_tokens: int
) -> Item:
    return Item(
        id=one.id or str(number),
        pictures=pictures,
        question=one.question,
        references=() if metric == LOYALTY else one.references,
        metric=metric,
        category=one.category,
        max_new_tokens=one.max_new_tokens or max_new_tokens,
    )
