"""`foveate audit`: what a plan saves and costs under load, with a verdict and a receipt."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from foveate.cli import console, options
from foveate.cli.audit_options import Given, spec_of, split_pids
from foveate.core.errors import InputError

if TYPE_CHECKING:
    from foveate.audit.spec import AuditSpec

REFUSED = 3

app = typer.Typer(
    help="Compare plans with the uncompressed model on the same requests, under load: accepted, refused "
    "or undecided, with a receipt that a stranger can check.",
    rich_markup_mode=None,
    no_args_is_help=True,
)

Pids = Annotated[
    list[str] | None,
    typer.Option("--pid", metavar="ARM=PID", help="The server's process on this machine, for its "
                 "CPU and memory; may be given again."),
]  # fmt: skip
Receipt = Annotated[Path, typer.Argument(metavar="RECEIPT", help="A receipt or its folder.")]
Any_ = Annotated[
    bool,
    typer.Option("--any", help="Leave with 0 if any candidate is accepted, not only if all are."),
]


@app.command("run", short_help="Run an audit, or go on with one that was interrupted.")
def run(
    spec: Annotated[
        Path | None,
        typer.Argument(metavar="SPEC", help="A TOML file that says it all; then only --out, --pid, "
                       "--resume, --any and --json may stand beside it."),
    ] = None,
    out: Annotated[
        Path, typer.Option(help="Folder of the journal, the rows and the receipt.")
    ] = Path("audit"),
    workload: Annotated[
        str | None,
        typer.Option(help="A .jsonl or .parquet file, lab:FAMILY,FAMILY@LEVEL, or easyvqa."),
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="So many items, drawn by the seed.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Items drawn, their order, arrivals.")] = 0,
    metric: Annotated[
        str | None, typer.Option(help="How answers are scored, in place of what the rows say.")
    ] = None,
    max_new_tokens: options.MaxNewTokens = 64,
    judge: Annotated[
        str | None, typer.Option(metavar="MODULE:FUNCTION", help="A judge of your own.")
    ] = None,
    baseline: Annotated[
        str | None,
        typer.Option(metavar="URL|MODEL[::PLAN]", help="The uncompressed arm: an OpenAI-compatible "
                     "base address (http://host:8000/v1), or a model for our engine."),
    ] = None,
    candidate: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=URL|NAME=MODEL::PLAN", help="An arm to compare; may be given again."),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(help="Our engine on this model with each --plan; without a plan it is the "
                     "baseline.  [default: the bundled lab-nano]", show_default=False),
    ] = None,
    plan: Annotated[
        list[str] | None, typer.Option(help="A candidate on --model; may be given again.")
    ] = None,
    served_model: Annotated[
        str | None, typer.Option(help="The model to ask endpoints for, where they list several.")
    ] = None,
    body: Annotated[
        list[str] | None,
        typer.Option(metavar="ARM=JSON", help="Fields for an endpoint's requests, such as "
                     "small={\"mm_processor_kwargs\": {...}}; may be given again."),
    ] = None,
    api_key_env: Annotated[
        list[str] | None,
        typer.Option(metavar="[ARM=]NAME", help="The environment variable that holds the key."),
    ] = None,
    pid: Pids = None,
    load: Annotated[
        list[str] | None,
        typer.Option(help="closed:1,2,4,8 (requests at a time), open:5 (a second, Poisson) or "
                     "trace:FILE; may be given again.  [default: closed:4]", show_default=False),
    ] = None,
    blocks: Annotated[int, typer.Option(min=1, help="How often every arm has its turn.")] = 6,
    requests: Annotated[int, typer.Option(min=1, help="Requests of a turn.")] = 20,
    warmup: Annotated[int, typer.Option(min=0, help="Requests before a turn that do not count.")] = 2,
    timeout: Annotated[float, typer.Option(help="Seconds a request may take.")] = 60.0,
    time_limit: Annotated[
        float | None, typer.Option(help="Seconds after which a turn sends no more requests.")
    ] = None,
    bounds: Annotated[Path | None, typer.Option(help="A TOML file with what is demanded.")] = None,
    grid: Annotated[
        str | None,
        typer.Option(help="For carbon: g CO2e a kWh, or a country's code of three letters."),
    ] = None,
    pue: Annotated[float, typer.Option(min=1.0, help="The site's power usage effectiveness.")] = 1.0,
    resume: Annotated[
        bool,
        typer.Option("--resume", help="Demand that --out holds this audit's journal; without it one is "
                     "begun or gone on with."),
    ] = False,
    any_: Any_ = False,
    as_json: options.AsJson = False,
) -> int:  # fmt: skip
    """Ask every arm the same requests in interleaved blocks and judge the candidates.

    The same command in the same folder goes on where it ended; no finished request is repeated.
    Leaves with 0 if all candidates are accepted, 3 if one is refused, 4 if one is undecided.
    """
    _ready()
    given = Given(
        workload, limit, seed, metric, max_new_tokens, judge, baseline, candidate or [], model, plan or [],
        served_model, body or [], api_key_env or [], load or [], blocks, requests, warmup, timeout,
        time_limit, bounds, grid, pue,
    )  # fmt: skip
    chosen = spec_of(spec, given, split_pids(pid or []))
    from foveate.audit.journal import FILE

    if resume and not (out / FILE).is_file():
        raise InputError(f"--resume: {out} holds no {FILE}; leave the option out to begin anew")
    return _run(chosen, out, any_, as_json)


@app.command("verify", short_help="Compute a receipt's figures anew from its rows.")
def verify(path: Receipt, as_json: options.AsJson = False) -> int:
    """Check the files' hashes, compute every figure and verdict from the raw rows and compare.

    Leaves with 0 if the receipt holds, with 3 if anything in it does not follow from the rows, and
    names it.
    """
    _ready()
    from foveate.audit.verify import verify as verified

    found = verified(path)
    if as_json:
        console.emit({
            "ok": found.ok,
            "compared": found.compared,
            "faults": [{"path": f.path, "text": f.text} for f in found.faults],
            "notes": found.notes,
            "verdicts": found.decisions,
        })  # fmt: skip
    else:
        for text in found.notes:
            console.note(text)
        for fault in found.faults:
            print(console.plain(fault))
        if found.ok:
            said = ", ".join(f"{arm} {decision}" for arm, decision in found.decisions.items())
            print(console.plain(f"the receipt holds: {found.compared} figures follow; {said}"))
    return 0 if found.ok else REFUSED


@app.command("rerun", short_help="Repeat the run of a receipt and compare the verdicts.")
def rerun(
    path: Receipt,
    out: Annotated[Path, typer.Option(help="Folder of the new run.")],
    workload: Annotated[
        str | None, typer.Option(help="Where the workload is now, if it was moved.")
    ] = None,
    send_keys: Annotated[
        bool,
        typer.Option("--send-keys", help="Send the keys that the receipt names to its addresses."),
    ] = False,
    pid: Pids = None,
    any_: Any_ = False,
    as_json: options.AsJson = False,
) -> int:
    """Run a receipt's spec again and show both verdicts side by side.

    Leaves as `run` does, by the new verdicts.
    """
    _ready()
    from foveate.audit.receipt import read_receipt
    from foveate.cli.audit_options import spec_of_receipt

    old, folder = read_receipt(path)
    if out.exists() and folder.resolve() == out.resolve():
        raise InputError("--out is the folder of the receipt itself: choose another")
    chosen = spec_of_receipt(old, workload, split_pids(pid or []), send_keys)
    return _run(chosen, out, any_, as_json, old=old)


@app.command("report", short_help="Write a receipt as one page to look at.")
def report(
    path: Receipt,
    out: Annotated[
        Path | None, typer.Option(help="The HTML file.  [default: report.html beside the receipt]",
                                  show_default=False)
    ] = None,
    as_json: options.AsJson = False,
) -> int:  # fmt: skip
    """Quality against latency for all arms, categories with intervals, latencies under each load, and
    pictures where the answers differ. The page holds everything and loads nothing.
    """
    _ready()
    from foveate.audit.receipt import read_receipt
    from foveate.audit.report import write_report

    _, folder = read_receipt(path)
    target = out or folder / "report.html"
    with console.working("drawing"):
        write_report(path, target)
    if as_json:
        console.emit({"out": str(target)})
    else:
        print(f"wrote {target}")
    return 0


def _run(
    spec: AuditSpec, out: Path, any_: bool, as_json: bool, old: dict[str, Any] | None = None
) -> int:
    from foveate.audit.run import run_audit
    from foveate.audit.verdict import EXIT_CODES, worst
    from foveate.cli.audit_show import listened, show, summary

    try:
        with listened() as progress:
            receipt = run_audit(spec, out, progress)
    except KeyboardInterrupt:
        console.note("what was finished is kept: the same command goes on from there")
        raise typer.Abort() from None
    if old is not None and (old.get("workload") or {}).get("hash") != receipt["workload"]["hash"]:
        console.note(
            "the workload is not that of the receipt (its hash differs): the verdicts are about "
            "different questions"
        )
    if as_json:
        console.emit(summary(receipt, out, old))
    else:
        show(receipt, out, old)
    decided = worst([v["decision"] for v in receipt["verdicts"].values()], any_=any_)
    return EXIT_CODES[decided]


def _ready() -> None:
    """MissingExtraError now, not after an hour, if the extra is not installed."""
    import importlib.util

    from foveate.core.errors import MissingExtraError

    for name in ("pydantic", "pyarrow", "scipy"):
        if importlib.util.find_spec(name) is None:
            raise MissingExtraError(name, "audit", "an audit")
