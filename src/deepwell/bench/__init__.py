"""Measuring: what the machine allows, what Deepwell reaches of it, and what other engines reach beside it."""

from deepwell.bench.cells import Cell, Measure, Plan
from deepwell.bench.limits import Limits, Rate, measure_limits
from deepwell.bench.measure import Report, measure

__all__ = ["Cell", "Limits", "Measure", "Plan", "Rate", "Report", "measure", "measure_limits"]
