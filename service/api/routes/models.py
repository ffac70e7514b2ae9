"""Which denoisers there are, how good each is, and what runs it at this moment."""

import asyncio
from functools import cache
from typing import Annotated

from fastapi import APIRouter, Path, Request
from pydantic import BaseModel, Field
from starlette.responses import Response

from models.cards import card_of
from models.catalogue import AUTO, CATALOGUE, DenoiserSpec, Kind
from models.errors import UnknownDenoiser
from models.own import Library
from service.api import openapi, problems
from service.api.services import Services, UseServices
from service.broker.card import WorkerCard
from service.errors import NotReady, problem_of

router = APIRouter(tags=["models"])


class ReadyOn(BaseModel):
    """One way in which a model is run now."""

    backend: str = Field(description="What runs it.")
    precision: str = Field(description="What its inner layers compute in.")
    workers: int = Field(description="How many workers run it so.")


class TrainingRun(BaseModel):
    """The run that made one of a model's weights files."""

    weights: str = Field(description="The weights file, without its ending.")
    sha256: str = Field(description="Hash of that file, hexadecimal.")
    recipe: str = Field(description="The recipe that was followed.")
    data: str = Field(description="What it learned from.")
    minutes: float = Field(description="How long it took.")
    steps: int = Field(description="Optimizer steps.")
    seed: int = Field(description="Seed of all that was random.")
    device: str = Field(description="What it ran on.")
    runs: int = Field(description="Runs that minutes and steps are over, each going on from the one before.")


class MeasuredCard(BaseModel):
    """What was measured of a model, and how its weights came to be."""

    training: list[TrainingRun] = Field(description="A run for each weights file.")
    quality: dict[str, dict[str, dict[str, float]]] = Field(
        description="Test set, then noise (level on the 8-bit scale, `real`, or the name of another), then figure: "
        "PSNR in dB, SSIM, Average Deviation, pictures, milliseconds per megapixel."
    )
    limits: str = Field(description="What it does not do.")


class ModelDocument(BaseModel):
    """All that is known of a denoiser."""

    name: str = Field(description="What to send as `model`.")
    kind: Kind = Field(description="A model for images does videos too, frame by frame; one for videos does no images.")
    title: str = Field(description="What it is.")
    source: str = Field(description="The paper it comes from.")
    adapted_from: str | None = Field(
        description="The model that it was adapted from, to footage of your own; null of those that come with the "
        "service. A worker loads an adapted model with its first job."
    )
    auto_for: list[Kind] = Field(description="For which inputs `auto` takes it.")
    blind: bool = Field(description="Whether it needs no noise level.")
    trained_sigma: tuple[float, float] = Field(description="Noise levels it was trained on, 8-bit scale.")
    frames: int = Field(description="Neighbouring frames, itself included, that a frame is restored from.")
    parameters: int = Field(description="Weights in it.")
    macs_per_pixel: int = Field(description="Multiply-accumulates for one pixel.")
    card: MeasuredCard | None = Field(description="What was measured of it; null where nothing was yet.")
    ready: list[ReadyOn] | None = Field(description="What runs it now; null while the broker is away.")


class ModelList(BaseModel):
    models: list[ModelDocument] = Field(description="The catalogue, then the models adapted to your own footage.")


@router.get(
    "/models",
    summary="List the denoisers",
    description="```\ncurl http://localhost:8000/models\n```",
    response_model=ModelList,
)
async def list_models(services: UseServices) -> ModelList:
    workers = await _workers(services)
    return ModelList(models=await asyncio.to_thread(_documents, services.intake.library, workers))


@router.get(
    "/models/{name}",
    summary="Look at a denoiser",
    description="```\ncurl http://localhost:8000/models/dncnn\n```",
    response_model=ModelDocument,
    responses=openapi.problems(404),
)
async def get_model(
    request: Request,
    name: Annotated[str, Path(description="The model's name.", examples=["dncnn"])],
    services: UseServices,
) -> ModelDocument | Response:
    library = services.intake.library
    workers = await _workers(services)
    try:
        return await asyncio.to_thread(lambda: _document_of(library.find(name), library, workers))
    except UnknownDenoiser as err:
        # 422 where it stands in a form; as a path it is a thing that does not exist.
        return problems.respond({**problem_of(err), "status": 404}, request.url.path)


async def _workers(services: Services) -> list[WorkerCard] | None:
    try:
        return await services.queue.workers()
    except NotReady:
        return None


def _documents(library: Library, workers: list[WorkerCard] | None) -> list[ModelDocument]:
    return [_document_of(spec, library, workers) for spec in library.specs()]


def _document_of(spec: DenoiserSpec, library: Library, workers: list[WorkerCard] | None) -> ModelDocument:
    low, high = spec.trained_sigma
    return ModelDocument(
        name=spec.name,
        kind=spec.kind,
        title=spec.title,
        source=spec.source,
        adapted_from=spec.adapted_from,
        auto_for=[kind for kind, name in AUTO.items() if name == spec.name],
        blind=spec.sigma is None,
        trained_sigma=(round(low * 255, 3), round(high * 255, 3)),
        frames=spec.frames,
        parameters=spec.parameters,
        macs_per_pixel=spec.macs_per_pixel,
        card=_card_of(spec.name) if spec.name in CATALOGUE else _own_card_of(spec.name, library),
        ready=None if workers is None else _ready_on(spec.name, workers),
    )


@cache
def _card_of(name: str) -> MeasuredCard | None:
    """Read once: cards come with the release, and a file has no place in the event loop of every request."""
    try:
        return MeasuredCard.model_validate(card_of(name).as_dict())
    except UnknownDenoiser:
        return None


def _own_card_of(name: str, library: Library) -> MeasuredCard | None:
    try:
        own = library.own(name)
    except UnknownDenoiser:  # it was damaged in this moment
        return None
    return MeasuredCard.model_validate(own.card().as_dict()) if own else None


def _ready_on(name: str, workers: list[WorkerCard]) -> list[ReadyOn]:
    counted: dict[tuple[str, str], int] = {}
    for worker in workers:
        if worker.ready and (how := worker.models.get(name)):
            counted[how.backend, how.precision] = counted.get((how.backend, how.precision), 0) + 1
    return [
        ReadyOn(backend=backend, precision=precision, workers=count)
        for (backend, precision), count in sorted(counted.items())
    ]
