"""How an upload is read: small fields into memory, files into the spool on the data disk, never into /tmp."""

import asyncio
import logging
import re
import tempfile
from collections.abc import AsyncIterator
from contextlib import ExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, TypeVar
from urllib.parse import unquote_to_bytes

from fastapi import Request
from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, ValidationError, field_validator
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from service.api.problems import Refused, fields_refused
from service.errors import NotReady
from service.job import ENSEMBLES, SCANS, Options
from service.media.formats import CODECS, IMAGE_FORMATS, VIDEO_FORMATS

log = logging.getLogger(__name__)

FILES = ("file", "reference")
_MAX_FIELD_BYTES = 1024  # the longest honest value is a model's name
_MAX_FIELDS = 16
# RFC 5987: charset'language'percent-encoded. RFC 7578 forbids it in forms, so the parser drops it; clients send it.
_EXTENDED_NAME = re.compile(rb";\s*filename\*\s*=\s*(?:([\w.-]*)'[^';]*')?([^;\s]*)", re.IGNORECASE)
_FEED_BYTES = 1 << 20  # how much is gathered before a thread parses and writes it: a hop costs tens of microseconds


_FormT = TypeVar("_FormT", bound="Fields")


class Fields(BaseModel):
    """The fields beside the files, whatever is denoised. What value is too much is the intake's to say."""

    model_config = ConfigDict(extra="forbid")

    model: str = Field("auto", max_length=100, description="A name from `GET /models`; `auto` takes the best one.")
    sigma: FiniteFloat | None = Field(
        None,
        description="Noise level on the 8-bit scale, as papers print it (25 means 25/255); left out or `auto`, the "
        "denoiser finds out by itself, or is told what is measured. At most what the model was trained on.",
        examples=[25],
        json_schema_extra={"anyOf": [{"type": "number"}, {"const": "auto"}, {"type": "null"}]},
    )
    strength: FiniteFloat = Field(
        1.0, description="Share of the noise that is taken out.", json_schema_extra={"minimum": 0, "maximum": 1}
    )
    ensemble: int = Field(
        1,
        description="Times that it is restored, mirrored each time in another way; the result is their mean. Four gain "
        "about 0.1 dB, and take four times as long.",
        json_schema_extra={"enum": list(ENSEMBLES)},
    )
    estimate: bool = Field(
        False,
        description="Estimate the PSNR though there is no reference: the model is run twice more over at most 0.15 "
        "megapixel of an image; of a video more is looked at than the few places that are looked at anyway.",
    )
    side_by_side: bool = Field(
        False,
        description="A result to compare by: its left half is left as it was, its right half restored, a white line "
        "between them. Metrics are those of the whole.",
    )

    @field_validator("sigma", mode="before")
    @classmethod
    def _auto(cls, value: Any) -> Any:
        return None if value == "auto" else value

    @field_validator("estimate", "side_by_side", mode="before")
    @classmethod
    def _not_ticked(cls, value: Any) -> Any:
        return False if value == "" else value

    @field_validator("ensemble", mode="before")
    @classmethod
    def _not_chosen(cls, value: Any) -> Any:
        return 1 if value == "" else value

    @field_validator("scan", mode="before", check_fields=False)
    @classmethod
    def _not_told(cls, value: Any) -> Any:
        return "auto" if value == "" else value

    @field_validator("sigma", "quality", "codec", "crf", "webhook_url", mode="before", check_fields=False)
    @classmethod
    def _left_empty(cls, value: Any) -> Any:
        """A browser sends a field that was left empty as an empty text."""
        return None if value == "" else value

    def options(self) -> Options:
        return Options(**self.model_dump(exclude={"model", "webhook_url"}))


class JobFields(Fields):
    """The fields for work that nobody waits for."""

    webhook_url: str | None = Field(
        None,
        description="An https URL that is called when the job is over, with the job's document, signed as Standard "
        "Webhooks has it; refused where the operator has not turned webhooks on. See the webhooks on this page.",
        examples=["https://hooks.example.com/denoised"],
    )


class ImageForm(Fields):
    """The fields for an image."""

    format: str = Field(
        "same",
        max_length=20,
        description="Format of the result; `same` keeps the input's.",
        json_schema_extra={"enum": list(IMAGE_FORMATS)},
    )
    quality: int | None = Field(
        None, description="Of JPEG, WebP and AVIF.", json_schema_extra={"minimum": 1, "maximum": 100}, examples=[90]
    )


class ImageJobForm(ImageForm, JobFields):
    """The fields for an image that nobody waits for."""


class VideoForm(JobFields):
    """The fields for a video."""

    format: str = Field(
        "same",
        max_length=20,
        description="Container of the result; `same` keeps the input's where it can be written.",
        json_schema_extra={"enum": list(VIDEO_FORMATS)},
    )
    codec: str | None = Field(
        None,
        max_length=20,
        description=f"Video codec, one of {', '.join(CODECS)}; left out, the input's own where the result can have it.",
        examples=["h264"],
    )
    scan: str = Field(
        "auto",
        max_length=20,
        description="Whether its frames are one moment each (`progressive`) or two fields (`interlaced`), which are "
        "then restored apart, in the order of time; `auto` looks at some frames.",
        json_schema_extra={"enum": list(SCANS)},
    )
    crf: int | None = Field(
        None, description="Constant rate factor of the codec: lower is better and larger.", examples=[18]
    )


@dataclass(slots=True, kw_only=True)
class Upload:
    """A file as it came. `name` is the caller's word, for display only."""

    content: BinaryIO
    name: str


@dataclass(slots=True)
class Form:
    """A request body, parsed but not yet judged."""

    files: dict[str, Upload] = field(default_factory=dict)
    fields: dict[str, str] = field(default_factory=dict)

    def upload(self) -> Upload:
        """The file to denoise.

        Raises:
            Refused: there is none.
        """
        if "file" not in self.files:
            sent = "it came as text, without a file name" if "file" in self.fields else "it is missing"
            finding = {"in": "form", "field": "file", "message": f"send a file here: {sent}", "code": "missing"}
            raise Refused(422, f"the form field file must hold the input: {sent}", errors=[finding])
        return self.files["file"]

    def read_as(self, model: type[_FormT]) -> _FormT:
        """The other fields, checked for type; a field that is not known is refused, so that no typing error is lost.

        Raises:
            Refused: with each field that is wrong.
        """
        try:
            return model.model_validate(self.fields)
        except ValidationError as err:
            raise fields_refused(err.errors(), where="form") from None


@asynccontextmanager
async def read_form(request: Request, spool: Path) -> AsyncIterator[Form]:
    """Read the body to its end; the files live as long as the context.

    Raises:
        Refused: 400, 415 or 422: the body is no multipart form, or has parts that are not wanted.
        NotReady: there is no room for it.
        ClientDisconnect: the caller left before all had arrived.
    """
    media_type, params = parse_options_header(request.headers.get("content-type"))
    if media_type != b"multipart/form-data" or b"boundary" not in params:
        raise Refused(415, "send the input as multipart/form-data, in a field named file")
    with ExitStack() as files:
        reader = _Reader(params[b"boundary"], spool, files)
        gathered = bytearray()
        async for chunk in request.stream():
            gathered += chunk
            if len(gathered) >= _FEED_BYTES:
                await asyncio.to_thread(reader.feed, bytes(gathered))
                gathered.clear()
        yield await asyncio.to_thread(reader.finish, bytes(gathered))


class _Reader:
    """Takes the body in pieces, one thread at a time, and sorts its parts into files and fields."""

    def __init__(self, boundary: bytes, spool: Path, files: ExitStack) -> None:
        self._spool = spool
        self._files = files
        self._form = Form()
        self._header_name = b""
        self._header_value = b""
        self._disposition: bytes | None = None
        self._name = ""
        self._sink: BinaryIO | None = None
        self._text = bytearray()
        self._ended = False
        try:
            self._parser = MultipartParser(
                boundary,
                {
                    "on_part_begin": self._begin_part,
                    "on_header_begin": self._begin_header,
                    "on_header_field": self._read_header_name,
                    "on_header_value": self._read_header_value,
                    "on_header_end": self._end_header,
                    "on_headers_finished": self._open_part,
                    "on_part_data": self._read_data,
                    "on_part_end": self._end_part,
                    "on_end": self._end,
                },
            )
        except FormParserError as err:
            raise Refused(400, "the multipart boundary cannot be used") from err

    def feed(self, body: bytes) -> None:
        try:
            self._parser.write(body)
        except FormParserError as err:
            raise Refused(400, "the request body is not a well-formed multipart form") from err
        except OSError as err:
            log.exception("an upload could not be spooled")
            raise NotReady("the upload could not be kept; the service's log has the reason") from err

    def finish(self, body: bytes) -> Form:
        """Take the last piece and hand the form over, its files rewound."""
        self.feed(body)
        if not self._ended:
            raise Refused(400, "the request body ends before its last part does")
        for name, upload in list(self._form.files.items()):
            if upload.content.tell() == 0 and not upload.name:
                del self._form.files[name]  # what a browser sends of a file field in which nothing was chosen
            upload.content.seek(0)
        return self._form

    def _begin_part(self) -> None:
        self._disposition = None

    def _begin_header(self) -> None:
        self._header_name = self._header_value = b""

    def _read_header_name(self, data: bytes, start: int, end: int) -> None:
        self._header_name += data[start:end]

    def _read_header_value(self, data: bytes, start: int, end: int) -> None:
        self._header_value += data[start:end]

    def _end_header(self) -> None:
        if self._header_name.lower() == b"content-disposition":
            self._disposition = self._header_value

    def _open_part(self) -> None:
        _, params = parse_options_header(self._disposition)
        self._name = _text_of(params.get(b"name", b""))
        if not self._name:
            raise Refused(400, "a part of the form has no name")
        if self._name in self._form.fields or self._name in self._form.files:
            raise _field_refused(self._name, "given more than once")
        file_name = _file_name_of(self._disposition or b"", params)
        if file_name is None:
            self._sink = None
            self._text.clear()
            return
        if self._name not in FILES:
            raise _field_refused(self._name, f"no file is taken here; files go to {' and '.join(FILES)}")
        # Unlinked from the start: whatever happens to this process, nothing stays behind.
        self._sink = tempfile.TemporaryFile(dir=self._spool)  # noqa: SIM115 (the stack below closes it)
        self._files.callback(_close, self._sink)
        self._form.files[self._name] = Upload(content=self._sink, name=file_name)

    def _read_data(self, data: bytes, start: int, end: int) -> None:
        if self._sink is not None:
            self._sink.write(memoryview(data)[start:end])
            return
        self._text += data[start:end]
        if len(self._text) > _MAX_FIELD_BYTES:
            raise _field_refused(self._name, f"longer than {_MAX_FIELD_BYTES} bytes")

    def _end_part(self) -> None:
        if self._sink is not None:
            self._sink.flush()  # here, where it is known what to make of a full disk
            return
        self._form.fields[self._name] = _text_of(bytes(self._text))
        if len(self._form.fields) > _MAX_FIELDS:
            raise Refused(422, f"the form has more than {_MAX_FIELDS} fields")

    def _end(self) -> None:
        self._ended = True


def _close(file: BinaryIO) -> None:
    with suppress(OSError):  # what a full disk did not take is written once more, and the caller has been told
        file.close()


def _file_name_of(disposition: bytes, params: dict[bytes, bytes]) -> str | None:
    """What the part's file is called; None where the part is no file."""
    if b"filename" in params:
        return _text_of(params[b"filename"])
    extended = _EXTENDED_NAME.search(disposition)
    if extended is None:
        return None
    name = unquote_to_bytes(extended[2])
    return name.decode("latin-1") if (extended[1] or b"").lower() == b"iso-8859-1" else _text_of(name)


def _text_of(value: bytes) -> str:
    return value.decode("utf-8", errors="replace")


def _field_refused(name: str, message: str) -> Refused:
    shown = name[:60]
    finding = {"in": "form", "field": shown, "message": message, "code": "refused"}
    return Refused(422, f"form field {shown}: {message}", errors=[finding])


def request_body(form: type[Fields], kind: str) -> dict[str, Any]:
    """The OpenAPI description of a form: what pydantic knows, and the files beside it."""
    schema = form.model_json_schema()
    binary = {"type": "string", "format": "binary"}
    schema["properties"] = {
        "file": {**binary, "description": f"The noisy {kind}."},
        "reference": {
            **binary,
            "description": f"The clean {kind} of the same width and height, if there is one: PSNR and SSIM are "
            "measured against it. It has no influence on the result.",
        },
        **schema["properties"],
    }
    schema["required"] = ["file"]
    return {"requestBody": {"required": True, "content": {"multipart/form-data": {"schema": schema}}}}
