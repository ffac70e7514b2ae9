"""What goes around every call of ours: errors become statuses, and the time is taken."""

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing
from typing import Any

import grpc

from service.errors import problem_of
from service.metrics import ApiMetrics
from service.rpc import problems
from service.telemetry import tracing

log = logging.getLogger(__name__)

# Faults of the service, as OpenTelemetry's conventions have it; the others are the caller's.
_FAULTS = {
    grpc.StatusCode.UNKNOWN,
    grpc.StatusCode.DEADLINE_EXCEEDED,
    grpc.StatusCode.UNIMPLEMENTED,
    grpc.StatusCode.INTERNAL,
    grpc.StatusCode.UNAVAILABLE,
    grpc.StatusCode.DATA_LOSS,
}


class Edge(grpc.aio.ServerInterceptor):  # type: ignore[misc]  # gRPC tells no types
    """Around the services it is told; health and reflection answer for themselves."""

    def __init__(self, services: set[str], metrics: ApiMetrics) -> None:
        self._services = services
        self._metrics = metrics

    async def intercept_service(self, continuation: Callable[[Any], Awaitable[Any]], details: Any) -> Any:
        handler = await continuation(details)
        name = details.method.removeprefix("/")
        if handler is None or name.partition("/")[0] not in self._services:
            return handler
        if handler.response_streaming:
            behaviour: Any = self._streamed(handler, name)
            kind = grpc.stream_stream_rpc_method_handler if handler.request_streaming else None
            kind = kind or grpc.unary_stream_rpc_method_handler
        else:
            behaviour = self._answered(handler, name)
            kind = grpc.stream_unary_rpc_method_handler if handler.request_streaming else None
            kind = kind or grpc.unary_unary_rpc_method_handler
        return kind(behaviour, handler.request_deserializer, handler.response_serializer)

    def _answered(self, handler: Any, name: str) -> Callable[[Any, Any], Awaitable[Any]]:
        behave = handler.stream_unary or handler.unary_unary

        async def behaviour(request: Any, context: Any) -> Any:
            with tracing.span(name, "server", under=_traceparent_of(context)) as span:
                call = _Call(self._metrics, name, context, span)
                try:
                    return await behave(request, context)
                except BaseException as err:
                    await call.end_badly(err)
                    raise
                finally:
                    call.count()

        return behaviour

    def _streamed(self, handler: Any, name: str) -> Callable[[Any, Any], AsyncIterator[Any]]:
        behave = handler.stream_stream or handler.unary_stream

        async def behaviour(request: Any, context: Any) -> AsyncIterator[Any]:
            with tracing.span(name, "server", under=_traceparent_of(context)) as span:
                call = _Call(self._metrics, name, context, span)
                try:
                    async with aclosing(behave(request, context)) as messages:
                        async for message in messages:
                            yield message
                except BaseException as err:
                    await call.end_badly(err)
                    raise
                finally:
                    call.count()

        return behaviour


class _Call:
    def __init__(self, metrics: ApiMetrics, name: str, context: Any, span: tracing.Span) -> None:
        self._metrics, self._name, self._context, self._span = metrics, name, context, span
        self._began = time.perf_counter()
        self._code = grpc.StatusCode.OK

    async def end_badly(self, err: BaseException) -> None:
        """Tell the caller; returns where there is nobody to tell, or where it was told already."""
        if isinstance(err, (asyncio.CancelledError, GeneratorExit)):
            self._code = grpc.StatusCode.CANCELLED
        elif isinstance(err, grpc.aio.AbortError):
            self._code = self._context.code()  # told already
        elif isinstance(err, Exception):
            document = problem_of(err)
            self._code = problems.status_of(document)
            if self._code is grpc.StatusCode.INTERNAL:
                log.error("%s failed", self._name, exc_info=err)
            await problems.refuse(self._context, err)

    def count(self) -> None:
        self._metrics.call_took(time.perf_counter() - self._began, method=self._name, code=self._code.name)
        self._span.tell({"rpc.system": "grpc", "rpc.method": self._name, "rpc.grpc.status_code": self._code.value[0]})
        if self._code in _FAULTS:
            self._span.fail(self._code.name)


def _traceparent_of(context: Any) -> str | None:
    said = dict(context.invocation_metadata() or ()).get("traceparent")
    return said if isinstance(said, str) else None
