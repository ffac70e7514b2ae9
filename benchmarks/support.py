"""What the benchmarks share: a running service, pictures, and how times are told."""

import os
import signal
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit


@contextmanager
def running_service() -> Iterator[str]:
    """Start `quietframe serve` with a fresh data directory; gives its base URL, stops it at the end."""
    with tempfile.TemporaryDirectory(prefix="quietframe-bench-") as data_dir:
        command = [sys.executable, "-m", "service", "serve", "--port", "0", "--data-dir", data_dir]
        environment = os.environ | {"PYTHONUNBUFFERED": "1", "QUIETFRAME_LOG_LEVEL": "warning", "COLUMNS": "200"}
        service = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)
        try:
            for line in service.stdout or ():
                urls = [word for word in line.split() if word.endswith("/denoise/image")]
                if urls:
                    yield "http://" + urlsplit(urls[0]).netloc
                    return
            raise RuntimeError(f"the service ended with status {service.wait()} while starting")
        finally:
            service.send_signal(signal.SIGTERM)
            service.wait(60)


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
