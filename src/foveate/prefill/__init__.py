"""Methods inside the language model: which visual tokens survive to deeper layers. One paper a file.

`g_search` finds a schedule for one of them on a calibration set.
"""

from foveate.prefill._search import Searched, g_search

__all__ = ["Searched", "g_search"]
