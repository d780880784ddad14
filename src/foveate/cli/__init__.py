"""The command line: `foveate run | compare | list | explain | lab | doctor | demo`; torch comes late."""

from __future__ import annotations


def main() -> None:
    """The console script. Leaves with 0 ok, 2 usage or input, 3 refused, 4 undecided, 5 unsupported."""
    import logging

    from foveate.cli.app import app

    # transformers imports torchao where it is installed; what that says of kernels for other
    # machines would stand above every answer.
    for name in ("torchao", "torch.utils._pytree"):
        logging.getLogger(name).setLevel(logging.ERROR)
    app(prog_name="foveate")
