"""Clocks, memory and energy meters, statistics. Imports core only, and no torch at import time."""
