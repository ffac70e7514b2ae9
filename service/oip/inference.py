"""One inference: its pictures go through the queue to a worker as any image does."""

import asyncio
import io
import math
import re

from service.asking import answer_of
from service.errors import BadInput
from service.intake import Asked
from service.job import Options, Outcome, Record
from service.oip import repository
from service.oip.messages import IMAGE, RESTORED, SIGMA, VERSION, Parameter, Request, Response, Tensor
from service.services import Services

_OURS = {"sigma", "strength", "ensemble", "format", "quality"}
_DECIMAL = re.compile(r"[0-9]{1,20}(\.[0-9]{1,20})?")
_LARGEST = 1 << 63  # of a parameter: JSON knows no bound, and what is larger is no float
_OF_THE_PROTOCOL = {
    *("timeout", "priority", "binary_data_output", "sequence_id", "sequence_start", "sequence_end"),
    "triton_enable_empty_final_response",
}


async def infer(services: Services, request: Request, *, patience_s: float | None = None) -> Response:
    """Restore every picture of a request; a caller who leaves, which cancels this, cancels them.

    Raises:
        BadInput, UnknownDenoiser: it is not as it must be.
        And as `answer_of`.
    """
    # Numpy is loaded with the first tensor: a process that is asked for none stays smaller.
    from service.oip import tensors

    await repository.find(services, request.model, request.version)
    image, sigma = _inputs_of(request)
    files, layout = await asyncio.to_thread(tensors.files_of, image)
    options = _options_of(request.parameters, encoded=layout.is_encoded)
    levels = [options.sigma] * len(files)
    if sigma is not None:
        if options.sigma is not None:
            raise BadInput("sigma is given twice, as a tensor and as a parameter")
        levels = list(tensors.levels_of(sigma, len(files)))
    asked = [
        Asked(
            kind="image",
            content=io.BytesIO(file),
            name=RESTORED,
            options=options.model_copy(update={"sigma": level}),
            model=request.model,
            waited_for=True,
        )
        for file, level in zip(files, levels, strict=True)
    ]
    del files
    answers = await _all_or_none(services, asked, _patience_of(request.parameters, patience_s))
    results = await asyncio.to_thread(_read, services, [outcome for _, outcome in answers])
    output = await asyncio.to_thread(tensors.tensor_of, results, layout)
    return Response(model=request.model, version=VERSION, id=request.id, output=output, parameters=_told_of(answers))


def _inputs_of(request: Request) -> tuple[Tensor, Tensor | None]:
    found = {tensor.name: tensor for tensor in request.inputs}
    unknown = sorted(set(found) - {IMAGE, SIGMA})
    if unknown or len(found) < len(request.inputs) or IMAGE not in found:
        names = ", ".join(tensor.name[:40] for tensor in request.inputs) or "none"
        raise BadInput(f"the inputs are {names}; there must be {IMAGE}, and there may be {SIGMA}")
    if set(request.outputs) - {RESTORED}:
        raise BadInput(f"the outputs asked for are {', '.join(request.outputs)[:100]}; there is {RESTORED}")
    return found[IMAGE], found.get(SIGMA)


def _options_of(parameters: dict[str, Parameter], *, encoded: bool) -> Options:
    if unknown := sorted(set(parameters) - _OURS - _OF_THE_PROTOCOL):
        raise BadInput(f"parameter {unknown[0][:40]!r} is not known; known are {', '.join(sorted(_OURS))}")
    if not encoded:
        for name in ("format", "quality"):
            if name in parameters:
                raise BadInput(f"{name} is for files, which go as BYTES; pixels come back as they went in")
    said = {name: parameters[name] for name in _OURS if name in parameters}
    for name in ("sigma", "strength", "ensemble", "quality"):
        value = said.get(name, 0)
        if isinstance(value, str) and _DECIMAL.fullmatch(value):
            # KServe's messages hold no fractions: from its gRPC client they come as text.
            value = said[name] = float(value)
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not abs(value) < _LARGEST:
            raise BadInput(f"parameter {name} is {str(value)[:40]!r}; it is a number")
    for name in ("ensemble", "quality"):
        if int(said.get(name, 0)) != said.get(name, 0):
            raise BadInput(f"{name} is {said[name]}; it is a whole number")
    if not isinstance(said.get("format", ""), str):
        raise BadInput("parameter format is the name of one")
    return Options.model_validate({"format": "same", **said} if encoded else {**said, "format": "tiff"})


def _patience_of(parameters: dict[str, Parameter], patience_s: float | None) -> float | None:
    """The protocol's `timeout` is in microseconds."""
    timeout = parameters.get("timeout", 0)
    if isinstance(timeout, bool) or not isinstance(timeout, int) or not 0 <= timeout < _LARGEST:
        raise BadInput(f"parameter timeout is {str(timeout)[:40]!r}; it is a whole number of microseconds")
    told_s = timeout / 1e6 if timeout else math.inf
    bound_s = min(told_s, math.inf if patience_s is None else patience_s)
    return None if math.isinf(bound_s) else bound_s


async def _all_or_none(
    services: Services, asked: list[Asked], patience_s: float | None
) -> list[tuple[Record, Outcome]]:
    jobs = [asyncio.ensure_future(answer_of(services, one, patience_s=patience_s)) for one in asked]
    try:
        return await asyncio.gather(*jobs)
    finally:
        for job in jobs:
            job.cancel()  # of one that failed, the others; does nothing to those that are done


def _read(services: Services, outcomes: list[Outcome]) -> list[bytes]:
    results = []
    for outcome in outcomes:
        with services.store.open(outcome.result.blob) as file:
            results.append(file.read())
    return results


def _told_of(answers: list[tuple[Record, Outcome]]) -> dict[str, Parameter]:
    outcome = answers[0][1]
    told: dict[str, Parameter] = {
        "jobs": ",".join(record.job.id for record, _ in answers),
        "model": answers[0][0].job.model,
        "backend": outcome.backend,
        "precision": outcome.precision,
    }
    if len(answers) == 1 and outcome.metrics.sigma_estimate is not None:
        told["sigma_estimate"] = outcome.metrics.sigma_estimate
    return told
