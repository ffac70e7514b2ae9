"""Who may use the engine next: one at a time, the most urgent first, each in order of coming.

A worker decodes and encodes several jobs at once, but its engine fills all cores by itself: two calls at a time would
only slow each other down. A frame of a video is a short turn, so an image that somebody waits for is soon served.
"""

import heapq
from collections.abc import Iterator
from contextlib import contextmanager
from enum import IntEnum
from itertools import count
from threading import Condition


class Urgency(IntEnum):
    INTERACTIVE = 0
    BATCH = 1
    VIDEO = 2


class Turns:
    """A lock with an order."""

    def __init__(self) -> None:
        self._condition = Condition()
        self._waiting: list[tuple[Urgency, int]] = []
        self._numbers = count()
        self._taken = False

    @property
    def waiting(self) -> int:
        """How many wait for a turn."""
        with self._condition:
            return len(self._waiting)

    @contextmanager
    def turn(self, urgency: Urgency) -> Iterator[None]:
        """Wait for a turn, and hold it."""
        with self._condition:
            ticket = (urgency, next(self._numbers))
            heapq.heappush(self._waiting, ticket)
            self._condition.wait_for(lambda: not self._taken and self._waiting[0] == ticket)
            heapq.heappop(self._waiting)
            self._taken = True
        try:
            yield
        finally:
            with self._condition:
                self._taken = False
                self._condition.notify_all()
