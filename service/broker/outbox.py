"""How does news of finished jobs wait until it is delivered? Written with the final state, dropped with the receipt."""

import json
import secrets
import time
from collections import deque
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError
from redis.exceptions import ResponseError

from service.broker import keys
from service.broker.link import BLOCK_S, Argument, open_link, reachable
from service.broker.lua import script
from service.broker.queue import record_of
from service.job import Record
from service.settings import Settings

_DUE_AT_ONCE = 100  # the server does nothing else meanwhile
_DEAD_KEPT = 10_000
_SENDER_IDLE_MS = 3_600_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Delivery:
    """A sender's claim on one message, for as long as a try may take."""

    id: str  # of the message: the same at every try, another for every end of a job
    entry_id: str
    token: str  # of this claim; the latest is in force
    attempt: int  # counted from 1
    url: str
    record: Record  # the job as it stood when it ended


@dataclass(frozen=True, slots=True, kw_only=True)
class DeadDelivery:
    """A message that was given up, and why."""

    id: str
    job_id: str
    attempts: int
    reason: str
    at: float  # seconds since 1970


class Outbox:
    """The outbox as seen from a sender. `take` and `close` belong to one thread; all else may be called from any.

    Every method raises NotReady when the server cannot be reached.
    """

    def __init__(self, url: str, settings: Settings, sender_id: str) -> None:
        """
        Args:
            sender_id: unique among all senders alive.
        """
        self._settings = settings
        self._sender_id = sender_id
        # A try takes no longer than its time limit, so nobody renews anything: twice that long and it is another's.
        self._silent_ms = int(settings.webhook_timeout_s * 2000)
        self._link = open_link(url)
        self._blocking_link = open_link(url)
        self._found: deque[tuple[str, str]] = deque()  # entry and message, given to us and not claimed yet
        self._sweep_at = time.monotonic()

    def close(self) -> None:
        self._link.close()
        self._blocking_link.close()

    def take(self, wait_s: float) -> Delivery | None:
        """The next message that is due; wait up to `wait_s` for it.

        Those of senders that fell silent come up here too, and those whose pause is over.
        """
        deadline = time.monotonic() + wait_s
        while True:
            next_ms = int(self._run("hook_due", _DUE_AT_ONCE))
            try:
                self._sweep_if_due()
                if not self._found:
                    self._read(None)
                while self._found:
                    entry_id, message_id = self._found.popleft()
                    if delivery := self._claim(entry_id, message_id):
                        return delivery
                left = deadline - time.monotonic()
                if left <= 0:
                    return None
                pause = min(left, BLOCK_S, self._sweep_at - time.monotonic())
                self._read(max(0.001, min(pause, next_ms / 1000) if next_ms >= 0 else pause))
            except ResponseError as err:
                if not str(err).startswith(("NOGROUP", "UNBLOCKED")):
                    raise  # or the server lost its data: begin anew

    def delivered(self, delivery: Delivery) -> bool:
        """The receiver has it.

        Returns, as do `retry`, `postpone` and `bury`:
            Whether this was still ours to say; if not, nothing was changed.
        """
        return self._settle(delivery, "delivered")

    def retry(self, delivery: Delivery, pause_s: float, reason: str) -> bool:
        """It did not arrive; it is due again after the pause."""
        return self._settle(delivery, "retried", pause_s, reason)

    def postpone(self, delivery: Delivery, pause_s: float) -> bool:
        """It was not tried, so the attempt does not count; it is due again after the pause."""
        return self._settle(delivery, "postponed", pause_s)

    def bury(self, delivery: Delivery, reason: str) -> bool:
        """It will never arrive."""
        return self._settle(delivery, "dead", 0.0, reason)

    def dead_letters(self, limit: int) -> list[DeadDelivery]:
        """Messages that were given up, newest first."""
        with reachable():
            entries = self._link.execute_command("XREVRANGE", keys.HOOKS_DEAD, "+", "-", "COUNT", limit)
        return [
            DeadDelivery(
                id=letter["hook"],
                job_id=letter["job"],
                attempts=int(letter["attempts"]),
                reason=letter["reason"],
                at=int(entry_id.partition("-")[0]) / 1000,
            )
            for entry_id, letter in entries
        ]

    def _sweep_if_due(self) -> None:
        if self._found or time.monotonic() < self._sweep_at:
            return
        swept = self._run("hook_sweep", self._sender_id, self._silent_ms, _SENDER_IDLE_MS)
        if swept:
            self._found.append((swept[0], swept[1]))
        else:  # where one was found there may be more
            self._sweep_at = time.monotonic() + self._silent_ms / 2000

    def _read(self, wait_s: float | None) -> None:
        block = () if wait_s is None else ("BLOCK", max(1, int(wait_s * 1000)))  # 0 would mean for ever
        link = self._link if wait_s is None else self._blocking_link
        with reachable():
            streams = link.execute_command(
                "XREADGROUP", "GROUP", keys.GROUP, self._sender_id, "COUNT", 1, *block, "STREAMS", keys.HOOKS, ">"
            )
        for _, entries in streams or []:
            self._found.extend((entry_id, fields["hook"]) for entry_id, fields in entries)

    def _claim(self, entry_id: str, message_id: str) -> Delivery | None:
        token = secrets.token_hex(8)
        answer = self._run(
            "hook_claim",
            self._sender_id,
            entry_id,
            message_id,
            token,
            self._settings.webhook_max_attempts,
            _DEAD_KEPT,
        )
        if answer[0] != "claimed":
            return None
        _, attempt, text = answer
        try:
            record = record_of(json.loads(text))
        except (KeyError, ValueError, ValidationError) as err:
            record, why = None, f"the job was put by a version that cannot be read here ({type(err).__name__})"
        else:
            why = "the job has no webhook"
        if record is None or record.job.webhook is None:
            self._settle_as(message_id, token, "dead", 0.0, why)
            return None
        return Delivery(
            id=message_id, entry_id=entry_id, token=token, attempt=int(attempt), url=record.job.webhook, record=record
        )

    def _settle(self, delivery: Delivery, verb: str, pause_s: float = 0.0, reason: str = "") -> bool:
        return self._settle_as(delivery.id, delivery.token, verb, pause_s, reason)

    def _settle_as(self, message_id: str, token: str, verb: str, pause_s: float, reason: str) -> bool:
        answer = self._run("hook_settle", message_id, token, verb, int(pause_s * 1000), reason, _DEAD_KEPT)
        return bool(answer == "settled")

    def _run(self, name: str, *arguments: Argument) -> Any:
        with reachable():
            return script(name).run(self._link, *arguments)
