"""Clocks, memory and energy meters, statistics. Imports core only, and no torch at import time."""

from foveate.measure.clock import StageClock
from foveate.measure.energy import (
    EnergyReading,
    Meter,
    NullMeter,
    ReplayMeter,
    RunningEnergy,
    ZeusMeter,
    meter,
)
from foveate.measure.memory import (
    PeakRss,
    device_peak_bytes,
    peak_rss_bytes,
    reset_device_peak,
    rss_bytes,
)
from foveate.measure.paired import (
    BinaryPairs,
    GradedPairs,
    newcombe,
    pair_up,
    sign_flip,
    tost,
)
from foveate.measure.power import blocks_needed, pairs_needed, trials_needed
from foveate.measure.quantiles import quantile
from foveate.measure.ratio import Ratio
from foveate.measure.stats import Interval, holm, mcnemar_exact, paired_bootstrap, wilson

__all__ = [
    "BinaryPairs",
    "EnergyReading",
    "GradedPairs",
    "Interval",
    "Meter",
    "NullMeter",
    "PeakRss",
    "Ratio",
    "ReplayMeter",
    "RunningEnergy",
    "StageClock",
    "ZeusMeter",
    "blocks_needed",
    "device_peak_bytes",
    "holm",
    "mcnemar_exact",
    "meter",
    "newcombe",
    "pair_up",
    "paired_bootstrap",
    "pairs_needed",
    "peak_rss_bytes",
    "quantile",
    "reset_device_peak",
    "rss_bytes",
    "sign_flip",
    "tost",
    "trials_needed",
    "wilson",
]
