"""What probes and scrapers ask: is the process alive, can it take work, how does it do."""

from typing import Annotated, Any

from fastapi import APIRouter, Header, Request
from pydantic import BaseModel, Field
from starlette.responses import Response

from service.api import headers, openapi, page
from service.api.services import Services, UseServices
from service.broker.card import WorkerCard
from service.broker.keys import COUNTERS
from service.errors import NotReady
from service.metrics import QueueFigures

router = APIRouter(tags=["service"])  # all that is always with the calls
probes = APIRouter(tags=["service"])
figures = APIRouter(tags=["service"])  # on the operators' port, where there is one


class Alive(BaseModel):
    status: str = Field("alive", description="Always `alive`: that there is an answer is the answer.")


class Ready(BaseModel):
    status: str = Field("ready", description="Always `ready`; what is not is answered 503.")
    workers: list[WorkerCard] = Field(description="Workers that take jobs, each with the models it has loaded.")


class Index(BaseModel):
    service: str = Field("quietframe", description="Who answers.")
    docs: str = Field("/docs", description="The page on which every call can be tried.")
    openapi: str = Field("/openapi.json", description="The same for programs.")
    denoise: str = Field("/denoise/image", description="Where to send an image.")
    models: str = Field("/models", description="Which denoisers there are.")
    inference: str = Field("/v2", description="The same models by the Open Inference Protocol.")
    grpc_port: int | None = Field(None, description="Where gRPC listens, on the same host.")


@router.get(
    "/",
    summary="Where to go from here",
    description="For programs as JSON; a browser, which asks for HTML, gets a page to denoise on.",
    response_model=Index,
    responses={200: {"content": {"text/html": {"schema": {"type": "string"}}}}},
)
async def index(
    services: UseServices,
    response: Response,
    accept: Annotated[str | None, Header(description="With `text/html` in it, the page.")] = None,
) -> Any:
    if headers.wants_page(accept):
        return page.home()
    response.headers["Vary"] = "Accept"
    return Index(grpc_port=services.grpc_port)


@probes.get(
    "/livez",
    summary="Is the process alive?",
    description="Asks the event loop only. A broker that is away is no reason to restart this process.",
    response_model=Alive,
)
async def livez() -> Alive:
    return Alive()


@probes.get(
    "/readyz",
    summary="Can it take work?",
    description="Ready means: the broker answers and a worker is up. What is missing is in the problem's `detail`.",
    response_model=Ready,
    responses=openapi.problems(503),
)
async def readyz(services: UseServices) -> Ready:
    return Ready(workers=await services.ready_workers())


@figures.get(
    "/metrics",
    summary="Figures for Prometheus",
    description="OpenMetrics text. While the broker is away the queue's figures are absent, and `denoise_broker_up` "
    "is 0.",
    response_class=Response,
    responses={
        200: {"content": {"application/openmetrics-text": {"schema": {"type": "string"}}}},
    },
)
async def metrics(request: Request, services: UseServices) -> Response:
    body, media_type = services.metrics.exposition(await _figures(services), request.headers.get("accept"))
    return Response(body, headers={"Content-Type": media_type})


async def _figures(services: Services) -> QueueFigures:
    try:
        lanes = await services.queue.depths()
        counters = await services.queue.counters()
        workers = await services.queue.workers()
        backlog_s = {lane: await services.queue.seconds_to_clear(lane) for lane in lanes}
    except NotReady:
        return QueueFigures()
    return QueueFigures(
        up=True,
        lanes={str(lane): depth for lane, depth in lanes.items()},
        counters={(name, lane): value for key, value in counters.items() for name, _, lane in [key.partition(":")]},
        about=COUNTERS,
        workers_ready=sum(card.ready for card in workers),
        slots={lane: sum(card.slots.get(lane, 0) for card in workers if card.ready) for lane in lanes},
        backlog_s={lane: seconds for lane, seconds in backlog_s.items() if seconds is not None},
        most_queued=services.settings.max_queued_jobs,
    )
