"""Which gRPC status an error gets: the same problems as over HTTP, with the same stable codes."""

import math
from collections.abc import Mapping
from typing import Any, NoReturn

import grpc
from google.protobuf.any_pb2 import Any as Packed
from google.protobuf.duration_pb2 import Duration
from google.rpc.error_details_pb2 import ErrorInfo, RetryInfo
from google.rpc.status_pb2 import Status

from service.errors import TryLater, problem_of

CODE_KEY = "quietframe-code"
_DOMAIN = "quietframe"
_DETAIL_CHARS = 1000  # details travel in a header, and headers of more than 8 KiB are dropped with the answer
_RETRY_S = 5  # as over HTTP

_STATUSES: dict[str, grpc.StatusCode] = {
    "too_large": grpc.StatusCode.INVALID_ARGUMENT,  # RESOURCE_EXHAUSTED would ask the caller to try again
    "unknown_format": grpc.StatusCode.INVALID_ARGUMENT,
    "bad_input": grpc.StatusCode.INVALID_ARGUMENT,
    "unknown_model": grpc.StatusCode.NOT_FOUND,
    "idempotency_conflict": grpc.StatusCode.ALREADY_EXISTS,
    "job_not_found": grpc.StatusCode.NOT_FOUND,
    "job_not_ready": grpc.StatusCode.FAILED_PRECONDITION,
    "result_gone": grpc.StatusCode.NOT_FOUND,
    "job_cancelled": grpc.StatusCode.ABORTED,  # CANCELLED is what a caller who left is told
    "unauthenticated": grpc.StatusCode.UNAUTHENTICATED,
    "scope_missing": grpc.StatusCode.PERMISSION_DENIED,
    "rate_limited": grpc.StatusCode.RESOURCE_EXHAUSTED,
    "queue_full": grpc.StatusCode.UNAVAILABLE,
    "streams_full": grpc.StatusCode.UNAVAILABLE,
    "stream_broken": grpc.StatusCode.UNAVAILABLE,
    "stream_idle": grpc.StatusCode.DEADLINE_EXCEEDED,
    "not_ready": grpc.StatusCode.UNAVAILABLE,
    "needs_extra": grpc.StatusCode.FAILED_PRECONDITION,
    "range_not_satisfiable": grpc.StatusCode.OUT_OF_RANGE,
}


async def refuse(context: Any, err: Exception) -> NoReturn:
    """End a call with what an error means.

    Raises:
        grpc.aio.AbortError: always; it is how a call ends early.
    """
    retry_after_s = err.retry_after_s if isinstance(err, TryLater) else None
    await refuse_with(context, problem_of(err), retry_after_s=retry_after_s)


async def refuse_with(context: Any, document: Mapping[str, Any], *, retry_after_s: float | None = None) -> NoReturn:
    """The same for a problem document."""
    await context.abort(*ending_of(document, retry_after_s=retry_after_s))
    raise AssertionError("abort always raises")


def ending_of(
    document: Mapping[str, Any], *, retry_after_s: float | None = None
) -> tuple[grpc.StatusCode, str, tuple[tuple[str, str | bytes], ...]]:
    """How a call ends with a problem: status, words, trailing metadata."""
    code, detail = str(document["code"]), str(document["detail"])[:_DETAIL_CHARS]
    status = status_of(document)
    details = [ErrorInfo(reason=code, domain=_DOMAIN)]
    if status in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.RESOURCE_EXHAUSTED):
        details.append(RetryInfo(retry_delay=Duration(seconds=math.ceil(retry_after_s or _RETRY_S))))
    told = Status(code=status.value[0], message=detail, details=[_packed(one) for one in details])
    return status, detail, ((CODE_KEY, code), ("grpc-status-details-bin", told.SerializeToString()))


def status_of(document: Mapping[str, Any]) -> grpc.StatusCode:
    """A problem without a line of its own is the service's own fault."""
    return _STATUSES.get(str(document["code"]), grpc.StatusCode.INTERNAL)


def _packed(message: Any) -> Packed:
    packed = Packed()
    packed.Pack(message)
    return packed
