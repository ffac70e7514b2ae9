"""Which models there are in the protocol's eyes: those that restore one image, and `auto`."""

import asyncio
from importlib.metadata import PackageNotFoundError, version

from models.catalogue import DenoiserSpec
from models.errors import UnknownDenoiser
from service.oip.messages import IMAGE, RESTORED, SIGMA, VERSION, ModelMetadata, TensorMetadata
from service.services import Services

NAME = "quietframe"
EXTENSIONS = ("binary_tensor_data", "model_repository")
_ANY_PICTURES = (-1, -1, -1, 3)


def server_version() -> str:
    try:
        return version("quietframe")
    except PackageNotFoundError:
        return "0"


async def find(services: Services, name: str, of_version: str = "") -> DenoiserSpec:
    """
    Raises:
        UnknownDenoiser: there is no such model or version, or it takes no single image.
    """
    if of_version not in ("", VERSION):
        raise UnknownDenoiser(f"model {name!r} has version {VERSION} only, not {of_version!r}")
    return await asyncio.to_thread(services.intake.library.find, name, "image")


async def metadata_of(services: Services, name: str, of_version: str = "") -> ModelMetadata:
    """What goes in and what comes out; of the datatypes that are taken the one that costs least is named."""
    await find(services, name, of_version)
    return ModelMetadata(
        name=name,
        inputs=(TensorMetadata(IMAGE, "UINT8", _ANY_PICTURES), TensorMetadata(SIGMA, "FP32", (-1,))),
        outputs=(TensorMetadata(RESTORED, "UINT8", _ANY_PICTURES),),
    )


async def index(services: Services, *, loaded_only: bool = False) -> list[tuple[str, str]]:
    """Names and states: READY where a worker has it loaded, UNAVAILABLE where one will load it with its first job."""
    loaded = {name for card in await services.queue.workers() if card.ready for name in card.models}
    specs = await asyncio.to_thread(services.intake.library.specs)
    states = [(one.name, "READY" if one.name in loaded else "UNAVAILABLE") for one in specs if one.kind == "image"]
    return [one for one in states if one[1] == "READY" or not loaded_only]
