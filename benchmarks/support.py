"""How the benchmarks tell times."""

import statistics
from collections.abc import Sequence


def percentile(times_s: Sequence[float], percent: int) -> float:
    """In milliseconds."""
    ordered = sorted(times_s)
    return 1000 * ordered[min(len(ordered) - 1, round(percent / 100 * (len(ordered) - 1)))]


def median(values: Sequence[float]) -> float:
    return statistics.median(values)
