"""Write what is generated in docs/: the help of every verb in docs/cli.md, and the catalogue of methods.

    python docs/generate.py [--check]

A help block stands between `<!-- help: VERB -->` and `<!-- end -->`; docs/methods/ and
docs/catalogue.json are generated as a whole (docs/catalogue.py). --check changes nothing and fails
where something is stale. Needs no torch.
"""

from __future__ import annotations

import re
import runpy
import sys
from pathlib import Path

from typer.testing import CliRunner

from foveate.cli.app import app

PAGES = Path(__file__).parent
BLOCK = re.compile(r"(<!-- help: ([a-z-]+(?: [a-z-]+)?) -->\n).*?(<!-- end -->)", re.DOTALL)
WIDTH = "80"


def help_of(verb: str) -> str:
    """The help text of a verb as a terminal of fixed width shows it."""
    words = [] if verb == "foveate" else verb.split()
    shown = CliRunner(env={"COLUMNS": WIDTH, "TERMINAL_WIDTH": WIDTH}).invoke(
        app, [*words, "--help"], prog_name="foveate"
    )
    if shown.exit_code != 0:
        raise SystemExit(f"foveate {verb} --help failed: {shown.output}")
    return "\n".join(line.rstrip() for line in shown.stdout.strip().splitlines())


def renewed(text: str) -> str:
    """A page with every help block written anew."""
    return BLOCK.sub(lambda m: f"{m[1]}```text\n{help_of(m[2])}\n```\n{m[3]}", text)


def wanted() -> dict[Path, str | None]:
    """Every file with generated text: what it must hold, or None where it must not be."""
    out: dict[Path, str | None] = {
        page: renewed(page.read_text(encoding="utf-8")) for page in PAGES.glob("*.md")
    }
    # A method that left takes its page along.
    out.update(dict.fromkeys(PAGES.glob("methods/*.md")))
    texts: dict[str, str] = runpy.run_path(str(PAGES / "catalogue.py"))["written"]()
    out.update({PAGES / name: text for name, text in texts.items()})
    return out


def main(arguments: list[str]) -> int:
    check = "--check" in arguments
    stale = []
    for path, new in sorted(wanted().items()):
        old = path.read_text(encoding="utf-8") if path.exists() else None
        if new == old:
            continue
        stale.append(path.relative_to(PAGES))
        if check:
            continue
        if new is None:
            path.unlink()
        else:
            path.parent.mkdir(exist_ok=True)
            path.write_text(new, encoding="utf-8")
    for name in stale:
        print(f"docs/{name}: {'stale, run python docs/generate.py' if check else 'written'}")
    return 1 if check and stale else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
