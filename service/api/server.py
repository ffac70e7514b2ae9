"""How the app is served: one process, gRPC beside HTTP, and a stop that waits for requests but not for streams."""

import asyncio
import math
import socket
import time
from collections.abc import Callable

import uvicorn
from fastapi import FastAPI

from service.api.app import create_app
from service.api.services import Services
from service.rpc.server import CannotListen, RpcServer
from service.settings import Settings


class Server(uvicorn.Server):
    """One process only: metrics live in its memory. Who needs more runs more of them behind one address."""

    def __init__(self, app: FastAPI, settings: Settings, on_up: Callable[[str], None] | None = None) -> None:
        super().__init__(
            uvicorn.Config(
                app,
                host=settings.host,
                port=settings.port,
                log_level=settings.log_level,
                log_config=None,  # logging is the process's to set up
                access_log=False,  # the metrics count requests; a line each would hide the lines that matter
                server_header=False,
                timeout_graceful_shutdown=max(1, math.ceil(settings.drain_s)),
            )
        )
        self._linger_s = settings.linger_s
        self._fastapi = app
        self._on_up = on_up
        self._rpc: RpcServer | None = None

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        services = self._services
        if self.started and services is not None:
            rpc = RpcServer(services)
            try:
                await rpc.start()
            except CannotListen:
                await super().shutdown(sockets)
                raise
            self._rpc = rpc
        if self.started and self._on_up:
            host, port = self.servers[0].sockets[0].getsockname()[:2]
            self._on_up(f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}")

    async def main_loop(self) -> None:
        """Serve until a signal comes; then say so to whoever asks for readiness, and go on until they have asked."""
        await super().main_loop()
        if self._services is None:
            return
        self._services.leaving.set()
        if self._rpc is not None:
            await self._rpc.leave()
        until = time.monotonic() + self._linger_s
        while time.monotonic() < until and not self.force_exit:  # a second Ctrl-C
            await asyncio.sleep(0.1)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Tell the open event streams to end, then let the requests in hand finish."""
        if self._rpc is not None:
            await self._rpc.begin_stop()  # the lifespan's end waits for it
        if self._services is not None:
            self._services.draining.set()
        await super().shutdown(sockets)

    @property
    def _services(self) -> Services | None:
        """Not there where the start itself failed."""
        services = getattr(self._fastapi.state, "services", None)
        return services if isinstance(services, Services) else None


def make_server(settings: Settings, on_up: Callable[[str], None] | None = None) -> Server:
    """A server ready to `run()`, or to be awaited with `serve()`; `on_up` is told its URL once it listens."""
    return Server(create_app(settings), settings, on_up)
