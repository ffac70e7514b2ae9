"""What every call leans on, whichever door it came through: made once when the process starts."""

import asyncio
from collections.abc import Coroutine
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from service.access.gate import Gate
from service.blobs import BlobStore
from service.broker.card import WorkerCard
from service.broker.queue import QueueClient
from service.errors import NotReady
from service.intake import Intake
from service.metrics import ApiMetrics
from service.settings import Settings


@dataclass(slots=True, kw_only=True)
class Services:
    settings: Settings
    queue: QueueClient
    store: BlobStore
    intake: Intake
    gate: Gate
    metrics: ApiMetrics
    spool: Path
    grpc_port: int | None = None  # where gRPC listens, once it does
    admin_port: int | None = None  # where metrics and operators' calls are, where apart
    leaving: asyncio.Event = field(default_factory=asyncio.Event)  # set: new callers are to look elsewhere
    draining: asyncio.Event = field(default_factory=asyncio.Event)  # set: the process is about to stop
    _unfinished: set[asyncio.Task[Any]] = field(default_factory=set)

    async def ready_workers(self) -> list[WorkerCard]:
        """The workers that take jobs now: at least one.

        Raises:
            NotReady: the process is stopping, the broker is away, or no worker is up; the message says which.
        """
        if self.leaving.is_set() or self.draining.is_set():
            raise NotReady("the process is stopping")
        await self.queue.ping()
        workers = [card for card in await self.queue.workers() if card.ready]
        if not workers:
            raise NotReady("the broker answers, but no worker is ready")
        return workers

    def in_background(self, work: Coroutine[Any, Any, Any]) -> None:
        """Have something done that nobody waits for; the process ends after it."""
        task = asyncio.ensure_future(work)
        self._unfinished.add(task)
        task.add_done_callback(self._unfinished.discard)

    async def finish(self) -> None:
        """Wait for all that was to be done in the background, whatever came of it."""
        while self._unfinished:
            await asyncio.gather(*self._unfinished, return_exceptions=True)
