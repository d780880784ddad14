"""The lab: rendered tasks with exact answers and lab-nano, a small vision-language model trained on
them.

Importing this module imports neither torch nor transformers.
"""

from __future__ import annotations

from .nano import nano_path, pair_path
from .pictures import demo_pictures
from .tasks import FAMILIES, Sample, samples

__all__ = ["FAMILIES", "Sample", "demo_pictures", "nano_path", "pair_path", "samples"]
