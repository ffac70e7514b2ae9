"""What an operator can set: environment variables `QUIETFRAME_*`, read once."""

import base64
import binascii
import re
import ssl
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BeforeValidator, Field, SecretStr, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from models.catalogue import AUTO, CATALOGUE
from service.job import Lane

_SECRET_PREFIX = "whsec_"  # noqa: S105 - no secret, the start of each
_LEAST_MEMORY_BYTES = 512 * 1024**2  # with the models of `auto` a worker and its decoders hold 350 MB when idle
_LEAST_DECODE_BYTES = 256 * 1024**2
_SECRET_BYTES = range(24, 65)  # Standard Webhooks, "signature scheme"


def _hidden(value: Any) -> Any:
    """Wrap it up before anything can go wrong, for what goes wrong is told with the value; blank means unset."""
    if isinstance(value, str):
        return SecretStr(value) if value.strip(", \t\r\n") else None
    return value


def _keys_in(secrets: SecretStr | None) -> tuple[bytes, ...]:
    """
    Raises:
        ValueError: one of them is none; the message does not show it.
    """
    texts = secrets.get_secret_value().replace(",", " ").split() if secrets else []
    keys = []
    for number, text in enumerate(texts, 1):
        told = text.removeprefix(_SECRET_PREFIX)
        try:
            key = base64.b64decode(told + "=" * (-len(told) % 4), validate=True)
        except (binascii.Error, ValueError):
            key = b""
        if told == text or len(key) not in _SECRET_BYTES:
            raise ValueError(
                f"secret {number} of {len(texts)} is not {_SECRET_PREFIX} followed by {_SECRET_BYTES.start} to "
                f"{_SECRET_BYTES.stop - 1} bytes in base64"
            )
        keys.append(key)
    return tuple(keys)


def _checked(secrets: SecretStr | None) -> SecretStr | None:
    _keys_in(secrets)
    return secrets


def _certificates(path: Path | None) -> Path | None:
    """Told at once: a worker that could not read them would look healthy and send nothing."""
    if path is not None:
        try:
            ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(path)
        except OSError as err:  # ssl.SSLError is one
            raise ValueError(f"no certificate authorities can be read: {err.strerror or err}") from None
    return path


def _none_or_enough(memory_bytes: int) -> int:
    """Less than the models themselves need would kill every worker as soon as it is up."""
    if 0 < memory_bytes < _LEAST_MEMORY_BYTES:
        raise ValueError(f"a worker needs at least {_LEAST_MEMORY_BYTES} bytes; 0 sets no bound")
    return memory_bytes


def _known_lanes(text: str) -> str:
    """Blank means all."""
    names = text.replace(",", " ").split() or list(Lane)
    if unknown := [name for name in names if name not in set(Lane)]:
        raise ValueError(f"there is no lane {unknown[0]!r}; known are {', '.join(Lane)}")
    return ",".join(names)


def _known_models(text: str) -> str:
    """Blank means `auto`."""
    names = text.replace(",", " ").split() or ["auto"]
    if len(names) > 1 or names[0] not in ("auto", "all"):
        for name in names:
            if name not in CATALOGUE:
                raise ValueError(f"model is {name!r}; there are auto, all, {', '.join(CATALOGUE)}")
    return ",".join(names)


def _origins(text: str) -> str:
    """Blank means none."""
    found = text.replace(",", " ").split()
    for origin in found:
        if origin != "*" and not re.fullmatch(r"https?://[A-Za-z0-9.\-\[\]:]+", origin):
            raise ValueError(f"{origin!r} is no origin; write https://host or https://host:port, without a path")
    return ",".join(found)


_TEN_YEARS_S = 10 * 366 * 24 * 3600


class Settings(BaseSettings):
    """Frozen after reading. Each field's variable is its name in capitals behind `QUIETFRAME_`."""

    model_config = SettingsConfigDict(env_prefix="QUIETFRAME_", frozen=True)

    host: str = Field("127.0.0.1", description="Address the HTTP server listens on.")
    port: int = Field(8000, ge=0, le=65535, description="Port of the HTTP server; 0 takes a free one.")
    grpc_port: int = Field(8001, ge=0, le=65535, description="Port of the gRPC server; 0 takes a free one.")
    admin_port: int | None = Field(
        None,
        ge=0,
        le=65535,
        description="Port for `/metrics` and the calls of operators, which are then on no other; 0 takes a free one.",
    )
    tls_cert_file: Path | None = Field(
        None, description="Certificate with its chain (PEM), for all ports: HTTP and gRPC are then TLS only."
    )
    tls_key_file: Path | None = Field(None, description="Its private key (PEM).")
    cors_origins: Annotated[str, AfterValidator(_origins)] = Field(
        "", description="Origins whose pages may call the API, a comma between; `*`: all. Blank: none."
    )
    keys_file: Path | None = Field(
        None,
        description="API keys that callers must show; unset: `keys.json` in the data directory if it is there when the "
        "API starts, else no keys are asked for.",
    )
    requests_per_minute: int = Field(
        0,
        ge=0,
        lt=10**15,
        description="Calls that a key, or an address where none are asked for, may make; 0: no bound.",
    )
    pixels_per_minute: int = Field(
        0,
        ge=0,
        lt=10**15,
        description="Pixels that it may hand in, frames of videos and passes of ensembles all counted; 0: no bound.",
    )
    data_dir: Path = Field(Path("quietframe-data"), description="Where blobs and the embedded queue live.")
    models_dir: Path | None = Field(
        None, description="Where models adapted to your own footage live; unset: `models` in the data directory."
    )
    workers: int = Field(
        1, ge=0, le=64, description="Worker processes of this machine; 0 means one for each NVIDIA GPU, or one."
    )
    worker_metrics_port: int | None = Field(
        None,
        ge=1,
        le=65535 - 64,
        description="Port of a worker's own figures and probes, on HOST; a second worker of the same machine has the "
        "next one, and so on. Unset: none.",
    )
    worker_memory_bytes: Annotated[int, AfterValidator(_none_or_enough)] = Field(
        0,
        ge=0,
        description="Memory a worker may hold (Linux); one with more is killed, its jobs tried again. 0: no bound.",
    )
    lanes: Annotated[str, AfterValidator(_known_lanes)] = Field(
        ",".join(Lane), description="Lanes that workers take work from, a comma between."
    )
    redis_url: str | None = Field(
        None,
        repr=False,  # it may hold a password
        description="redis://, rediss://, unix:// or redis+sentinel:// URL; without it `serve` starts its own server.",
    )

    blob_url: str | None = Field(
        None,
        repr=False,  # no password belongs in it, but one may have got there
        description="Where blobs live instead: s3://bucket/prefix, gs://..., az://..., or file:///directory.",
    )
    blob_endpoint: str | None = Field(
        None, repr=False, description="Server of an S3 that is not Amazon's, such as MinIO: https://host:port."
    )
    blob_allow_http: bool = Field(False, description="Whether that server may be spoken to without TLS.")
    blob_patience_s: float = Field(10.0, gt=0, le=240, description="How long a failing request to a bucket is retried.")
    blob_cache_bytes: int = Field(
        8 * 1024**3, ge=0, description="Copies of a bucket's blobs kept in the data directory, beside those in use."
    )
    result_redirect: bool = Field(
        False, description="Whether results are fetched from the bucket itself, by a signed URL, where it is an S3."
    )
    redirect_ttl_s: float = Field(600.0, ge=1, le=7 * 24 * 3600, description="How long such a URL may be used.")

    backend: Literal["auto", "tensorrt", "torch", "openvino", "onnxruntime"] = Field(
        "auto", description="What runs the networks; `auto` takes the best that this machine has."
    )
    precision: Literal["auto", "fp32", "bf16", "fp16", "int8"] = Field(
        "auto", description="What networks compute in; `auto` takes the fastest that holds the quality."
    )
    warm: Annotated[str, AfterValidator(_known_models)] = Field(
        "auto",
        description="Models that a worker loads at its start, a comma between; `auto`: those that are used where none "
        "is named; `all`. Others are loaded when first asked for.",
    )
    loaded_models: int = Field(
        8, ge=1, le=256, description="Models that a worker keeps loaded; beyond, the one used longest ago goes."
    )
    engines_dir: Path | None = Field(
        None, description="Where built engines are kept, for this user alone; unset: `engines` in the data directory."
    )
    build_engines: bool = Field(
        True,
        description="Whether a worker with an NVIDIA GPU builds TensorRT engines that it lacks, while others serve.",
    )
    gpu_batch: int = Field(4, ge=1, le=64, description="Tiles that an engine on a GPU is given at a time, at most.")
    gpu_contexts: int = Field(1, ge=1, le=8, description="Jobs whose tiles are on a GPU at the same time.")
    gpu_workspace_bytes: int = Field(
        2 * 1024**3, ge=16 * 1024**2, description="GPU memory that a kernel of a TensorRT engine may use for itself."
    )
    video_encoder: Literal["software", "nvidia"] = Field(
        "software",
        description="What encodes H.264, HEVC and AV1 of 8 bits in 4:2:0; `nvidia`: the GPU, where it takes the video.",
    )
    threads: int = Field(0, ge=0, description="CPU threads of a worker's engine; 0 takes all cores.")
    part_frames: int | None = Field(
        None,
        ge=8,
        le=100_000,
        description="Frames of the parts that long videos are done in; unset goes by their size.",
    )
    tile_px: int = Field(768, ge=256, le=4096, multiple_of=64, description="Side of a tile; larger frames are cut.")

    max_upload_bytes: int = Field(2 * 1024**3, ge=1024, description="Largest request body.")
    max_message_bytes: int = Field(
        64 * 1024**2,
        ge=1024,
        le=2**31 - 1,
        description="Largest gRPC message, and largest body under `/v2`: each is held in memory.",
    )
    max_image_pixels: int = Field(120_000_000, ge=1, description="Largest image, width times height.")
    max_frame_pixels: int = Field(8192 * 4352, ge=1, description="Largest video frame, width times height.")
    max_video_frames: int = Field(1_000_000, ge=1, description="Longest video, in frames.")
    max_video_seconds: float = Field(24 * 3600.0, gt=0, description="Longest video, in seconds.")
    max_frame_rate: float = Field(1000.0, gt=0, description="Most frames a second, counted as they are shown.")
    max_streams: int = Field(64, ge=1, le=1024, description="Most tracks of a video, its own counted too.")
    decode_memory_bytes: int = Field(
        4 * 1024**3, ge=_LEAST_DECODE_BYTES, description="Memory that decoding one file may take."
    )
    decode_timeout_s: float = Field(
        60.0, gt=0, le=3600, description="How long an image, or a video's next frame, may take to decode."
    )
    max_queued_jobs: int = Field(10_000, ge=1, description="Jobs that may wait in one lane; more are answered 503.")

    live_streams: int = Field(2, ge=0, le=64, description="Live streams that a worker takes at once; 0: none.")
    live_host: str = Field(
        "127.0.0.1",
        description="Address where workers listen for live streams and the API reaches them; 0.0.0.0: all, and what is "
        "told is that of the host's name.",
    )
    live_port: int = Field(
        0, ge=0, le=65535, description="Port where a worker listens for live streams; 0 takes a free one."
    )
    live_idle_s: float = Field(
        30.0, gt=0, le=3600, description="How long a live stream's caller may send nothing before the stream is ended."
    )

    sync_timeout_s: float = Field(
        300.0, gt=0, le=86_400, description="How long POST /denoise/image waits for its result."
    )
    lease_ttl_s: float = Field(
        30.0, gt=0.1, le=3600, description="How long a worker may be silent before its job is given on."
    )
    max_attempts: int = Field(3, ge=1, description="Times a job is tried before it is given up.")
    drain_s: float = Field(
        20.0, ge=0, le=86_400, description="How long a stopping worker may take to finish the work in hand."
    )
    linger_s: float = Field(
        0.0,
        ge=0,
        le=600,
        description="How long `quietframe api`, asked to stop, is not ready and still answers, so that load balancers "
        "leave it first.",
    )
    result_ttl_s: float = Field(24 * 3600, gt=0, le=_TEN_YEARS_S, description="How long a result is kept.")
    record_ttl_s: float = Field(
        7 * 24 * 3600, gt=0, le=_TEN_YEARS_S, description="How long a job is remembered after its result is gone."
    )

    # Left out of every dump: child processes inherit the variable itself, and nothing else needs the value.
    webhook_secret: Annotated[SecretStr | None, AfterValidator(_checked), BeforeValidator(_hidden)] = Field(
        None,
        exclude=True,
        repr=False,
        description="What webhooks are signed with, whsec_ and base64; two with a blank between while one replaces the "
        "other. Unset: no webhooks.",
    )
    webhook_allow_http: bool = Field(False, description="Whether webhooks may go over http:// too.")
    webhook_allow_private: bool = Field(
        False, description="Whether webhooks may go to loopback and private networks too: for closed networks."
    )
    webhook_ca_file: Annotated[Path | None, AfterValidator(_certificates)] = Field(
        None, description="Certificate authorities (PEM) that receivers may be known by, beside the system's."
    )
    webhook_timeout_s: float = Field(20.0, gt=0, le=60, description="How long one try of a webhook may take in all.")
    webhook_max_attempts: int = Field(12, ge=1, le=100, description="Times a webhook is tried before it is given up.")
    webhook_retry_s: float = Field(
        5.0,
        gt=0,
        le=6 * 3600,
        description="Pause after a webhook's first failure; threefold after each further one, up to six hours.",
    )

    log_level: Literal["debug", "info", "warning", "error"] = Field("info", description="What is logged.")
    log_format: Literal["text", "json"] = Field(
        "text", description="How: lines to read, or JSON objects with the job and the trace that each is about."
    )

    @model_validator(mode="after")
    def _both_of_tls(self) -> Self:
        if (self.tls_cert_file is None) != (self.tls_key_file is None):
            raise ValueError("tls_cert_file and tls_key_file are set both, or neither")
        return self

    @property
    def own_keys_file(self) -> Path:
        """Where API keys are kept, if there are any."""
        return self.keys_file if self.keys_file is not None else self.data_dir / "keys.json"

    @property
    def own_models_dir(self) -> Path:
        """Where models adapted to own footage live."""
        return self.models_dir if self.models_dir is not None else self.data_dir / "models"

    @property
    def own_engines_dir(self) -> Path:
        """Where built engines are kept."""
        return self.engines_dir if self.engines_dir is not None else self.data_dir / "engines"

    @property
    def warm_models(self) -> tuple[str, ...]:
        """What a worker loads at its start."""
        names = self.warm.split(",")
        return (
            tuple(dict.fromkeys(AUTO.values()))
            if names == ["auto"]
            else tuple(CATALOGUE)
            if names == ["all"]
            else tuple(names)
        )

    @property
    def worker_lanes(self) -> frozenset[Lane]:
        """Which lanes workers take work from: who divides videos must also do parts and join them, or nobody might."""
        named = frozenset(map(Lane, self.lanes.split(",")))
        return named | {Lane.VIDEO_JOIN, Lane.VIDEO_PART} if Lane.VIDEO in named else named

    @property
    def webhook_keys(self) -> tuple[bytes, ...]:
        """What webhooks are signed with; none where they are off."""
        return _keys_in(self.webhook_secret)
