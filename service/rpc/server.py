"""The gRPC server: in the API's process and event loop, over the same services."""

import asyncio
import socket
from contextlib import suppress
from typing import Any

import grpc
from grpc_health.v1 import health, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from models.errors import QuietframeError
from service.rpc import denoiser, inference
from service.rpc.access import Access
from service.rpc.denoiser import DenoiserService
from service.rpc.edge import Edge
from service.rpc.generated import grpc_predict_v2_pb2_grpc
from service.rpc.generated.quietframe.v1 import denoiser_pb2_grpc
from service.rpc.inference import InferenceService
from service.rpc.readiness import Readiness
from service.services import Services
from service.settings import Settings

_CALLS_AT_ONCE = 1024  # streams that are watched for hours count too


class CannotListen(QuietframeError):
    """The port is taken, or the address is not this machine's."""


class RpcServer:
    """To be started and stopped in the loop that serves HTTP."""

    def __init__(self, services: Services) -> None:
        self._services = services
        names = {denoiser.NAME, inference.NAME}
        self._readiness = Readiness(services, names)
        self._server = grpc.aio.server(
            interceptors=[Edge(names, services.metrics), Access(services.gate)],
            options=[
                # Without it a second service on the same port would start, and share its calls.
                ("grpc.so_reuseport", 0),
                ("grpc.max_receive_message_length", services.settings.max_message_bytes),
                ("grpc.max_send_message_length", -1),  # a result goes out as large as it is
            ],
            maximum_concurrent_rpcs=_CALLS_AT_ONCE,
        )
        denoiser_pb2_grpc.add_DenoiserServicer_to_server(  # type: ignore[no-untyped-call]
            DenoiserService(services), self._server
        )
        grpc_predict_v2_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(  # type: ignore[no-untyped-call]
            InferenceService(services), self._server
        )
        health_pb2_grpc.add_HealthServicer_to_server(self._readiness.servicer, self._server)
        reflection.enable_server_reflection([*names, health.SERVICE_NAME, reflection.SERVICE_NAME], self._server)

    async def start(self) -> None:
        """
        Raises:
            CannotListen
        """
        host, port = self._services.settings.host, self._services.settings.grpc_port
        self._services.grpc_port = await asyncio.to_thread(self._listen, host, port)
        await self._server.start()
        await self._readiness.begin()

    async def leave(self) -> None:
        """Be out of every load balancer, and answer as ever."""
        await self._readiness.end()

    async def begin_stop(self) -> None:
        """Take no more calls; those in hand are finished by what is left in the background."""
        await self.leave()
        self._services.in_background(self._server.stop(self._services.settings.drain_s))

    def _listen(self, host: str, port: int) -> int:
        if port:
            _try_to_listen(host, port)  # the library would not say why it cannot
        with suppress(RuntimeError):
            address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
            credentials = _credentials_of(self._services.settings)
            taken = int(
                self._server.add_secure_port(address, credentials)
                if credentials
                else self._server.add_insecure_port(address)
            )
            if taken:
                return taken
        raise CannotListen(f"cannot listen on {host}:{port} for gRPC")


def _credentials_of(settings: Settings) -> Any:
    """Of the same files as HTTP; None where there is no TLS.

    Raises:
        CannotListen: they cannot be read.
    """
    if settings.tls_cert_file is None or settings.tls_key_file is None:
        return None
    try:
        pair = (settings.tls_key_file.read_bytes(), settings.tls_cert_file.read_bytes())
    except OSError as err:
        raise CannotListen(f"no TLS with {settings.tls_cert_file} and its key: {err.strerror or err}") from err
    return grpc.ssl_server_credentials([pair])


def _try_to_listen(host: str, port: int) -> None:
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
    except OSError as err:
        raise CannotListen(f"cannot listen on {host}:{port} for gRPC: {err.strerror or err}") from err
