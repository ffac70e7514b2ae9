"""Who sends the webhooks? A thread of each worker, beside the work and never in its way."""

import logging
import os
import random
import secrets
import socket
import threading
import time
from importlib.metadata import PackageNotFoundError, version

from service.broker.outbox import Delivery, Outbox
from service.errors import BadInput, NotReady
from service.settings import Settings
from service.telemetry import logs
from service.webhooks.egress import CallFailed, Egress, Resolve, look_up
from service.webhooks.event import event_of
from service.webhooks.signing import signed_headers
from service.webhooks.target import Target, target_of
from service.webhooks.turns import Turn, TurnedAway, Turns

log = logging.getLogger(__name__)

AT_ONCE = 16  # threads that do nothing but wait for receivers
AT_ONCE_PER_HOST = 2  # so that a slow receiver leaves room for the others
_RECONNECT_S = 1.0
_GRACE_S = 1.0  # what is on its way when the worker stops; the rest is sent again by another
_GROWTH = 3.0
_LONGEST_PAUSE_S = 6 * 3600.0
_LONGEST_WISH_S = 24 * 3600.0  # a receiver may ask for a longer pause, but not for one without end
_GONE = 410


class Courier:
    """Takes deliveries from the outbox and sends them, a bounded number at once. Any number of couriers may run."""

    def __init__(self, url: str, settings: Settings, *, resolve: Resolve = look_up, look_every_s: float = 2.0) -> None:
        """
        Args:
            resolve: how names become addresses.
            look_every_s: how long it waits for a message before it sees a stop, or a pause that is over.
        """
        self._url = url
        self._settings = settings
        self._resolve = resolve
        self._look_every_s = look_every_s
        self._free = threading.Semaphore(AT_ONCE)
        self._turns = Turns(AT_ONCE_PER_HOST)  # by name; the addresses behind it have theirs
        self._state = threading.Lock()  # over the one below
        self._under_way: set[threading.Thread] = set()
        self._agent = f"Quietframe/{_version()}"

    def run_forever(self, stop: threading.Event) -> None:
        """Send until told to stop. What was not sent by then, and what comes back unsent, is another's to send."""
        if not self._settings.webhook_keys:
            return
        try:
            egress = Egress(self._settings, self._resolve)
        except OSError as err:
            log.error("no webhook is sent: %s cannot be read: %s", self._settings.webhook_ca_file, err)
            return
        sender = f"{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(2)}"
        outbox = Outbox(self._url, self._settings, sender)
        while not stop.is_set():
            try:
                self._send_next(outbox, egress, stop)
            except NotReady as err:
                log.warning("no webhook is sent now: %s", err)
                stop.wait(_RECONNECT_S)
            except Exception:
                log.exception("the next webhook could not be taken")
                stop.wait(_RECONNECT_S)
        if self._all_home():
            outbox.close()

    def _send_next(self, outbox: Outbox, egress: Egress, stop: threading.Event) -> None:
        if not self._free.acquire(timeout=self._look_every_s):
            return
        sending = False
        try:
            delivery = outbox.take(self._look_every_s)
            if delivery is None:
                return
            if stop.is_set():
                # Left alone it would be another's too, but late, and an attempt the poorer: maybe its last.
                outbox.postpone(delivery, 0.0)
                return
            target = self._judge(outbox, delivery)
            if target is None:
                return
            try:
                turn = self._turns.enter(target.host)
            except TurnedAway as err:
                outbox.postpone(delivery, err.pause_s)
                return
            thread = threading.Thread(
                target=self._send,
                args=(outbox, egress, delivery, target, turn),
                name=f"webhook {target.host}",
                daemon=True,
            )
            with self._state:
                self._under_way.add(thread)
            try:
                thread.start()
            except RuntimeError:
                self._leave(turn, thread)
                raise
            sending = True
        finally:
            if not sending:
                self._free.release()

    def _judge(self, outbox: Outbox, delivery: Delivery) -> Target | None:
        """The URL again: what was accepted then may be forbidden now."""
        settings = self._settings
        try:
            return target_of(
                delivery.url, allow_http=settings.webhook_allow_http, allow_private=settings.webhook_allow_private
            )
        except BadInput as err:
            log.warning("webhook %s is not sent: %s", delivery.id, err, extra=logs.of(delivery.record.job))
            outbox.bury(delivery, str(err))
            return None

    def _send(self, outbox: Outbox, egress: Egress, delivery: Delivery, target: Target, turn: Turn) -> None:
        logs.take_up(delivery.record.job)
        try:
            try:
                answer = self._call(egress, delivery, target)
            except TurnedAway as err:
                outbox.postpone(delivery, err.pause_s)
            else:
                self._settle(outbox, delivery, target, *answer)
        except NotReady as err:
            # It is taken over when it has been silent for long enough, and sent again: at least once is the promise.
            log.warning("webhook %s: its end could not be noted: %s", delivery.id, err)
        except Exception:
            log.exception("webhook %s failed", delivery.id)
        finally:
            self._leave(turn, threading.current_thread())
            self._free.release()

    def _call(self, egress: Egress, delivery: Delivery, target: Target) -> tuple[int | None, float, str]:
        """The answer's status, the pause that the receiver asks for, and what went wrong."""
        body = event_of(delivery.record).model_dump_json().encode()
        headers = {
            "Content-Type": "application/json",
            "User-Agent": self._agent,
            **signed_headers(self._settings.webhook_keys, delivery.id, int(time.time()), body),
        }
        try:
            answer = egress.post(target, body, headers)
        except CallFailed as err:
            return None, 0.0, str(err)
        why = f"{target.authority} answered {answer.status}"
        if 300 <= answer.status < 400:
            why += ", and redirects are not followed"
        return answer.status, answer.retry_after_s or 0.0, why

    def _settle(
        self, outbox: Outbox, delivery: Delivery, target: Target, status: int | None, wish_s: float, why: str
    ) -> None:
        if status is not None and 200 <= status < 300:
            outbox.delivered(delivery)
            log.info("webhook %s delivered to %s", delivery.id, target.authority)
        elif status == _GONE or delivery.attempt >= self._settings.webhook_max_attempts:
            log.warning("webhook %s given up after attempt %d: %s", delivery.id, delivery.attempt, why)
            outbox.bury(delivery, why)
        else:
            pause_s = max(pause_after(delivery.attempt, self._settings.webhook_retry_s), min(wish_s, _LONGEST_WISH_S))
            log.info("webhook %s: attempt %d failed, next in %.0f s: %s", delivery.id, delivery.attempt, pause_s, why)
            outbox.retry(delivery, pause_s, why)

    def _leave(self, turn: Turn, thread: threading.Thread) -> None:
        turn.leave()
        with self._state:
            self._under_way.discard(thread)

    def _all_home(self) -> bool:
        """Whether the deliveries under way came to their end within the grace; a worker's drain waits no longer."""
        deadline = time.monotonic() + _GRACE_S
        with self._state:
            under_way = list(self._under_way)
        for thread in under_way:
            thread.join(max(0.0, deadline - time.monotonic()))
        return not any(thread.is_alive() for thread in under_way)


def pause_after(attempt: int, first_s: float) -> float:
    """How long to wait after a failed attempt, counted from 1: threefold each time, to six hours, a fifth more or less.

    With the defaults the twelfth and last attempt is about 28 hours after the first.
    """
    pause_s = min(_LONGEST_PAUSE_S, first_s * _GROWTH ** min(attempt - 1, 30))
    return pause_s * random.uniform(0.8, 1.2)  # noqa: S311


def _version() -> str:
    try:
        return version("quietframe")
    except PackageNotFoundError:
        return "0"
