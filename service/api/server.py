"""How the app is served: one process, gRPC beside HTTP, and a stop that waits for requests but not for streams."""

import asyncio
import math
import socket
import ssl
import time
from collections.abc import Callable
from typing import Literal

import uvicorn
from fastapi import FastAPI

from service.api.app import create_admin_app, create_app
from service.api.services import Services
from service.rpc.server import CannotListen, RpcServer
from service.settings import Settings


class Server(uvicorn.Server):
    """One process only: metrics live in its memory. Who needs more runs more of them behind one address."""

    def __init__(self, app: FastAPI, settings: Settings, on_up: Callable[[str], None] | None = None) -> None:
        super().__init__(_config(app, settings))
        self._settings = settings
        self._linger_s = settings.linger_s
        self._fastapi = app
        self._admin: _AdminServer | None = None
        self._on_up = on_up
        self._rpc: RpcServer | None = None

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        services = self._services
        if self.started and services is not None:
            try:
                if self._settings.admin_port is not None:
                    self._admin = await _AdminServer.started_for(services)
                rpc = RpcServer(services)
                await rpc.start()
            except CannotListen:
                if self._admin is not None:
                    await self._admin.stop()
                await super().shutdown(sockets)
                raise
            self._rpc = rpc
            services.gate.warn_if_wide_open(self._settings)
        if self.started and self._on_up:
            host, port = self.servers[0].sockets[0].getsockname()[:2]
            scheme = "https" if self._settings.tls_cert_file else "http"
            self._on_up(f"{scheme}://[{host}]:{port}" if ":" in host else f"{scheme}://{host}:{port}")

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
        if self._admin is not None:  # before the lifespan's end, which closes what its calls lean on
            await self._admin.stop()
        await super().shutdown(sockets)

    @property
    def _services(self) -> Services | None:
        """Not there where the start itself failed."""
        services = getattr(self._fastapi.state, "services", None)
        return services if isinstance(services, Services) else None


class _AdminServer(uvicorn.Server):
    """The operators' port, in the loop of the server that it belongs to; signals are that one's."""

    @classmethod
    async def started_for(cls, services: Services) -> "_AdminServer":
        """
        Raises:
            CannotListen
        """
        settings = services.settings
        listener = _listen(settings.host, settings.admin_port or 0)
        server = cls(_config(create_admin_app(services), settings, lifespan="off"))
        server.config.load()
        server.lifespan = server.config.lifespan_class(server.config)
        await server.startup([listener])
        services.admin_port = listener.getsockname()[1]
        server._looping = asyncio.ensure_future(server.main_loop())
        return server

    async def stop(self) -> None:
        self.should_exit = True
        await self._looping
        await self.shutdown()

    _looping: "asyncio.Future[None]"


def _config(app: FastAPI, settings: Settings, *, lifespan: Literal["auto", "off"] = "auto") -> uvicorn.Config:
    return uvicorn.Config(
        app,
        host=settings.host,
        port=settings.port,
        lifespan=lifespan,
        log_level=settings.log_level,
        log_config=None,  # logging is the process's to set up
        access_log=False,  # the metrics count requests; a line each would hide the lines that matter
        server_header=False,
        ssl_certfile=settings.tls_cert_file,
        ssl_keyfile=settings.tls_key_file,
        timeout_graceful_shutdown=max(1, math.ceil(settings.drain_s)),
    )


def _listen(host: str, port: int) -> socket.socket:
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listener = socket.socket(family, kind, protocol)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
    except OSError as err:
        raise CannotListen(f"cannot listen on {host}:{port} for operators: {err.strerror or err}") from err
    return listener


def make_server(settings: Settings, on_up: Callable[[str], None] | None = None) -> Server:
    """A server ready to `run()`, or to be awaited with `serve()`; `on_up` is told its URL once it listens.

    Raises:
        CannotListen: there is no TLS with the files that are set.
        And as `create_app`.
    """
    if settings.tls_cert_file is not None:
        try:
            ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(settings.tls_cert_file, settings.tls_key_file)
        except OSError as err:  # ssl.SSLError is one
            raise CannotListen(f"no TLS with {settings.tls_cert_file} and its key: {err.strerror or err}") from err
    return Server(create_app(settings), settings, on_up)
