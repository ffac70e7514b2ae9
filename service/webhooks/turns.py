"""How many may wait for the same receiver at once, and when shall those that were turned away come again?

As late as their number and the receiver's slowness suggest: whoever comes again too soon is only turned away again, and
a backlog of thousands would do nothing else.
"""

import random
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field

SHORTEST_PAUSE_S = 2.0
LONGEST_PAUSE_S = 300.0  # a receiver that is well again hears of it no later, give or take a half
_KNOWN = 1000  # receivers; those that nobody waits for are forgotten beyond that


class TurnedAway(Exception):
    """All places are taken."""

    def __init__(self, pause_s: float) -> None:
        """
        Args:
            pause_s: when to come again.
        """
        super().__init__(f"all places are taken; come again in {pause_s:.0f} s")
        self.pause_s = pause_s


@dataclass(slots=True)
class _Line:
    """Those who want the same."""

    since: list[float] = field(default_factory=list)  # when those came in that are in, oldest first
    took_s: float = 0.0  # the one that left last
    turned_away: int = 0  # since a place was free


@dataclass(frozen=True, slots=True)
class Turn:
    """A place that somebody has; to be left once."""

    turns: "Turns"
    key: str
    since: float

    def leave(self) -> None:
        self.turns.leave(self)


class Turns:
    """Places before any number of receivers. May be used from any number of threads."""

    def __init__(self, at_once: int, clock: Callable[[], float] = time.monotonic) -> None:
        """
        Args:
            at_once: places for each receiver.
        """
        self._at_once = at_once
        self._clock = clock
        self._state = threading.Lock()
        self._lines: dict[str, _Line] = {}

    def enter(self, key: str) -> Turn:
        """Take a place before the receiver that goes by this key.

        Raises:
            TurnedAway: there is none.
        """
        with self._state:
            now = self._clock()
            if len(self._lines) >= _KNOWN:
                self._lines = {known: line for known, line in self._lines.items() if line.since}
            line = self._lines.setdefault(key, _Line())
            if len(line.since) >= self._at_once:
                line.turned_away += 1
                raise TurnedAway(self._pause_s(line, now))
            line.since.append(now)
            return Turn(self, key, now)

    def leave(self, turn: Turn) -> None:
        with self._state:
            line = self._lines[turn.key]
            line.since.remove(turn.since)
            line.took_s = self._clock() - turn.since
            line.turned_away = 0

    def _pause_s(self, line: _Line, now: float) -> float:
        """Until all who were turned away before will have had their turn; with jitter, or a crowd comes back as one."""
        each_s = max(line.took_s, now - line.since[0])
        due_s = line.turned_away * each_s / self._at_once
        return min(max(due_s, SHORTEST_PAUSE_S), LONGEST_PAUSE_S) * random.uniform(0.5, 1.5)  # noqa: S311
