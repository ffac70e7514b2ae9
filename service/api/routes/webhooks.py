"""What the service calls by itself, where it was asked to: for the OpenAPI page only, nothing here is served."""

from typing import Annotated

from fastapi import APIRouter, Header
from starlette.responses import Response

from service.api import openapi
from service.webhooks.event import JobEvent

router = APIRouter(tags=["webhooks"])

_DESCRIPTION = """
Sent to a job's `webhook_url` by the [Standard Webhooks](https://www.standardwebhooks.com) rules; their libraries verify
it with the secret that the operator gave you. Any 2xx within the time limit is a receipt, 410 asks for no more tries of
this message, and whatever else comes of it is tried again for about a day. It may arrive more than once, always with
the same `webhook-id`.
"""
_EXAMPLES = {
    "succeeded": openapi.SUCCEEDED,
    "failed": openapi.FAILED,
    "cancelled": openapi.CANCELLED,
}


def job_over(
    _event: JobEvent,
    _id: Annotated[str, Header(alias="webhook-id", description="Of the message: the same at every try.")],
    _timestamp: Annotated[
        int, Header(alias="webhook-timestamp", description="Seconds since 1970, when this try was made.")
    ],
    _signature: Annotated[
        str, Header(alias="webhook-signature", description="`v1,` and base64, for each secret; blanks between.")
    ],
) -> Response:
    """Only its signature is read."""
    return Response(status_code=204)


for _end, _example in _EXAMPLES.items():
    _news = {"type": f"job.{_end}", "timestamp": _example["finished_at"], "data": _example}
    router.add_api_route(
        f"job.{_end}",
        job_over,
        methods=["POST"],
        operation_id=f"job_{_end}",
        summary=f"A job {'was cancelled' if _end == 'cancelled' else _end}",
        description=_DESCRIPTION,
        response_class=Response,
        status_code=204,
        responses={204: {"description": "It arrived."}},
        openapi_extra={"requestBody": {"content": {"application/json": {"example": _news}}}},
    )
