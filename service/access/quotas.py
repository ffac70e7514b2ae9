"""How much may a caller ask for in a minute, in requests and in pixels?

A quota is a bucket that a minute fills: who was quiet may take a minute's worth at once, and after that as it fills.
What is kept of it is one number, the time at which it will be full again; the debt is how far off that is. A job of
more pixels than the quota has is let in when the bucket is full, and then takes as many minutes as it is worth: else no
long video would ever be.

The counting is Redis's (`spend.lua`), in one step, so that all API processes share it. While Redis does not answer,
each process counts for itself, from where Redis last saw the caller: the gates stay shut to those who are over their
quota, and open at worst as many times wider as there are processes, while calls that need no Redis go on. The log says
when that begins and when it ends.
"""

import logging
import math
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Protocol

from service.access.callers import WINDOW_S, Caller, Standing, Visit, current_visit
from service.errors import NotReady, RateExceeded

log = logging.getLogger(__name__)

REQUESTS, PIXELS = "requests", "pixels"
_SLACK_S = 0.001  # of rounding, for a quota's last piece
_PAUSE_S = 1.0  # Redis that did not answer is not asked again for so long: each asking may take as long
_REMEMBERED = 10_000  # callers


class Counter(Protocol):
    """Counts for all processes; in the service it is the broker."""

    async def spend(
        self, costs: Sequence[tuple[str, str, int, int]], *, window_s: float
    ) -> tuple[bool, Sequence[float]]:
        """Take from several quotas, from all or from none.

        Args:
            costs: policy, payer, quota, amount; an amount below 0 gives back, one of 0 only asks.

        Returns:
            Whether it was there to take, and each quota's debt in seconds, after it.

        Raises:
            NotReady: it cannot count now.
        """
        ...


class Quotas:
    def __init__(self, counter: Counter, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._counter = counter
        self._clock = clock
        self._full_at: OrderedDict[tuple[str, str], float] = OrderedDict()  # by our clock, as last heard or counted
        self._alone_until = 0.0
        self._alone = False

    async def spend_request(self, visit: Visit) -> None:
        """
        Raises:
            RateExceeded
        """
        await self._spend(visit, {REQUESTS: 1, PIXELS: 0})

    async def spend_pixels(self, pixels: int) -> None:
        """In the name of whoever calls now.

        Raises:
            RateExceeded
        """
        if visit := current_visit():
            await self._spend(visit, {PIXELS: pixels})

    async def give_back_pixels(self, pixels: int) -> None:
        """No job came of them."""
        if visit := current_visit():
            await self._spend(visit, {PIXELS: -pixels})

    async def _spend(self, visit: Visit, amounts: dict[str, int]) -> None:
        caller = visit.caller
        costs = [
            (policy, caller.payer, quota, amount)
            for policy, amount in amounts.items()
            if (quota := _quota_of(caller, policy))
        ]
        if not costs:
            return
        fits, debts = await self._counted(costs)
        for (policy, _, quota, _), debt_s in zip(costs, debts, strict=True):
            visit.standings[policy] = Standing(policy=policy, quota=quota, debt_s=debt_s)
        if not fits:
            raise _exceeded(costs, debts)

    async def _counted(self, costs: Sequence[tuple[str, str, int, int]]) -> tuple[bool, Sequence[float]]:
        if self._clock() >= self._alone_until:
            try:
                fits, debts = await self._counter.spend(costs, window_s=WINDOW_S)
            except NotReady as err:
                if not self._alone:
                    log.warning("rate limits are counted by this process alone until the broker is back: %s", err)
                self._alone, self._alone_until = True, self._clock() + _PAUSE_S
            else:
                if self._alone:
                    log.warning("rate limits are counted by the broker again")
                self._alone = False
                for (policy, payer, _, _), debt_s in zip(costs, debts, strict=True):
                    self._remember((policy, payer), debt_s)
                return fits, debts
        return self._counted_here(costs)

    def _counted_here(self, costs: Sequence[tuple[str, str, int, int]]) -> tuple[bool, Sequence[float]]:
        """What `spend.lua` does."""
        now = self._clock()
        debts = [max(0.0, self._full_at.get((policy, payer), now) - now) for policy, payer, _, _ in costs]
        fits = all(_wait_s(cost, debt_s) <= 0 for cost, debt_s in zip(costs, debts, strict=True))
        if fits:
            debts = [max(0.0, debt_s + _price_s(cost)) for cost, debt_s in zip(costs, debts, strict=True)]
            for (policy, payer, _, _), debt_s in zip(costs, debts, strict=True):
                self._remember((policy, payer), debt_s)
        return fits, debts

    def _remember(self, whose: tuple[str, str], debt_s: float) -> None:
        self._full_at.pop(whose, None)
        if debt_s > 0:
            self._full_at[whose] = self._clock() + debt_s
        if len(self._full_at) > _REMEMBERED:
            self._full_at.popitem(last=False)


def _quota_of(caller: Caller, policy: str) -> int:
    return caller.requests_per_minute if policy == REQUESTS else caller.pixels_per_minute


def _price_s(cost: tuple[str, str, int, int]) -> float:
    """In the time that the bucket takes to get it back."""
    _, _, quota, amount = cost
    return amount * WINDOW_S / quota


def _wait_s(cost: tuple[str, str, int, int], debt_s: float) -> float:
    """Until it fits; at most 0 where it fits now."""
    price_s = _price_s(cost)
    if price_s <= 0:
        return 0.0
    if price_s > WINDOW_S:
        return debt_s
    return debt_s + price_s - WINDOW_S - _SLACK_S


def _exceeded(costs: Sequence[tuple[str, str, int, int]], debts: Sequence[float]) -> RateExceeded:
    waits = [_wait_s(cost, debt_s) for cost, debt_s in zip(costs, debts, strict=True)]
    worst = max(range(len(costs)), key=waits.__getitem__)
    policy, _, quota, amount = costs[worst]
    wait_s = max(1, math.ceil(waits[worst]))
    asked = f"{amount} pixels" if policy == PIXELS else "this request"
    return RateExceeded(f"{quota} {policy} a minute are allowed; {asked} will fit in {wait_s} s", retry_after_s=wait_s)
