"""`inference.GRPCInferenceService`: the Open Inference Protocol in messages."""

from collections.abc import Mapping
from typing import Any

from models.errors import QuietframeError
from service.errors import BadInput
from service.oip import repository
from service.oip.inference import infer
from service.oip.messages import VERSION, Parameter, Request, Tensor
from service.rpc.generated import grpc_predict_v2_pb2 as pb
from service.rpc.generated import grpc_predict_v2_pb2_grpc as wire
from service.services import Services

NAME = "inference.GRPCInferenceService"
_CONTENTS = {"UINT8": "uint_contents", "FP32": "fp32_contents", "FP64": "fp64_contents", "BYTES": "bytes_contents"}


class InferenceService(wire.GRPCInferenceServiceServicer):
    def __init__(self, services: Services) -> None:
        self._services = services

    async def ServerLive(self, request: pb.ServerLiveRequest, context: Any) -> pb.ServerLiveResponse:
        return pb.ServerLiveResponse(live=True)

    async def ServerReady(self, request: pb.ServerReadyRequest, context: Any) -> pb.ServerReadyResponse:
        return pb.ServerReadyResponse(ready=await self._is_ready())

    async def ModelReady(self, request: pb.ModelReadyRequest, context: Any) -> pb.ModelReadyResponse:
        await repository.find(self._services, request.name, request.version)
        return pb.ModelReadyResponse(ready=await self._is_ready())

    async def ServerMetadata(self, request: pb.ServerMetadataRequest, context: Any) -> pb.ServerMetadataResponse:
        return pb.ServerMetadataResponse(
            name=repository.NAME, version=repository.server_version(), extensions=repository.EXTENSIONS
        )

    async def ModelMetadata(self, request: pb.ModelMetadataRequest, context: Any) -> pb.ModelMetadataResponse:
        told = await repository.metadata_of(self._services, request.name, request.version)
        kind = pb.ModelMetadataResponse.TensorMetadata
        return pb.ModelMetadataResponse(
            name=told.name,
            versions=told.versions,
            platform=told.platform,
            inputs=[kind(name=one.name, datatype=one.datatype, shape=one.shape) for one in told.inputs],
            outputs=[kind(name=one.name, datatype=one.datatype, shape=one.shape) for one in told.outputs],
        )

    async def RepositoryIndex(self, request: pb.RepositoryIndexRequest, context: Any) -> pb.RepositoryIndexResponse:
        listed = await repository.index(self._services, loaded_only=request.ready)
        kind = pb.RepositoryIndexResponse.ModelIndex
        return pb.RepositoryIndexResponse(
            models=[kind(name=name, version=VERSION, state=state) for name, state in listed]
        )

    async def ModelInfer(self, request: pb.ModelInferRequest, context: Any) -> pb.ModelInferResponse:
        asked = _request_of(request)
        request.Clear()  # the pixels are held once, not twice, while a worker has them
        answer = await infer(self._services, asked, patience_s=context.time_remaining())
        output = answer.output
        kind = pb.ModelInferResponse.InferOutputTensor
        return pb.ModelInferResponse(
            model_name=answer.model,
            model_version=answer.version,
            id=answer.id,
            parameters={name: _parameter_of(value) for name, value in answer.parameters.items()},
            outputs=[kind(name=output.name, datatype=output.datatype, shape=output.shape)],
            raw_output_contents=[output.raw or b""],
        )

    async def _is_ready(self) -> bool:
        try:
            await self._services.ready_workers()
        except QuietframeError:
            return False
        return True


def _request_of(request: pb.ModelInferRequest) -> Request:
    raw = request.raw_input_contents
    if raw and (len(raw) != len(request.inputs) or any(one.HasField("contents") for one in request.inputs)):
        raise BadInput("raw_input_contents must hold one entry for each input, and no input has contents beside it")
    return Request(
        model=request.model_name,
        version=request.model_version,
        id=request.id,
        inputs=tuple(
            Tensor(
                name=one.name,
                datatype=one.datatype,
                shape=_shape_of(one),
                raw=raw[at] if raw else None,
                values=None if raw else _values_of(one),
            )
            for at, one in enumerate(request.inputs)
        ),
        outputs=tuple(one.name for one in request.outputs),
        parameters=_parameters_of(request.parameters),
    )


def _shape_of(tensor: pb.ModelInferRequest.InferInputTensor) -> tuple[int, ...]:
    if any(side < 0 for side in tensor.shape) or len(tensor.shape) > 8:
        raise BadInput(f"{tensor.name} has shape {list(tensor.shape)[:8]}; it has at most 8 sides, none below 0")
    return tuple(tensor.shape)


def _values_of(tensor: pb.ModelInferRequest.InferInputTensor) -> list[Any]:
    field = _CONTENTS.get(tensor.datatype)
    if field is None:
        raise BadInput(f"{tensor.name} is {tensor.datatype[:20]}; outside raw_input_contents go {', '.join(_CONTENTS)}")
    return list(getattr(tensor.contents, field))


def _parameters_of(parameters: Mapping[str, pb.InferParameter]) -> dict[str, Parameter]:
    told = {}
    for name, value in parameters.items():
        which = value.WhichOneof("parameter_choice")
        if which is not None:
            told[name] = getattr(value, which)
    return told


def _parameter_of(value: Parameter) -> pb.InferParameter:
    if isinstance(value, bool):
        return pb.InferParameter(bool_param=value)
    if isinstance(value, int):
        return pb.InferParameter(int64_param=value)
    if isinstance(value, float):
        return pb.InferParameter(double_param=value)
    return pb.InferParameter(string_param=value)
