"""Which jobs may be at work beside each other in one worker process?

What kills a worker - a crash in native code, the kernel for want of memory - takes an attempt from every job that is at
work in it; and these, whose leases run out together, are given out together again. One such job would use up its
neighbours' attempts with its own. Therefore a job's last attempt is made alone: whoever dies in it dies of itself.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import count
from threading import Condition

_LOOK_EVERY_S = 0.1
_WORDS = "another makes its last attempt here, alone"
_PATIENCE_S = 30.0  # with slots that stand idle


class Occupied(Exception):
    """Another job is to be alone now; this one should be handed back, and its attempt not counted."""


class Isolation:
    """The jobs at work in this process."""

    def __init__(self, patience_s: float = _PATIENCE_S) -> None:
        """
        Args:
            patience_s: a job that is to be alone holds up new ones for so long; then it lets them pass until those
                that it waits for are done.
        """
        self._patience_s = patience_s
        self._changed = Condition()
        self._numbers = count()
        self._at_work: set[int] = set()
        self._closed = False  # by one that is alone, or waits to be

    def is_open(self, within_s: float) -> bool:
        """Whether it makes sense to look for a job; waits so long for it."""
        with self._changed:
            return self._changed.wait_for(lambda: not self._closed, within_s)

    @contextmanager
    def entered(self, *, alone: bool, heed: Callable[[], None]) -> Iterator[None]:
        """Be at work.

        Args:
            alone: with no other job; waits until the others are done.
            heed: called while it waits; ends the wait by raising.

        Raises:
            Occupied: at once.
        """
        with self._changed:
            if self._closed:
                raise Occupied(_WORDS)
            if alone:
                self._wait_to_be_alone(heed)
            number = next(self._numbers)
            self._at_work.add(number)
        try:
            yield
        finally:
            with self._changed:
                self._at_work.remove(number)
                if alone:
                    self._closed = False
                self._changed.notify_all()

    def _wait_to_be_alone(self, heed: Callable[[], None]) -> None:
        while True:
            self._closed = True
            try:
                if self._wait_for_end_of(None, heed, time.monotonic() + self._patience_s):
                    return
            except BaseException:
                self._open()
                raise
            self._open()
            self._wait_for_end_of(set(self._at_work), heed, float("inf"))
            if self._closed:
                raise Occupied(_WORDS)

    def _wait_for_end_of(self, jobs: set[int] | None, heed: Callable[[], None], until: float) -> bool:
        """Of these, or of all; False if it did not come in time."""
        while not self._changed.wait_for(
            lambda: not (self._at_work if jobs is None else self._at_work & jobs), _LOOK_EVERY_S
        ):
            heed()
            if time.monotonic() >= until:
                return False
        return True

    def _open(self) -> None:
        self._closed = False
        self._changed.notify_all()
