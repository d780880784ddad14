"""For every test: one thread, no network, repeatable hypothesis; and the record of claim tests.

A test marked `@pytest.mark.claim("F1")` checks a line of an issue's "Must hold". With
`record_property("figure", …)` and `record_property("bound", …)` it says what it measured;
`--claims-json PATH` writes all of that for `bench/claims.py`.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

# Before torch and transformers are imported: both read these once.
os.environ["OMP_NUM_THREADS"] = os.environ["MKL_NUM_THREADS"] = "1"
os.environ["HF_HUB_OFFLINE"] = os.environ["TRANSFORMERS_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"

import hypothesis
import pytest

hypothesis.settings.register_profile("house", deadline=None, derandomize=True)
hypothesis.settings.load_profile("house")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--claims-json", type=Path, help="write the record of claim tests to this file"
    )


def pytest_configure(config: pytest.Config) -> None:
    path = config.getoption("--claims-json")
    if path is not None and not hasattr(config, "workerinput"):
        config.pluginmanager.register(ClaimRecord(path), "foveate-claims")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        for mark in item.iter_markers("claim"):
            if len(mark.args) != 1 or not isinstance(mark.args[0], str):
                raise pytest.UsageError(f'{item.nodeid}: write @pytest.mark.claim("F1"), one id')
            lines = (getattr(getattr(item, "function", None), "__doc__", None) or "").split("\n\n")
            what = " ".join(lines[0].split()) or item.name.partition("[")[0].replace("_", " ")
            # User properties travel from the workers of pytest-xdist; marks do not.
            item.user_properties += [("claim", mark.args[0]), ("what", what.removeprefix("test "))]


def pytest_collection_finish(session: pytest.Session) -> None:
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(1)


class ClaimRecord:
    """Collects the reports of claim tests and writes them at the end: a list of rows."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.rows: dict[str, dict[str, Any]] = {}

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        claims = [value for name, value in report.user_properties if name == "claim"]
        if not claims:
            return
        row = self.rows.setdefault(report.nodeid, {"test": report.nodeid, "outcome": "passed"})
        if report.outcome != "passed" and row["outcome"] != "failed":
            row["outcome"] = report.outcome
        if report.skipped and isinstance(report.longrepr, tuple):
            row["reason"] = str(report.longrepr[2]).removeprefix("Skipped: ")
        row["seconds"] = round(row.get("seconds", 0.0) + report.duration, 3)
        row["claims"] = sorted(set(claims))
        row.update({name: value for name, value in report.user_properties if name != "claim"})

    def pytest_sessionfinish(self) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        text = json.dumps(list(self.rows.values()), indent=1, default=str)
        self.path.write_text(text + "\n", encoding="utf-8")
