"""What is asked and answered, free of the wire it came over."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

IMAGE, SIGMA, RESTORED = "image", "sigma", "restored"
VERSION = "1"  # of every model: an adapted one has a name of its own

Parameter = bool | int | float | str


@dataclass(frozen=True, slots=True, kw_only=True)
class Tensor:
    name: str
    datatype: str
    shape: tuple[int, ...]
    raw: bytes | None = None  # row-major, little-endian; elements of BYTES have their length before them
    values: Sequence[Any] | None = None  # the same in numbers, or in bytes, where it is not raw


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    model: str
    version: str = ""
    id: str = ""
    inputs: tuple[Tensor, ...]
    outputs: tuple[str, ...] = ()  # none named: all that there are, which is one
    parameters: dict[str, Parameter] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Response:
    model: str
    version: str
    id: str
    output: Tensor  # raw
    parameters: dict[str, Parameter]


@dataclass(frozen=True, slots=True)
class TensorMetadata:
    name: str
    datatype: str
    shape: tuple[int, ...]  # -1 where any size goes


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelMetadata:
    name: str
    versions: tuple[str, ...] = (VERSION,)
    platform: str = "quietframe"
    inputs: tuple[TensorMetadata, ...]
    outputs: tuple[TensorMetadata, ...]
