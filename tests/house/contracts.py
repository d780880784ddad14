"""import-linter contracts that pass over packages of the house that are not built yet.

import-linter refuses a `forbidden` contract that names a package which does not exist. Ours names
every room of the architecture from the start and begins to bite on the day the room appears.
"""

from __future__ import annotations

from grimp import ImportGraph
from importlinter import ContractCheck
from importlinter.contracts.forbidden import ForbiddenContract


class ForbiddenWherePresent(ForbiddenContract):
    """`forbidden`, over those of its own packages that exist; external packages stay as given."""

    type_name = "forbidden_where_present"

    def check(self, graph: ImportGraph, verbose: bool) -> ContractCheck:
        inside = tuple(f"{root}." for root in self.session_options["root_packages"])

        def present(names: set[object]) -> set[object]:
            return {
                n
                for n in names
                if not str(n).startswith(inside) or "*" in str(n) or str(n) in graph.modules
            }

        self.source_modules = present(self.source_modules)  # type: ignore[assignment, arg-type]
        self.forbidden_modules = present(self.forbidden_modules)  # type: ignore[assignment, arg-type]
        if not self.source_modules:
            return ContractCheck(kept=True, metadata={"invalid_chains": []})
        return super().check(graph, verbose)
