"""Lets gRPC calls in: the same gate as over HTTP, asked before the call's first message is read."""

import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing
from typing import Any

import grpc

from models.errors import QuietframeError
from service.access.callers import Visit, visiting
from service.access.gate import Gate
from service.access.keys import Scope
from service.rpc import problems

# Whatever is in neither needs to submit: a call that is added later, and forgotten here, is no open door.
_OPEN = frozenset(
    {
        "inference.GRPCInferenceService/ServerLive",
        "inference.GRPCInferenceService/ServerReady",
        "inference.GRPCInferenceService/ServerMetadata",
    }
)
_READING = frozenset(
    {
        "quietframe.v1.Denoiser/GetJob",
        "quietframe.v1.Denoiser/WatchJob",
        "quietframe.v1.Denoiser/GetResult",
        "inference.GRPCInferenceService/ModelReady",
        "inference.GRPCInferenceService/ModelMetadata",
        "inference.GRPCInferenceService/RepositoryIndex",
    }
)
# Probes and listing tell nothing about anybody's pictures.
_OPEN_SERVICES = frozenset({"grpc.health.v1.Health", "grpc.reflection.v1alpha.ServerReflection"})
_LIVE = "quietframe.v1.Denoiser/DenoiseStream"
_LOOK_EVERY_S = 2.0  # as often as a followed job is looked at


def right_for(method: str) -> Scope | None:
    """What a key must allow, for `{service}/{method}`; None where none is needed."""
    if method in _OPEN or method.partition("/")[0] in _OPEN_SERVICES:
        return None
    return Scope.READ if method in _READING else Scope.SUBMIT


class Access(grpc.aio.ServerInterceptor):  # type: ignore[misc]  # gRPC tells no types
    """The gate before all calls but the open ones; what runs behind it knows who calls.

    What it refuses ends as other errors do, so it stands behind `Edge`.
    """

    def __init__(self, gate: Gate) -> None:
        self._gate = gate

    async def intercept_service(self, continuation: Callable[[Any], Awaitable[Any]], details: Any) -> Any:
        handler = await continuation(details)
        name = details.method.removeprefix("/")
        right = right_for(name)
        if handler is None or right is None:
            return handler
        shown = [value for key, value in details.invocation_metadata or () if key == "authorization"]
        if self._gate.asks_for_keys:
            # Now, and not in the handler: of a call with one message that would be after all of it was read.
            try:
                self._gate.identify(shown, "")
            except QuietframeError as err:
                return _refusing(err)
        if handler.response_streaming:
            return self._streamed(handler, name, right, shown)
        return self._answered(handler, right, shown)

    async def _admitted(self, shown: list[str | bytes], right: Scope, context: Any) -> Visit:
        visit = self._gate.identify(shown, address_of(context.peer()))
        await self._gate.admit(visit, right)
        return visit

    def _answered(self, handler: Any, right: Scope, shown: list[str | bytes]) -> Any:
        behave = handler.stream_unary or handler.unary_unary

        async def behaviour(request: Any, context: Any) -> Any:
            with visiting(await self._admitted(shown, right, context)):
                return await behave(request, context)

        streaming = handler.request_streaming
        kind = grpc.stream_unary_rpc_method_handler if streaming else grpc.unary_unary_rpc_method_handler
        return kind(behaviour, handler.request_deserializer, handler.response_serializer)

    def _streamed(self, handler: Any, name: str, right: Scope, shown: list[str | bytes]) -> Any:
        behave = handler.stream_stream or handler.unary_stream

        async def behaviour(request: Any, context: Any) -> AsyncIterator[Any]:
            visit = await self._admitted(shown, right, context)
            sent = self._counted(request, visit) if name == _LIVE else request
            with visiting(visit):
                async with aclosing(behave(sent, context)) as messages:
                    async for message in messages:
                        yield message

        streaming = handler.request_streaming
        kind = grpc.stream_stream_rpc_method_handler if streaming else grpc.unary_stream_rpc_method_handler
        return kind(behaviour, handler.request_deserializer, handler.response_serializer)

    async def _counted(self, requests: AsyncIterator[Any], visit: Visit) -> AsyncIterator[Any]:
        """A live stream's messages, each frame's pixels paid for; a key that is revoked ends it."""
        pixels, looked_at = 0, time.monotonic()
        async for message in requests:
            if message.WhichOneof("part") == "setup":
                pixels = max(0, message.setup.width) * max(0, message.setup.height)
            else:
                await self._gate.quotas.spend_pixels(pixels)
            if time.monotonic() - looked_at > _LOOK_EVERY_S:
                self._gate.check(visit.caller)
                looked_at = time.monotonic()
            yield message


def address_of(peer: str) -> str:
    """Out of gRPC's `ipv4:127.0.0.1:50000` or `ipv6:[::1]:50000` or, percent-encoded, `ipv6:%5B::1%5D:50000`."""
    kind, _, rest = peer.replace("%5B", "[").replace("%5D", "]").partition(":")
    return rest.rpartition(":")[0].strip("[]") if kind in ("ipv4", "ipv6") else ""


def _refusing(err: QuietframeError) -> Any:
    """A handler of a kind that reads no message before it runs; on the wire all kinds are the same."""

    async def behaviour(_requests: Any, context: Any) -> AsyncIterator[Any]:
        await problems.refuse(context, err)
        yield

    return grpc.stream_stream_rpc_method_handler(behaviour)
