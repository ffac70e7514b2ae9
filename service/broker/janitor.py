"""Who clears away what nobody needs any more? Results past their time, records past theirs, and blobs without a job."""

import itertools
import logging
import random
import threading
from collections.abc import Iterator
from typing import Any, Protocol

from service.broker import keys
from service.broker.link import Argument, open_link, reachable
from service.broker.lua import script
from service.errors import NotReady
from service.job import Lane
from service.settings import Settings

log = logging.getLogger(__name__)

_JOBS_AT_ONCE = 100  # the server does nothing else meanwhile
_BLOBS_AT_ONCE = 500
_CONSUMER_IDLE_MS = 3_600_000


class Blobs(Protocol):
    """What of a `BlobStore` is needed to keep it clean; the broker stands beside the store, not on it."""

    def delete(self, name: str, *, unused_for_s: float = 0.0) -> bool: ...
    def names_older_than(self, seconds: float) -> Iterator[str]: ...
    def clean_unfinished(self, seconds: float) -> int: ...


class Janitor:
    """Clears up. Any number of them may do so at once, and again after any crash."""

    def __init__(self, url: str, settings: Settings, blobs: Blobs, *, grace_s: float = 15 * 60) -> None:
        """
        Args:
            grace_s: how long a blob may lie without a job: an upload comes before its job, a result before its
                acknowledgement.
        """
        self._link = open_link(url)
        self._settings = settings
        self._blobs = blobs
        self._grace_s = grace_s

    def close(self) -> None:
        self._link.close()

    def run_forever(self, stop: threading.Event, every_s: float = 60.0) -> None:
        """Sweep about every `every_s` until told to stop; of several janitors, one at a time."""
        # With jitter, or workers that started together come together.
        while not stop.wait(every_s * random.uniform(0.5, 1.5)):  # noqa: S311
            try:
                if self._is_our_turn(every_s):
                    self.sweep()
            except NotReady as err:
                log.warning("not swept: %s", err)
            except Exception:
                log.exception("sweep failed")

    def sweep(self) -> None:
        """Clear up once.

        Raises:
            NotReady: the server went away; what was not done is done next time.
        """
        self._expire_jobs()
        self._delete_orphans()
        self._blobs.clean_unfinished(self._grace_s)
        self._forget_workers()

    def _expire_jobs(self) -> None:
        dealt = _JOBS_AT_ONCE
        while dealt == _JOBS_AT_ONCE:
            dealt, *unused = self._run("expire", int(self._settings.record_ttl_s * 1000), _JOBS_AT_ONCE)
            for name in unused:
                # One that was put again lately may be about to get a new job; as an orphan it would be met again.
                self._blobs.delete(name, unused_for_s=self._grace_s)

    def _delete_orphans(self) -> None:
        for names in _batches(self._blobs.names_older_than(self._grace_s), _BLOBS_AT_ONCE):
            with reachable():
                pipeline = self._link.pipeline(transaction=False)
                for name in names:
                    pipeline.execute_command("EXISTS", keys.blob(name))
                used = pipeline.execute()
            for name, is_used in zip(names, used, strict=True):
                if not is_used and self._blobs.delete(name, unused_for_s=self._grace_s):
                    log.info("blob %s deleted, no job uses it", name)

    def _forget_workers(self) -> None:
        self._run("prune", "", _CONSUMER_IDLE_MS, *Lane)
        self._run("forget_workers")

    def _is_our_turn(self, every_s: float) -> bool:
        with reachable():
            return bool(self._link.execute_command("SET", keys.JANITOR, 1, "NX", "PX", max(1, int(every_s * 500))))

    def _run(self, name: str, *arguments: Argument) -> Any:
        with reachable():
            return script(name).run(self._link, *arguments)


def _batches(names: Iterator[str], size: int) -> Iterator[list[str]]:
    while batch := list(itertools.islice(names, size)):
        yield batch
