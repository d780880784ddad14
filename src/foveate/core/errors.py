"""The typed errors of Foveate. Each says what was wrong and what to do; each maps to one exit code
of the CLI.
"""

from __future__ import annotations

import contextlib
import difflib
from collections.abc import Iterable, Iterator


class FoveateError(Exception):
    """Base of every error raised on purpose. `exit_code` is what the CLI leaves with."""

    exit_code = 1


class InputError(FoveateError, ValueError):
    """The request itself is wrong: a picture, a video, a question, a path, a batch (exit 2)."""

    exit_code = 2


class MediaError(InputError):
    """A picture or video cannot be read, is empty, too large or of a kind that is not accepted
    (exit 2).
    """


class PlanError(FoveateError, ValueError):
    """A plan cannot be read or its parts contradict each other (exit 2)."""

    exit_code = 2


class SettingError(PlanError):
    """A setting is unknown or out of range; the text names field, value and range (exit 2)."""


class UnknownMethodError(PlanError):
    """No method of that name is registered; the text gives the nearest names (exit 2)."""


class NonFiniteError(InputError):
    """Features or scores hold NaN or infinity; choosing among them would be arbitrary (exit 2)."""


class CheckpointError(InputError):
    """A model folder is missing, truncated, in pickle format or no vision-language model (exit 2)."""


class UnsupportedError(FoveateError):
    """This model, family, host or machine cannot do what the plan asks; the text says what to do
    (exit 5).
    """

    exit_code = 5


class MissingExtraError(UnsupportedError, ImportError):
    """An optional dependency is not installed; the text names the extra (exit 5)."""

    def __init__(self, package: str, extra: str, purpose: str) -> None:
        super().__init__(f'{purpose} needs the package {package}: pip install "foveate[{extra}]"')


class CapacityError(UnsupportedError):
    """A request does not fit into this machine's memory even when it runs alone (exit 5)."""


class StateError(FoveateError, RuntimeError):
    """A call does not fit the state of what it is made on, such as a report of work that was never
    handed out: a fault of the calling program, not of a request (exit 1).
    """


def nearest(name: str, names: Iterable[str]) -> str:
    """A half sentence with the nearest known names, for error texts: "did you mean …?" or the whole
    list.
    """
    known = sorted(names)
    close = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
    if close:
        return "did you mean " + " or ".join(close) + "?"
    return "known: " + ", ".join(known)


@contextlib.contextmanager
def naming(method: str) -> Iterator[None]:
    """While open, a SettingError begins with the name of the method whose setting it is."""
    try:
        yield
    except SettingError as error:
        raise SettingError(f"{method}: {error}") from None
