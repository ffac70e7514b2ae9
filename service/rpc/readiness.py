"""What `grpc.health.v1` is told: whether work can be taken, without the short absences that heal by themselves."""

import asyncio
import time
from collections.abc import Iterable

from grpc_health.v1 import health
from grpc_health.v1.health_pb2 import HealthCheckResponse

from models.errors import QuietframeError
from service.services import Services

_LOOK_EVERY_S = 1.0
# A broker that fails over, or a worker that is started again, is back within this; were every process out of the load
# balancer meanwhile, callers would find nobody at all.
_PATIENCE_S = 10.0


class Readiness:
    """Keeps the health service up to date; the empty name, which asks for the process itself, is always served."""

    def __init__(self, services: Services, names: Iterable[str]) -> None:
        self.servicer = health.aio.HealthServicer()
        self._services = services
        self._names = tuple(names)
        self._last_ready: float | None = None

    async def begin(self) -> None:
        """Be not ready until it is known better."""
        await self._tell(HealthCheckResponse.NOT_SERVING)
        self._watching = asyncio.ensure_future(self._watch())

    async def end(self) -> None:
        """Not ready any more, whatever comes."""
        self._watching.cancel()
        await self.servicer.enter_graceful_shutdown()

    async def _watch(self) -> None:
        while True:
            await self._look()
            await asyncio.sleep(_LOOK_EVERY_S)

    async def _look(self) -> None:
        try:
            await self._services.ready_workers()
        except QuietframeError:
            if self._last_ready is None or time.monotonic() - self._last_ready > _PATIENCE_S:
                await self._tell(HealthCheckResponse.NOT_SERVING)
        else:
            self._last_ready = time.monotonic()
            await self._tell(HealthCheckResponse.SERVING)

    async def _tell(self, status: "HealthCheckResponse.ServingStatus") -> None:
        for name in self._names:
            await self.servicer.set(name, status)
