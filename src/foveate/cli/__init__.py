"""The command line: `foveate run | list | explain | doctor | demo`. Torch is imported late."""

from __future__ import annotations


def main() -> None:
    """The console script. Leaves with 0 ok, 2 usage or input, 3 refused, 4 undecided, 5 unsupported."""
    from foveate.cli.app import app

    app(prog_name="foveate")
