"""Clocks, memory and energy meters, statistics. Imports core only, and no torch at import time."""

from foveate.measure.clock import StageClock
from foveate.measure.energy import EnergyReading, Meter, NullMeter, ReplayMeter, ZeusMeter, meter
from foveate.measure.memory import (
    PeakRss,
    device_peak_bytes,
    peak_rss_bytes,
    reset_device_peak,
    rss_bytes,
)
from foveate.measure.stats import Interval, holm, mcnemar_exact, paired_bootstrap, wilson

__all__ = [
    "EnergyReading",
    "Interval",
    "Meter",
    "NullMeter",
    "PeakRss",
    "ReplayMeter",
    "StageClock",
    "ZeusMeter",
    "device_peak_bytes",
    "holm",
    "mcnemar_exact",
    "meter",
    "paired_bootstrap",
    "peak_rss_bytes",
    "reset_device_peak",
    "rss_bytes",
    "wilson",
]
