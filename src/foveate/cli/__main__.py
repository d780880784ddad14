"""`python -m foveate.cli`, the same as the console script."""

from __future__ import annotations

from foveate.cli import main

if __name__ == "__main__":
    main()
