"""What the benchmarks share: pictures, and how times are told."""

import statistics
from collections.abc import Sequence
from pathlib import Path


def percentile(times_s: Sequence[float], percent: int) -> float:
    """In milliseconds."""
    ordered = sorted(times_s)
    return 1000 * ordered[min(len(ordered) - 1, round(percent / 100 * (len(ordered) - 1)))]


def median(values: Sequence[float]) -> float:
    return statistics.median(values)


def samples_dir() -> Path:
    """The pictures that ship with Quietframe."""
    import service

    return Path(next(iter(service.__path__))) / "samples"
