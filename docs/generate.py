"""Write the generated blocks of the pages: the help of every verb in docs/cli.md.

    python docs/generate.py [--check]

A block stands between `<!-- help: VERB -->` and `<!-- end -->`. --check changes nothing and fails where a
block is stale.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

from typer.testing import CliRunner

from foveate.cli.app import app

PAGES = Path(__file__).parent
BLOCK = re.compile(r"(<!-- help: ([a-z-]+) -->\n).*?(<!-- end -->)", re.DOTALL)
WIDTH = "80"


def help_of(verb: str) -> str:
    """The help text of a verb as a terminal of fixed width shows it."""
    words = [] if verb == "foveate" else [verb]
    shown = CliRunner(env={"COLUMNS": WIDTH, "TERMINAL_WIDTH": WIDTH}).invoke(
        app, [*words, "--help"], prog_name="foveate"
    )
    if shown.exit_code != 0:
        raise SystemExit(f"foveate {verb} --help failed: {shown.output}")
    return "\n".join(line.rstrip() for line in shown.stdout.strip().splitlines())


def renewed(text: str) -> str:
    """A page with every help block written anew."""
    return BLOCK.sub(lambda m: f"{m[1]}```text\n{help_of(m[2])}\n```\n{m[3]}", text)


def main(arguments: list[str]) -> int:
    check = "--check" in arguments
    stale = []
    for page in sorted(PAGES.glob("*.md")):
        old = page.read_text(encoding="utf-8")
        new = renewed(old)
        if new == old:
            continue
        stale.append(page.name)
        if not check:
            page.write_text(new, encoding="utf-8")
    for name in stale:
        print(f"docs/{name}: {'stale, run python docs/generate.py' if check else 'written'}")
    return 1 if check and stale else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
