"""How fast a job goes, and when it will be done."""

import time
from collections import deque
from collections.abc import Callable
from typing import Literal

from service.job import Progress

OnProgress = Callable[[Progress], None]  # what it raises stops the job

LATELY = 32  # units that the rate is measured over


def ignore_progress(progress: Progress) -> None:
    """For those who do not ask."""
    del progress


class Pace:
    """Counts units done and tells of each."""

    def __init__(self, unit: Literal["frames", "tiles"], total: int | None, tell: OnProgress) -> None:
        self._unit, self._total, self._tell = unit, total, tell
        self._moments = deque([time.monotonic()], maxlen=LATELY + 1)
        self.done = 0

    def step(self, total: int | None = None) -> None:
        """One more is done; `total` where it has become known only now."""
        self.done += 1
        self._total = total or self._total
        self._moments.append(time.monotonic())
        self._tell_all()

    def finish(self) -> None:
        """What is done is all there is; a header may have said otherwise, or nothing."""
        if self._total != self.done:
            self._total = self.done
            self._tell_all()

    def _tell_all(self) -> None:
        elapsed = self._moments[-1] - self._moments[0]
        rate = (len(self._moments) - 1) / elapsed if elapsed > 0 else None
        total = None if self._total is None else max(self._total, self.done)  # headers lie
        eta = None if rate is None or total is None else (total - self.done) / rate
        self._tell(
            Progress(
                done=self.done,
                total=total,
                unit=self._unit,
                rate=None if rate is None else round(rate, 3),
                eta_seconds=None if eta is None else round(eta, 2),
            )
        )
