"""The Open Inference Protocol over REST: health, metadata, and tensors as JSON or behind it as they are."""

import asyncio
import json
import re
from dataclasses import asdict
from typing import Annotated, Any

from fastapi import APIRouter, Header, Request
from pydantic import BaseModel, ConfigDict, Field, NonNegativeInt, ValidationError
from starlette.responses import Response

from service.api.line import while_there
from service.api.problems import Refused
from service.api.services import Services, UseServices
from service.errors import BadInput, FrameTooLarge
from service.oip import messages, repository
from service.oip.inference import infer
from service.oip.messages import IMAGE, VERSION, Tensor

# The protocol's own documents describe it; on our page it would stand twice.
router = APIRouter(prefix="/v2", include_in_schema=False)

LENGTH_HEADER = "Inference-Header-Content-Length"
_Scalar = bool | int | float | str
_FINDINGS = 3  # of what is wrong with a body: so many are told


class _Output(BaseModel):
    model_config = ConfigDict(strict=True)

    name: str
    parameters: dict[str, _Scalar] = {}


class _Input(_Output):
    datatype: str
    shape: Annotated[list[NonNegativeInt], Field(max_length=8)]
    data: list[Any] | None = None


class _Body(BaseModel):
    model_config = ConfigDict(strict=True)

    id: str = ""
    parameters: dict[str, _Scalar] = {}
    inputs: list[_Input]
    outputs: list[_Output] = []


@router.get("")
@router.get("/")
async def server_metadata() -> dict[str, Any]:
    return {"name": repository.NAME, "version": repository.server_version(), "extensions": repository.EXTENSIONS}


@router.get("/health/live")
async def live() -> dict[str, bool]:
    return {"live": True}


@router.get("/health/ready")
async def ready(services: UseServices) -> dict[str, bool]:
    await services.ready_workers()
    return {"ready": True}


@router.post("/repository/index")
async def repository_index(request: Request, services: UseServices) -> list[dict[str, str]]:
    body = await _read(request, services)
    try:
        loaded_only = bool(json.loads(body or b"{}").get("ready", False))
    except (ValueError, AttributeError):
        raise Refused(400, "the body is not a JSON object") from None
    listed = await repository.index(services, loaded_only=loaded_only)
    return [{"name": name, "version": VERSION, "state": state, "reason": ""} for name, state in listed]


@router.get("/models/{name}")
@router.get("/models/{name}/versions/{version}")
async def model_metadata(services: UseServices, name: str, version: str = "") -> dict[str, Any]:
    return asdict(await repository.metadata_of(services, name, version))


@router.get("/models/{name}/ready")
@router.get("/models/{name}/versions/{version}/ready")
async def model_ready(services: UseServices, name: str, version: str = "") -> dict[str, Any]:
    await repository.find(services, name, version)
    await services.ready_workers()
    return {"name": name, "ready": True}


@router.post("/models/{name}/infer")
@router.post("/models/{name}/versions/{version}/infer")
async def model_infer(
    request: Request,
    services: UseServices,
    name: str,
    version: str = "",
    inference_header_content_length: Annotated[str | None, Header()] = None,
    content_encoding: Annotated[str, Header()] = "identity",
) -> Response:
    if content_encoding != "identity":
        raise Refused(415, f"the body is encoded as {content_encoding[:40]}; send it as it is")
    content = await _read(request, services)
    body, tensors = await asyncio.to_thread(_parsed, content, inference_header_content_length)
    del content
    asked = messages.Request(
        model=name,
        version=version,
        id=body.id,
        inputs=tensors,
        outputs=tuple(output.name for output in body.outputs),
        parameters=body.parameters,
    )
    answer = await while_there(request, infer(services, asked))
    return await asyncio.to_thread(_rendered, answer, binary=_wants_binary(body))


async def _read(request: Request, services: Services) -> bytes:
    most = services.settings.max_message_bytes
    gathered = bytearray()
    async for piece in request.stream():
        gathered += piece
        if len(gathered) > most:
            raise FrameTooLarge(f"the body has {len(gathered)} bytes or more; at most {most} are taken under /v2")
    return bytes(gathered)


def _parsed(content: bytes, length: str | None) -> tuple[_Body, tuple[Tensor, ...]]:
    """The JSON that a body begins with, and its tensors, with those bytes behind it that are theirs."""
    if length is not None and not re.fullmatch(r"\d{1,10}", length):
        raise Refused(400, f"{LENGTH_HEADER} is {length[:40]!r}; it is a number of bytes")
    end = len(content) if length is None else int(length)
    if end > len(content):
        raise Refused(400, f"{LENGTH_HEADER} is {end}; the body has {len(content)} bytes")
    if end == 0 and length is not None:  # no JSON at all: the body is the file itself
        file = Tensor(name=IMAGE, datatype="BYTES", shape=(1,), values=[content])
        return _Body(inputs=[], parameters={"binary_data_output": True}), (file,)
    try:
        body = _Body.model_validate_json(content[:end])
    except ValidationError as err:
        findings = [f"{'.'.join(map(str, one['loc']))}: {one['msg']}" for one in err.errors()[:_FINDINGS]]
        raise Refused(400, f"the request is not as the protocol has it: {'; '.join(findings)}") from None
    tensors, at = [], end
    for told in body.inputs:
        raw, size = None, told.parameters.pop("binary_data_size", None)
        if size is not None:
            if isinstance(size, bool) or not isinstance(size, int) or size < 0 or told.data is not None:
                raise BadInput(f"{told.name}: binary_data_size is a number of bytes, and stands in place of data")
            raw, at = content[at : at + size], at + size
        elif told.data is None:
            raise BadInput(f"{told.name} has neither data nor binary_data_size")
        tensors.append(
            Tensor(name=told.name, datatype=told.datatype, shape=tuple(told.shape), raw=raw, values=told.data)
        )
    if at != len(content):
        raise BadInput(f"the inputs take {at - end} bytes behind the JSON; {len(content) - end} came")
    return body, tuple(tensors)


def _wants_binary(body: _Body) -> bool:
    everywhere = body.parameters.get("binary_data_output", False)
    here = [output.parameters.get("binary_data", everywhere) for output in body.outputs]
    return bool(here[0] if here else everywhere)


def _rendered(answer: messages.Response, *, binary: bool) -> Response:
    from service.oip.tensors import values_as_json

    output = answer.output
    told: dict[str, Any] = {"name": output.name, "datatype": output.datatype, "shape": output.shape}
    behind = b""
    if binary or output.datatype == "FP16":  # which has no form in JSON
        behind = output.raw or b""
        told["parameters"] = {"binary_data_size": len(behind)}
    else:
        told["data"] = values_as_json(output)
    document = {
        "model_name": answer.model,
        "model_version": answer.version,
        "id": answer.id,
        "parameters": answer.parameters,
        "outputs": [told],
    }
    head = json.dumps(document, separators=(",", ":")).encode()
    if not behind:
        return Response(head, media_type="application/json")
    return Response(head + behind, media_type="application/octet-stream", headers={LENGTH_HEADER: str(len(head))})
