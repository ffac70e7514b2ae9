"""Who may use the engine next: the most urgent first, but nobody waits for ever; no more at once than engines bear.

A worker decodes and encodes several jobs at once, but an engine on the CPU fills all cores by itself: two calls at a
time would only slow each other down. One on a GPU may have several contexts, so that one copies while another computes.
A frame of a video is a short turn, so an image that somebody waits for is soon served. And whoever is less urgent is
overtaken by so many and no more: live frames, say, come without end.
"""

import heapq
from collections.abc import Iterator
from contextlib import contextmanager
from enum import IntEnum
from itertools import count
from threading import Condition

# How many that come later and are a step more urgent may go before one that waits.
_OVERTAKEN_BY = 4


class Urgency(IntEnum):
    INTERACTIVE = 0  # somebody waits: images on the line, live frames
    BATCH = 1
    VIDEO = 2


class Turns:
    """A lock with an order, and with room for as many as the next in it says."""

    def __init__(self) -> None:
        self._condition = Condition()
        self._waiting: list[tuple[int, int]] = []  # place in the order, number of coming
        self._numbers = count()
        self._running: list[int] = []  # how many each bears at once, itself included

    @property
    def waiting(self) -> int:
        """How many wait for a turn."""
        with self._condition:
            return len(self._waiting)

    @contextmanager
    def turn(self, urgency: Urgency, at_once: int = 1) -> Iterator[None]:
        """Wait for a turn, and hold it.

        Args:
            urgency: goes before all less urgent that wait, but those it would be one too many for.
            at_once: how many may run when this one does, itself included. Who needs to be alone and is first in order
                holds up those behind it, or it would never be its turn.
        """
        with self._condition:
            number = next(self._numbers)
            ticket = (number + urgency * _OVERTAKEN_BY, number)
            heapq.heappush(self._waiting, ticket)
            self._condition.wait_for(lambda: self._waiting[0] == ticket and self._has_room(at_once))
            heapq.heappop(self._waiting)
            self._running.append(at_once)
            self._condition.notify_all()  # the next may have room beside this one
        try:
            yield
        finally:
            with self._condition:
                self._running.remove(at_once)
                self._condition.notify_all()

    def _has_room(self, at_once: int) -> bool:
        return len(self._running) < min([at_once, *self._running])
