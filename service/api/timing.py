"""How long each request took, told by the route's template."""

import time

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.metrics import ApiMetrics

# Method and path are the caller's to choose, and every new value would be a new time series for ever.
_METHODS = {"GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS", "PATCH"}
_NO_ROUTE = "unmatched"


class Timing:
    """The outermost layer, so that nothing that answers goes uncounted."""

    def __init__(self, app: ASGIApp, metrics: ApiMetrics) -> None:
        self._app = app
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
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
