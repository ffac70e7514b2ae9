"""Lets HTTP requests in: before a byte of a body is read, it is known who calls and whether they may."""

import math
from collections.abc import Mapping
from typing import Any

from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from models.errors import QuietframeError
from service.access.callers import WINDOW_S, Standing, Visit, visiting
from service.api import problems
from service.api.rights import ASKING, right_for
from service.api.services import Services
from service.errors import problem_of

_DRAINED_BYTES = 1 << 16  # of a refused request's body: so much is read, so that the line stays of use

# What pages of other origins may send, and read.
_ALLOWED = (
    "Authorization",
    "Content-Type",
    "Idempotency-Key",
    "If-None-Match",
    "If-Range",
    "Inference-Header-Content-Length",
    "Last-Event-ID",
    "Prefer",
    "Range",
    "traceparent",
    "tracestate",
)
_EXPOSED = (
    "Content-Disposition",
    "ETag",
    "Inference-Header-Content-Length",
    "Link",
    "Location",
    "Preference-Applied",
    "RateLimit",
    "RateLimit-Policy",
    "Repr-Digest",
    "Retry-After",
    "Server-Timing",
    "Quietframe-Backend",
    "Quietframe-Code",
    "Quietframe-Input-Noise-Estimate",
    "Quietframe-Input-PSNR",
    "Quietframe-Job",
    "Quietframe-Model",
    "Quietframe-Output-Noise-Estimate",
    "Quietframe-PSNR",
    "Quietframe-PSNR-Estimate",
    "Quietframe-PSNR-Estimate-Error",
    "Quietframe-Precision",
    "Quietframe-SSIM",
    "Quietframe-Sigma-Estimate",
)


class Access:
    """The gate before all calls but the open ones; what runs behind it knows who calls."""

    def __init__(self, app: ASGIApp, also_open: frozenset[str] = frozenset()) -> None:
        self._app = app
        self._also_open = also_open

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "websocket":  # no call of ours is one, and none shall come in unasked
            await send({"type": "websocket.close", "code": 1008})
            return
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        right = right_for(scope["method"], scope["path"])
        if right is None or scope["path"] in self._also_open:
            await self._app(scope, receive, send)
            return
        request = Request(scope)
        gate = _services(scope).gate
        told: Visit | None = None

        async def with_standings(message: Message) -> None:
            if message["type"] == "http.response.start" and told is not None and told.standings:
                fields = rate_fields(told.standings)
                message["headers"] = [*message["headers"], *((n.encode(), v.encode()) for n, v in fields.items())]
            await send(message)

        try:
            address = request.client.host if request.client else ""
            visit = told = gate.identify(request.headers.getlist("authorization"), address)
            await gate.admit(visit, right)
        except QuietframeError as err:
            refusal = problems.respond(problem_of(err), scope["path"], _headers_of(err, request))
            await refusal(scope, receive, with_standings)
            return
        with visiting(visit):
            await self._app(scope, receive, with_standings)


def cors_options(origins: str) -> dict[str, Any]:
    """For pages of these origins; without credentials, for keys go in a header and there are no cookies."""
    return {
        "allow_origins": origins.split(","),
        "allow_methods": ["GET", "HEAD", "POST", "DELETE"],
        "allow_headers": _ALLOWED,
        "expose_headers": _EXPOSED,
    }


def rate_fields(standings: Mapping[str, Standing]) -> dict[str, str]:
    """`RateLimit` and `RateLimit-Policy` as draft-ietf-httpapi-ratelimit-headers-10 has them."""
    policies, left = [], []
    for one in standings.values():
        unit = "" if one.policy == "requests" else f';qu="{one.policy}"'
        policies.append(f'"{one.policy}";q={one.quota}{unit};w={WINDOW_S:.0f}')
        more = f";t={_more_in_s(one)}" if one.debt_s > 0 else ""
        left.append(f'"{one.policy}";r={one.remaining}{more}')
    return {"RateLimit-Policy": ", ".join(policies), "RateLimit": ", ".join(left)}


def _more_in_s(standing: Standing) -> int:
    """Until one more is to be had than now; a bucket fills all the time, so that is soon unless it is deep in debt."""
    full_but_s = WINDOW_S * (1 - (standing.remaining + 1) / standing.quota)
    return max(1, math.ceil(standing.debt_s - full_but_s))


def _headers_of(err: QuietframeError, request: Request) -> dict[str, str]:
    told = problems.headers_of(err)
    length = request.headers.get("content-length", "")
    small = length.isdigit() and int(length) <= _DRAINED_BYTES
    if request.method not in ASKING and not small and ("content-length" in request.headers or _is_chunked(request)):
        told["Connection"] = "close"  # the rest of the body stays unread
    return told


def _is_chunked(request: Request) -> bool:
    return "transfer-encoding" in request.headers


def _services(scope: Scope) -> Services:
    services = scope["app"].state.services
    assert isinstance(services, Services)
    return services
