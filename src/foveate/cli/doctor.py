"""`foveate doctor`: what is installed, what runs here, and the traps that are known. Works without torch."""

from __future__ import annotations

import importlib
import importlib.metadata
import os
import platform
from collections.abc import Callable
from typing import Annotated, Any

import typer

from foveate import __version__
from foveate.cli import console, options
from foveate.core import registry
from foveate.core.errors import FoveateError, InputError

# Mirrors the optional dependencies of pyproject.toml; a test holds the two together.
EXTRAS: dict[str, tuple[str, ...]] = {
    "hf": ("torch", "transformers", "accelerate", "safetensors", "psutil", "scipy"),
    "video": ("av",),
    "smolvlm": ("num2words",),
    "lab": ("easy-vqa", "matplotlib"),
    "energy": ("zeus", "codecarbon"),
    "audit": ("aiohttp", "datasets", "plotly", "psutil", "pyarrow", "pydantic", "scipy"),
    "vllm": ("vllm",),
}
BASE = ("array-api-compat", "numpy", "pillow", "rich", "typer")
TRANSFORMERS_FROM, TRANSFORMERS_BELOW = (5, 23), (6, 0)
TESTED_TRANSFORMERS = (5, 23)


NOT_COMPRESSED = 3


def doctor(
    endpoint: Annotated[
        str | None,
        typer.Option(help="Check this OpenAI API, such as http://localhost:8000/v1, instead."),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(help="Its model.  [default: the one that it lists]", show_default=False),
    ] = None,
    family: Annotated[
        str | None,
        typer.Option(help="The model's family, such as qwen2_5_vl, or its folder."),
    ] = None,
    plan: Annotated[str | None, typer.Option(help="The plan that it should serve.")] = None,
    processor: Annotated[
        str | None, typer.Option(help="The server's --mm-processor-kwargs, as JSON.")
    ] = None,
    api_key_env: Annotated[
        str | None, typer.Option(help="Environment variable that holds its key.")
    ] = None,
    timeout: Annotated[float, typer.Option(help="Seconds a request may take.")] = 60.0,
    as_json: options.AsJson = False,
) -> int:
    """Show versions, devices, extras and known limits of this installation.

    With --endpoint: send a server one picture and compare the prompt tokens it counts with those
    that the plan gives. Exit code 3 where they differ.
    """
    if endpoint is not None:
        from foveate.cli.doctor_endpoint import check_endpoint

        seen = check_endpoint(
            endpoint,
            model=model,
            family=family,
            plan=plan,
            processor=processor,
            api_key_env=api_key_env,
            timeout_s=timeout,
        )
        if as_json:
            console.emit(seen.data())
        else:
            print(seen.text())
        return 0 if seen.good else NOT_COMPRESSED
    given = {"model": model, "family": family, "plan": plan, "processor": processor}
    for name, value in {**given, "api-key-env": api_key_env}.items():
        if value is not None:
            raise InputError(f"--{name} says something of an endpoint: name it with --endpoint")
    found = examine()
    if as_json:
        console.emit(found)
    else:
        _print(found)
    return 0


def examine() -> dict[str, Any]:
    """Everything the report says, as JSON."""
    names = sorted({*BASE, *(n for group in EXTRAS.values() for n in group), "torchvision"})
    versions = {name: version(name) for name in names}
    torch = torch_facts() if versions["torch"] else None
    return {
        "foveate": __version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "versions": versions,
        "torch": torch,
        "cpus": cpus(),
        "memory_bytes": memory_bytes(),
        "extras": {extra: extra_state(extra, versions) for extra in EXTRAS},
        "methods": len(registry.methods()),
        "broken_methods": registry.broken(),
        "lab_nano": lab_nano(),
        "limits": limits(versions, torch),
    }


def version(name: str) -> str | None:
    """The installed version of a distribution, None if it is not there."""
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def torch_facts() -> dict[str, Any]:
    """Devices and threads as torch sees them; a torch that does not import shows its reason."""
    try:
        torch: Any = importlib.import_module("torch")
    except Exception as error:  # a broken installation is what doctor is there to show
        return {"error": f"{type(error).__name__}: {error}"}
    devices = [{"name": "cpu", "what": platform.processor() or platform.machine()}]
    for i in range(torch.cuda.device_count() if torch.cuda.is_available() else 0):
        about = torch.cuda.get_device_properties(i)
        what = f"{about.name}, {about.total_memory / 2**30:.0f} GiB"
        devices.append({"name": f"cuda:{i}", "what": what})
    if torch.backends.mps.is_available():
        devices.append({"name": "mps", "what": "Apple GPU (not tested)"})
    return {
        "version": torch.__version__,
        "cuda_build": torch.version.cuda,
        "threads": torch.get_num_threads(),
        "devices": devices,
    }


def cpus() -> dict[str, int]:
    """Cores of the machine, and those this process may use."""
    total = os.cpu_count() or 1
    affinity: Callable[[int], set[int]] | None = getattr(os, "sched_getaffinity", None)
    return {"cores": total, "usable": len(affinity(0)) if affinity is not None else total}


def memory_bytes() -> dict[str, int | None]:
    """Total and available memory; None where this system does not say."""
    try:
        psutil: Any = importlib.import_module("psutil")
        found = psutil.virtual_memory()
        return {"total": int(found.total), "available": int(found.available)}
    except ImportError:
        pass
    try:
        page = os.sysconf("SC_PAGE_SIZE")
        total, free = os.sysconf("SC_PHYS_PAGES"), os.sysconf("SC_AVPHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return {"total": None, "available": None}
    return {"total": page * total, "available": page * free}


def extra_state(extra: str, versions: dict[str, str | None]) -> dict[str, Any]:
    missing = [name for name in EXTRAS[extra] if versions[name] is None]
    return {
        "installed": not missing,
        "missing": missing,
        "install": f'pip install "foveate[{extra}]"' if missing else None,
    }


def lab_nano() -> dict[str, Any]:
    """Whether the bundled model is whole."""
    from foveate.lab.nano import nano_path

    try:
        return {"complete": True, "path": str(nano_path()), "error": None}
    except FoveateError as error:
        return {"complete": False, "path": None, "error": str(error)}


def limits(versions: dict[str, str | None], torch: dict[str, Any] | None) -> list[str]:
    """Known traps that this installation walks into."""
    out = []
    if torch is None:
        out.append(
            'torch is not installed: `foveate list` works, models do not; pip install "foveate[hf]"'
        )
    elif "error" in torch:
        out.append(f"torch is installed but does not import: {torch['error']}")
    cpu_torch = torch is not None and "error" not in torch and torch["cuda_build"] is None
    if versions["torchvision"] and cpu_torch:
        problem = torchvision_problem()
        state = f"it fails to import here ({problem})" if problem else "it imports here"
        out.append(
            f"torchvision {versions['torchvision']} stands beside a CPU build of torch: most of its "
            f"builds are linked to CUDA and break transformers' processors; {state}. Foveate needs no "
            "torchvision: pip uninstall torchvision"
        )
    found = versions["transformers"]
    if found is not None:
        number = release(found)
        if not TRANSFORMERS_FROM <= number < TRANSFORMERS_BELOW:
            low, high = (".".join(map(str, n)) for n in (TRANSFORMERS_FROM, TRANSFORMERS_BELOW))
            out.append(
                f"transformers {found} is outside the supported range: at least {low}, below {high}"
            )
        elif number != TESTED_TRANSFORMERS:
            tested = ".".join(map(str, TESTED_TRANSFORMERS))
            out.append(
                f"transformers {found} is newer than the tested {tested}: run the tests first"
            )
    for name, reason in registry.broken().items():
        out.append(f"third-party method {name} could not be loaded: {reason}")
    return out


def release(text: str) -> tuple[int, int]:
    """(major, minor) of a version."""
    parts = [p for p in text.split(".")[:2] if p.isdecimal()]
    numbers = [int(p) for p in parts] + [0, 0]
    return numbers[0], numbers[1]


def torchvision_problem() -> str | None:
    try:
        importlib.import_module("torchvision")
    except Exception as error:  # a broken installation is what doctor is there to show
        return f"{type(error).__name__}: {error}".splitlines()[0]
    return None


def _print(found: dict[str, Any]) -> None:
    from rich.table import Table
    from rich.text import Text

    screen = console.terminal()
    facts = Table(show_header=False, box=None, pad_edge=False)
    facts.add_column(style="bold")
    facts.add_column(overflow="fold")
    facts.add_row("foveate", f"{found['foveate']}, {found['methods']} methods")
    facts.add_row("python", f"{found['python']} on {found['platform']}")
    for name, number in found["versions"].items():
        facts.add_row(name, Text(number or "not installed", style="" if number else "dim"))
    for device in (found["torch"] or {}).get("devices", ()):
        facts.add_row(f"device {device['name']}", device["what"])
    cores, torch = found["cpus"], found["torch"] or {}
    threads = f", torch uses {torch['threads']} threads" if "threads" in torch else ""
    facts.add_row("CPU", f"{cores['usable']} of {cores['cores']} cores usable{threads}")
    facts.add_row("memory", _memory(found["memory_bytes"]))
    nano = found["lab_nano"]
    facts.add_row("lab-nano", "complete" if nano["complete"] else Text(nano["error"], style="red"))
    screen.print(facts)
    screen.print()
    for extra, state in found["extras"].items():
        if state["installed"]:
            screen.print(Text(f"extra {extra}: installed", style="green"))
        else:
            names = ", ".join(state["missing"])
            screen.print(Text(f"extra {extra}: lacks {names}; {state['install']}", style="yellow"))
    screen.print()
    for limit in found["limits"]:
        screen.print(Text("limit: " + limit, style="yellow"))
    if not found["limits"]:
        screen.print(Text("no known limit applies here", style="green"))


def _memory(found: dict[str, int | None]) -> str:
    if found["total"] is None:
        return "unknown"
    free = f", {found['available'] / 2**30:.1f} GiB available" if found["available"] else ""
    return f"{found['total'] / 2**30:.1f} GiB{free}"
