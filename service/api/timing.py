"""How long each request took, told by the route's template, and the span that all it leads to goes under."""

import time

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.metrics import ApiMetrics
from service.telemetry import tracing

# Method and path are the caller's to choose, and every new value would be a new time series for ever.
_METHODS = {"GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS", "PATCH"}
_NO_ROUTE = "unmatched"
_ASKED_ALL_DAY = {"/livez", "/readyz", "/metrics"}  # by probes and scrapers: nobody wants a trace of each


class Timing:
    """The outermost layer, so that nothing that answers goes uncounted."""

    def __init__(self, app: ASGIApp, metrics: ApiMetrics) -> None:
        self._app = app
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = dict(scope["headers"])
        with tracing.span(
            "HTTP",
            "server",
            under=headers.get(b"traceparent", b"").decode("latin-1"),
            quiet=scope["path"] in _ASKED_ALL_DAY,
        ) as span:
            await self._timed(scope, receive, send, span)

    async def _timed(self, scope: Scope, receive: Receive, send: Send, span: tracing.Span) -> None:
        began = time.perf_counter()
        status = 500  # stays, if the app breaks down before it answers

        async def noted(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self._app(scope, receive, noted)
        finally:
            method = scope["method"] if scope["method"] in _METHODS else "other"
            route = getattr(scope.get("route"), "path", _NO_ROUTE)
            self._metrics.request_took(time.perf_counter() - began, route=route, method=method, status=status)
            span.rename(f"{method} {route}")
            span.tell({"http.request.method": method, "http.route": route, "http.response.status_code": status})
            if status >= 500:
                span.fail(f"answered {status}")
