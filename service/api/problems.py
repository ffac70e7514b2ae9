"""Which answer an error gets over HTTP: problem details (RFC 9457) for each and every one."""

import logging
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute, Match

from models.errors import QuietframeError
from service.errors import NoKey, ScopeMissing, TryLater, problem, problem_of

log = logging.getLogger(__name__)

MEDIA_TYPE = "application/problem+json"
CLIENT_LEFT = 499  # nobody reads it; it keeps such requests apart in logs and metrics
LONGEST_RETRY_S = 3600  # workers may have come by then
RETRY_AFTER_S = 5  # long enough for a worker or the broker to come back, short enough not to be missed

# What HTTP itself refuses, before any of our code is asked: status -> (code, title)
_PLAIN: dict[int, tuple[str, str]] = {
    400: ("malformed_request", "The request cannot be read"),
    404: ("not_found", "There is nothing here"),
    405: ("method_not_allowed", "This cannot be done here"),
    413: ("too_large", "The input is too large"),
    415: ("unsupported_media_type", "The request body is of the wrong kind"),
    416: ("range_not_satisfiable", "The range lies outside the result"),
    422: ("invalid_request", "The request has wrong fields"),
}


class Refused(Exception):
    """A request that fails as HTTP: not about denoising, so no error of ours fits."""

    def __init__(
        self,
        status: int,
        detail: str,
        *,
        errors: Sequence[Mapping[str, Any]] | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(detail)
        self.status = status
        self.errors = errors
        self.headers = headers


class NothingMore(Exception):
    """There is no problem and nothing to send: 204, which keeps an EventSource from coming back."""


def respond(document: Mapping[str, Any], instance: str, headers: Mapping[str, str] | None = None) -> JSONResponse:
    """Send a problem document, naming what it happened to; one worth retrying says when."""
    status = int(document["status"])
    sent = {**document, "instance": document.get("instance") or instance}
    retry = {"Retry-After": str(RETRY_AFTER_S)} if status == 503 else {}
    if re.match(r"/v2(/|$)", instance):
        # The Open Inference Protocol has a shape of its own; the code, which has no place in it, goes beside it.
        status = 404 if document["code"] == "unknown_model" else status
        beside = {"Quietframe-Code": str(document["code"])}
        return JSONResponse({"error": document["detail"]}, status, {**retry, **beside, **(headers or {})})
    return JSONResponse(sent, status, {**retry, **(headers or {})}, media_type=MEDIA_TYPE)


def headers_of(err: QuietframeError) -> dict[str, str]:
    """What a header says of an error, beyond its document: when to come again, or what key to show (RFC 6750, 3)."""
    if isinstance(err, TryLater) and err.retry_after_s is not None:
        return {"Retry-After": str(min(max(math.ceil(err.retry_after_s), 1), LONGEST_RETRY_S))}
    if isinstance(err, NoKey):
        return {"WWW-Authenticate": 'Bearer realm="quietframe"'}
    if isinstance(err, ScopeMissing):
        return {"WWW-Authenticate": f'Bearer realm="quietframe", error="insufficient_scope", scope="{err.scope}"'}
    return {}


def plain(status: int, detail: str, errors: Sequence[Mapping[str, Any]] | None = None) -> dict[str, Any]:
    """The document of what HTTP itself refuses."""
    code, title = _PLAIN.get(status, ("http_error", HTTPStatus(status).phrase))
    document: dict[str, Any] = problem(status, code, title, detail, retryable=status >= 500)
    return {**document, "errors": list(errors)} if errors else document


def fields_refused(errors: Sequence[Mapping[str, Any]], where: str | None = None) -> Refused:
    """Tell pydantic's findings in terms of the request; the refused values themselves are not echoed."""
    told = []
    for error in errors:
        place = [str(part) for part in error["loc"]]
        origin = where or (place.pop(0) if len(place) > 1 else "request")
        told.append({"in": origin, "field": ".".join(place), "message": error["msg"], "code": error["type"]})
    names = ", ".join(error["field"] for error in told)
    return Refused(422, f"refused: {names}; see errors for each", errors=told)


def install(app: FastAPI) -> None:
    """Answer all that can be raised; `Exception` itself is raised on afterwards, so the server logs its traceback."""

    @app.exception_handler(QuietframeError)
    async def _ours(request: Request, err: QuietframeError) -> Response:
        document = problem_of(err)
        if document["status"] == 500:
            log.error("%s %s failed", request.method, request.url.path, exc_info=err)
        return respond(document, request.url.path, headers_of(err))

    @app.exception_handler(Refused)
    async def _refused(request: Request, err: Refused) -> Response:
        return respond(plain(err.status, str(err), err.errors), request.url.path, err.headers)

    @app.exception_handler(RequestValidationError)
    async def _invalid(request: Request, err: RequestValidationError) -> Response:
        return await _refused(request, fields_refused(err.errors()))

    @app.exception_handler(HTTPException)
    async def _http(request: Request, err: HTTPException) -> Response:
        details = {
            404: f"nothing answers {request.url.path}; /docs lists what there is",
            405: f"{request.method} is not among the methods of {request.url.path}",
        }
        document = plain(err.status_code, details.get(err.status_code, str(err.detail)))
        headers = {"Allow": _allowed(app, request)} if err.status_code == 405 else err.headers
        return respond(document, request.url.path, headers)

    @app.exception_handler(NothingMore)
    async def _nothing(_request: Request, _err: NothingMore) -> Response:
        return Response(status_code=204)

    @app.exception_handler(ClientDisconnect)
    async def _left(_request: Request, _err: ClientDisconnect) -> Response:
        return Response(status_code=CLIENT_LEFT)

    @app.exception_handler(Exception)
    async def _stranger(request: Request, err: Exception) -> Response:
        return respond(problem_of(err), request.url.path)


def _allowed(app: FastAPI, request: Request) -> str:
    """All methods of a path: the framework names only those of the first route that has it."""
    matching = [route for route in _single(app.routes) if route.matches(request.scope)[0] is not Match.NONE]
    # `/jobs/image` is also an id that `/jobs/{job_id}` would be asked for; the document speaks of the first.
    path = getattr(matching[0], "path", None) if matching else None
    of_path = [route for route in matching if getattr(route, "path", None) == path]
    return ", ".join(sorted({method for route in of_path for method in getattr(route, "methods", None) or ()}))


def _single(routes: Sequence[BaseRoute]) -> Iterator[BaseRoute]:
    """Routes one by one: the framework keeps those of an included router together."""
    for route in routes:
        inner = getattr(route, "original_router", None)
        if inner is None:
            yield route
        else:
            yield from _single(inner.routes)
