"""The application: its verbs, and the one place where errors become one line and an exit code."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from foveate import __version__
from foveate.cli import console
from foveate.cli.audit import app as audit
from foveate.cli.compare import compare
from foveate.cli.demo import demo
from foveate.cli.doctor import doctor
from foveate.cli.explain import explain
from foveate.cli.lab import app as lab
from foveate.cli.list import show
from foveate.cli.run import run
from foveate.core.errors import FoveateError

USAGE, INTERNAL, INTERRUPTED = 2, 1, 130


class Verbs(TyperGroup):
    """A command group whose errors are one line on stderr, and one JSON object under --json."""

    def main(self, *args: Any, **kwargs: Any) -> Any:
        given = kwargs.pop("args", None)
        words = list(given if given is not None else args[0] if args else sys.argv[1:])
        standalone = kwargs.pop("standalone_mode", True)
        debug = "--debug" in words or os.environ.get("FOVEATE_DEBUG", "") not in ("", "0")
        # The flag is global, but a user types it wherever it comes to mind.
        words = [w for w in words if w != "--debug"]
        code = self._guarded(words, debug, kwargs)
        if standalone:
            sys.exit(code)
        return code

    def _guarded(self, words: Sequence[str], debug: bool, kwargs: dict[str, Any]) -> int:
        as_json = "--json" in words
        try:
            found = super().main(args=list(words), standalone_mode=False, **kwargs)
            return found if isinstance(found, int) else 0
        except FoveateError as error:
            if debug:
                raise
            console.fail(error, as_json)
            return error.exit_code
        except typer.Abort:
            console.fail_text("Aborted", "interrupted", as_json)
            return INTERRUPTED
        except Exception as error:  # last stop: a fault of ours becomes one line and exit code 1
            if hasattr(error, "format_message"):  # a usage error of typer
                return _usage(error, as_json)
            if debug:
                raise
            text = f"{type(error).__name__}: {error} (a fault of Foveate; --debug shows where)"
            console.fail_text("InternalError", text, as_json)
            return INTERNAL


def _usage(error: Any, as_json: bool) -> int:
    text = str(error.format_message()).strip() or "no command given"
    context = getattr(error, "ctx", None)
    if type(error).__name__ == "NoArgsIsHelpError":
        print(text)
        return USAGE
    hint = f"; see `{context.command_path} --help`" if context is not None else ""
    console.fail_text("UsageError", text.rstrip(".") + hint, as_json)
    return int(getattr(error, "exit_code", USAGE))


app = typer.Typer(
    cls=Verbs,
    name="foveate",
    help="Vision-language models that look only where they need to, with the record of what that saved.",
    epilog="Exit codes: 0 ok, 2 usage or input, 3 refused verdict, 4 undecided, 5 unsupported.",
    add_completion=False,
    rich_markup_mode=None,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)


def _version(value: bool) -> None:
    if value:
        print(f"foveate {__version__}")
        raise typer.Exit(0)


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")
    ] = False,
    debug: Annotated[
        bool, typer.Option("--debug", help="Show tracebacks (also: FOVEATE_DEBUG=1).")
    ] = False,
) -> None:
    """Options of every command."""


app.command("run", short_help="Answer a question about pictures or videos.")(run)
app.command("compare", short_help="Put methods side by side on the same pictures.")(compare)
app.command("list", short_help="List methods or model families.")(show)
app.command("explain", short_help="Draw what several plans keep of a picture.")(explain)
app.add_typer(lab, name="lab", short_help="Measure plans on rendered tasks; look at samples.")
app.add_typer(audit, name="audit", short_help="Compare plans under load, with verdict and receipt.")
app.command("doctor", short_help="Show what is installed and what stands in the way.")(doctor)
app.command("demo", short_help="Ask about rendered pictures, with and without a plan.")(demo)
