import datetime

from google.protobuf import timestamp_pb2 as _timestamp_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class PixelFormat(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    PIXEL_FORMAT_UNSPECIFIED: _ClassVar[PixelFormat]
    PIXEL_FORMAT_RGB8: _ClassVar[PixelFormat]
    PIXEL_FORMAT_RGB16: _ClassVar[PixelFormat]

class JobState(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    JOB_STATE_UNSPECIFIED: _ClassVar[JobState]
    JOB_STATE_QUEUED: _ClassVar[JobState]
    JOB_STATE_RUNNING: _ClassVar[JobState]
    JOB_STATE_CANCELLING: _ClassVar[JobState]
    JOB_STATE_SUCCEEDED: _ClassVar[JobState]
    JOB_STATE_FAILED: _ClassVar[JobState]
    JOB_STATE_CANCELLED: _ClassVar[JobState]
    JOB_STATE_EXPIRED: _ClassVar[JobState]

class JobKind(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    JOB_KIND_UNSPECIFIED: _ClassVar[JobKind]
    JOB_KIND_IMAGE: _ClassVar[JobKind]
    JOB_KIND_VIDEO: _ClassVar[JobKind]
PIXEL_FORMAT_UNSPECIFIED: PixelFormat
PIXEL_FORMAT_RGB8: PixelFormat
PIXEL_FORMAT_RGB16: PixelFormat
JOB_STATE_UNSPECIFIED: JobState
JOB_STATE_QUEUED: JobState
JOB_STATE_RUNNING: JobState
JOB_STATE_CANCELLING: JobState
JOB_STATE_SUCCEEDED: JobState
JOB_STATE_FAILED: JobState
JOB_STATE_CANCELLED: JobState
JOB_STATE_EXPIRED: JobState
JOB_KIND_UNSPECIFIED: JobKind
JOB_KIND_IMAGE: JobKind
JOB_KIND_VIDEO: JobKind

class Options(_message.Message):
    __slots__ = ("sigma", "strength", "format", "quality", "codec", "crf", "estimate", "side_by_side", "ensemble", "scan")
    SIGMA_FIELD_NUMBER: _ClassVar[int]
    STRENGTH_FIELD_NUMBER: _ClassVar[int]
    FORMAT_FIELD_NUMBER: _ClassVar[int]
    QUALITY_FIELD_NUMBER: _ClassVar[int]
    CODEC_FIELD_NUMBER: _ClassVar[int]
    CRF_FIELD_NUMBER: _ClassVar[int]
    ESTIMATE_FIELD_NUMBER: _ClassVar[int]
    SIDE_BY_SIDE_FIELD_NUMBER: _ClassVar[int]
    ENSEMBLE_FIELD_NUMBER: _ClassVar[int]
    SCAN_FIELD_NUMBER: _ClassVar[int]
    sigma: float
    strength: float
    format: str
    quality: int
    codec: str
    crf: int
    estimate: bool
    side_by_side: bool
    ensemble: int
    scan: str
    def __init__(self, sigma: _Optional[float] = ..., strength: _Optional[float] = ..., format: _Optional[str] = ..., quality: _Optional[int] = ..., codec: _Optional[str] = ..., crf: _Optional[int] = ..., estimate: _Optional[bool] = ..., side_by_side: _Optional[bool] = ..., ensemble: _Optional[int] = ..., scan: _Optional[str] = ...) -> None: ...

class DenoiseImageRequest(_message.Message):
    __slots__ = ("image", "model", "options", "reference", "name")
    IMAGE_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    OPTIONS_FIELD_NUMBER: _ClassVar[int]
    REFERENCE_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    image: bytes
    model: str
    options: Options
    reference: bytes
    name: str
    def __init__(self, image: _Optional[bytes] = ..., model: _Optional[str] = ..., options: _Optional[_Union[Options, _Mapping]] = ..., reference: _Optional[bytes] = ..., name: _Optional[str] = ...) -> None: ...

class DenoiseImageResponse(_message.Message):
    __slots__ = ("image", "content_type", "job")
    IMAGE_FIELD_NUMBER: _ClassVar[int]
    CONTENT_TYPE_FIELD_NUMBER: _ClassVar[int]
    JOB_FIELD_NUMBER: _ClassVar[int]
    image: bytes
    content_type: str
    job: Job
    def __init__(self, image: _Optional[bytes] = ..., content_type: _Optional[str] = ..., job: _Optional[_Union[Job, _Mapping]] = ...) -> None: ...

class DenoiseStreamRequest(_message.Message):
    __slots__ = ("setup", "frame")
    SETUP_FIELD_NUMBER: _ClassVar[int]
    FRAME_FIELD_NUMBER: _ClassVar[int]
    setup: StreamSetup
    frame: bytes
    def __init__(self, setup: _Optional[_Union[StreamSetup, _Mapping]] = ..., frame: _Optional[bytes] = ...) -> None: ...

class StreamSetup(_message.Message):
    __slots__ = ("model", "width", "height", "pixel_format", "sigma", "strength")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    WIDTH_FIELD_NUMBER: _ClassVar[int]
    HEIGHT_FIELD_NUMBER: _ClassVar[int]
    PIXEL_FORMAT_FIELD_NUMBER: _ClassVar[int]
    SIGMA_FIELD_NUMBER: _ClassVar[int]
    STRENGTH_FIELD_NUMBER: _ClassVar[int]
    model: str
    width: int
    height: int
    pixel_format: PixelFormat
    sigma: float
    strength: float
    def __init__(self, model: _Optional[str] = ..., width: _Optional[int] = ..., height: _Optional[int] = ..., pixel_format: _Optional[_Union[PixelFormat, str]] = ..., sigma: _Optional[float] = ..., strength: _Optional[float] = ...) -> None: ...

class DenoiseStreamResponse(_message.Message):
    __slots__ = ("start", "frame")
    START_FIELD_NUMBER: _ClassVar[int]
    FRAME_FIELD_NUMBER: _ClassVar[int]
    start: StreamStart
    frame: bytes
    def __init__(self, start: _Optional[_Union[StreamStart, _Mapping]] = ..., frame: _Optional[bytes] = ...) -> None: ...

class StreamStart(_message.Message):
    __slots__ = ("model", "backend", "precision", "latency_frames", "frames_in_flight")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    BACKEND_FIELD_NUMBER: _ClassVar[int]
    PRECISION_FIELD_NUMBER: _ClassVar[int]
    LATENCY_FRAMES_FIELD_NUMBER: _ClassVar[int]
    FRAMES_IN_FLIGHT_FIELD_NUMBER: _ClassVar[int]
    model: str
    backend: str
    precision: str
    latency_frames: int
    frames_in_flight: int
    def __init__(self, model: _Optional[str] = ..., backend: _Optional[str] = ..., precision: _Optional[str] = ..., latency_frames: _Optional[int] = ..., frames_in_flight: _Optional[int] = ...) -> None: ...

class SubmitVideoRequest(_message.Message):
    __slots__ = ("video", "chunk", "reference_chunk")
    VIDEO_FIELD_NUMBER: _ClassVar[int]
    CHUNK_FIELD_NUMBER: _ClassVar[int]
    REFERENCE_CHUNK_FIELD_NUMBER: _ClassVar[int]
    video: VideoJob
    chunk: bytes
    reference_chunk: bytes
    def __init__(self, video: _Optional[_Union[VideoJob, _Mapping]] = ..., chunk: _Optional[bytes] = ..., reference_chunk: _Optional[bytes] = ...) -> None: ...

class VideoJob(_message.Message):
    __slots__ = ("model", "options", "name", "idempotency_key", "webhook_url")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    OPTIONS_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    IDEMPOTENCY_KEY_FIELD_NUMBER: _ClassVar[int]
    WEBHOOK_URL_FIELD_NUMBER: _ClassVar[int]
    model: str
    options: Options
    name: str
    idempotency_key: str
    webhook_url: str
    def __init__(self, model: _Optional[str] = ..., options: _Optional[_Union[Options, _Mapping]] = ..., name: _Optional[str] = ..., idempotency_key: _Optional[str] = ..., webhook_url: _Optional[str] = ...) -> None: ...

class SubmitVideoResponse(_message.Message):
    __slots__ = ("job",)
    JOB_FIELD_NUMBER: _ClassVar[int]
    job: Job
    def __init__(self, job: _Optional[_Union[Job, _Mapping]] = ...) -> None: ...

class GetJobRequest(_message.Message):
    __slots__ = ("id",)
    ID_FIELD_NUMBER: _ClassVar[int]
    id: str
    def __init__(self, id: _Optional[str] = ...) -> None: ...

class GetJobResponse(_message.Message):
    __slots__ = ("job",)
    JOB_FIELD_NUMBER: _ClassVar[int]
    job: Job
    def __init__(self, job: _Optional[_Union[Job, _Mapping]] = ...) -> None: ...

class WatchJobRequest(_message.Message):
    __slots__ = ("id", "after_event_id")
    ID_FIELD_NUMBER: _ClassVar[int]
    AFTER_EVENT_ID_FIELD_NUMBER: _ClassVar[int]
    id: str
    after_event_id: str
    def __init__(self, id: _Optional[str] = ..., after_event_id: _Optional[str] = ...) -> None: ...

class WatchJobResponse(_message.Message):
    __slots__ = ("event_id", "state", "progress", "preview_url", "job")
    EVENT_ID_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    PROGRESS_FIELD_NUMBER: _ClassVar[int]
    PREVIEW_URL_FIELD_NUMBER: _ClassVar[int]
    JOB_FIELD_NUMBER: _ClassVar[int]
    event_id: str
    state: JobState
    progress: Progress
    preview_url: str
    job: Job
    def __init__(self, event_id: _Optional[str] = ..., state: _Optional[_Union[JobState, str]] = ..., progress: _Optional[_Union[Progress, _Mapping]] = ..., preview_url: _Optional[str] = ..., job: _Optional[_Union[Job, _Mapping]] = ...) -> None: ...

class CancelJobRequest(_message.Message):
    __slots__ = ("id",)
    ID_FIELD_NUMBER: _ClassVar[int]
    id: str
    def __init__(self, id: _Optional[str] = ...) -> None: ...

class CancelJobResponse(_message.Message):
    __slots__ = ("job",)
    JOB_FIELD_NUMBER: _ClassVar[int]
    job: Job
    def __init__(self, job: _Optional[_Union[Job, _Mapping]] = ...) -> None: ...

class GetResultRequest(_message.Message):
    __slots__ = ("id", "offset")
    ID_FIELD_NUMBER: _ClassVar[int]
    OFFSET_FIELD_NUMBER: _ClassVar[int]
    id: str
    offset: int
    def __init__(self, id: _Optional[str] = ..., offset: _Optional[int] = ...) -> None: ...

class GetResultResponse(_message.Message):
    __slots__ = ("info", "offset", "chunk")
    INFO_FIELD_NUMBER: _ClassVar[int]
    OFFSET_FIELD_NUMBER: _ClassVar[int]
    CHUNK_FIELD_NUMBER: _ClassVar[int]
    info: ResultInfo
    offset: int
    chunk: bytes
    def __init__(self, info: _Optional[_Union[ResultInfo, _Mapping]] = ..., offset: _Optional[int] = ..., chunk: _Optional[bytes] = ...) -> None: ...

class ResultInfo(_message.Message):
    __slots__ = ("content_type", "bytes", "sha256", "file_name")
    CONTENT_TYPE_FIELD_NUMBER: _ClassVar[int]
    BYTES_FIELD_NUMBER: _ClassVar[int]
    SHA256_FIELD_NUMBER: _ClassVar[int]
    FILE_NAME_FIELD_NUMBER: _ClassVar[int]
    content_type: str
    bytes: int
    sha256: str
    file_name: str
    def __init__(self, content_type: _Optional[str] = ..., bytes: _Optional[int] = ..., sha256: _Optional[str] = ..., file_name: _Optional[str] = ...) -> None: ...

class Job(_message.Message):
    __slots__ = ("id", "kind", "state", "model", "backend", "precision", "notes", "attempts", "created_at", "started_at", "finished_at", "expires_at", "progress", "input", "options", "metrics", "preview", "result", "error", "per_frame")
    ID_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    BACKEND_FIELD_NUMBER: _ClassVar[int]
    PRECISION_FIELD_NUMBER: _ClassVar[int]
    NOTES_FIELD_NUMBER: _ClassVar[int]
    ATTEMPTS_FIELD_NUMBER: _ClassVar[int]
    CREATED_AT_FIELD_NUMBER: _ClassVar[int]
    STARTED_AT_FIELD_NUMBER: _ClassVar[int]
    FINISHED_AT_FIELD_NUMBER: _ClassVar[int]
    EXPIRES_AT_FIELD_NUMBER: _ClassVar[int]
    PROGRESS_FIELD_NUMBER: _ClassVar[int]
    INPUT_FIELD_NUMBER: _ClassVar[int]
    OPTIONS_FIELD_NUMBER: _ClassVar[int]
    METRICS_FIELD_NUMBER: _ClassVar[int]
    PREVIEW_FIELD_NUMBER: _ClassVar[int]
    RESULT_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    PER_FRAME_FIELD_NUMBER: _ClassVar[int]
    id: str
    kind: JobKind
    state: JobState
    model: str
    backend: str
    precision: str
    notes: _containers.RepeatedScalarFieldContainer[str]
    attempts: int
    created_at: _timestamp_pb2.Timestamp
    started_at: _timestamp_pb2.Timestamp
    finished_at: _timestamp_pb2.Timestamp
    expires_at: _timestamp_pb2.Timestamp
    progress: Progress
    input: Input
    options: Options
    metrics: Metrics
    preview: Link
    result: Link
    error: Problem
    per_frame: Link
    def __init__(self, id: _Optional[str] = ..., kind: _Optional[_Union[JobKind, str]] = ..., state: _Optional[_Union[JobState, str]] = ..., model: _Optional[str] = ..., backend: _Optional[str] = ..., precision: _Optional[str] = ..., notes: _Optional[_Iterable[str]] = ..., attempts: _Optional[int] = ..., created_at: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., started_at: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., finished_at: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., expires_at: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., progress: _Optional[_Union[Progress, _Mapping]] = ..., input: _Optional[_Union[Input, _Mapping]] = ..., options: _Optional[_Union[Options, _Mapping]] = ..., metrics: _Optional[_Union[Metrics, _Mapping]] = ..., preview: _Optional[_Union[Link, _Mapping]] = ..., result: _Optional[_Union[Link, _Mapping]] = ..., error: _Optional[_Union[Problem, _Mapping]] = ..., per_frame: _Optional[_Union[Link, _Mapping]] = ...) -> None: ...

class Progress(_message.Message):
    __slots__ = ("done", "total", "unit", "rate", "eta_seconds")
    DONE_FIELD_NUMBER: _ClassVar[int]
    TOTAL_FIELD_NUMBER: _ClassVar[int]
    UNIT_FIELD_NUMBER: _ClassVar[int]
    RATE_FIELD_NUMBER: _ClassVar[int]
    ETA_SECONDS_FIELD_NUMBER: _ClassVar[int]
    done: int
    total: int
    unit: str
    rate: float
    eta_seconds: float
    def __init__(self, done: _Optional[int] = ..., total: _Optional[int] = ..., unit: _Optional[str] = ..., rate: _Optional[float] = ..., eta_seconds: _Optional[float] = ...) -> None: ...

class Input(_message.Message):
    __slots__ = ("content_type", "bytes", "width", "height", "frames", "frame_rate", "has_audio", "lost", "codec", "bit_depth", "pages")
    CONTENT_TYPE_FIELD_NUMBER: _ClassVar[int]
    BYTES_FIELD_NUMBER: _ClassVar[int]
    WIDTH_FIELD_NUMBER: _ClassVar[int]
    HEIGHT_FIELD_NUMBER: _ClassVar[int]
    FRAMES_FIELD_NUMBER: _ClassVar[int]
    FRAME_RATE_FIELD_NUMBER: _ClassVar[int]
    HAS_AUDIO_FIELD_NUMBER: _ClassVar[int]
    LOST_FIELD_NUMBER: _ClassVar[int]
    CODEC_FIELD_NUMBER: _ClassVar[int]
    BIT_DEPTH_FIELD_NUMBER: _ClassVar[int]
    PAGES_FIELD_NUMBER: _ClassVar[int]
    content_type: str
    bytes: int
    width: int
    height: int
    frames: int
    frame_rate: str
    has_audio: bool
    lost: _containers.RepeatedScalarFieldContainer[str]
    codec: str
    bit_depth: int
    pages: int
    def __init__(self, content_type: _Optional[str] = ..., bytes: _Optional[int] = ..., width: _Optional[int] = ..., height: _Optional[int] = ..., frames: _Optional[int] = ..., frame_rate: _Optional[str] = ..., has_audio: _Optional[bool] = ..., lost: _Optional[_Iterable[str]] = ..., codec: _Optional[str] = ..., bit_depth: _Optional[int] = ..., pages: _Optional[int] = ...) -> None: ...

class Metrics(_message.Message):
    __slots__ = ("psnr_db", "ssim", "input_psnr_db", "sigma_estimate", "input_noise_estimate", "output_noise_estimate", "psnr_estimate_db", "psnr_estimate_error_db", "seconds")
    PSNR_DB_FIELD_NUMBER: _ClassVar[int]
    SSIM_FIELD_NUMBER: _ClassVar[int]
    INPUT_PSNR_DB_FIELD_NUMBER: _ClassVar[int]
    SIGMA_ESTIMATE_FIELD_NUMBER: _ClassVar[int]
    INPUT_NOISE_ESTIMATE_FIELD_NUMBER: _ClassVar[int]
    OUTPUT_NOISE_ESTIMATE_FIELD_NUMBER: _ClassVar[int]
    PSNR_ESTIMATE_DB_FIELD_NUMBER: _ClassVar[int]
    PSNR_ESTIMATE_ERROR_DB_FIELD_NUMBER: _ClassVar[int]
    SECONDS_FIELD_NUMBER: _ClassVar[int]
    psnr_db: float
    ssim: float
    input_psnr_db: float
    sigma_estimate: float
    input_noise_estimate: NoiseEstimate
    output_noise_estimate: NoiseEstimate
    psnr_estimate_db: float
    psnr_estimate_error_db: float
    seconds: StageSeconds
    def __init__(self, psnr_db: _Optional[float] = ..., ssim: _Optional[float] = ..., input_psnr_db: _Optional[float] = ..., sigma_estimate: _Optional[float] = ..., input_noise_estimate: _Optional[_Union[NoiseEstimate, _Mapping]] = ..., output_noise_estimate: _Optional[_Union[NoiseEstimate, _Mapping]] = ..., psnr_estimate_db: _Optional[float] = ..., psnr_estimate_error_db: _Optional[float] = ..., seconds: _Optional[_Union[StageSeconds, _Mapping]] = ...) -> None: ...

class NoiseEstimate(_message.Message):
    __slots__ = ("sigma", "black", "white")
    SIGMA_FIELD_NUMBER: _ClassVar[int]
    BLACK_FIELD_NUMBER: _ClassVar[int]
    WHITE_FIELD_NUMBER: _ClassVar[int]
    sigma: _containers.RepeatedScalarFieldContainer[float]
    black: _containers.RepeatedScalarFieldContainer[float]
    white: _containers.RepeatedScalarFieldContainer[float]
    def __init__(self, sigma: _Optional[_Iterable[float]] = ..., black: _Optional[_Iterable[float]] = ..., white: _Optional[_Iterable[float]] = ...) -> None: ...

class StageSeconds(_message.Message):
    __slots__ = ("decode", "queue", "infer", "encode")
    DECODE_FIELD_NUMBER: _ClassVar[int]
    QUEUE_FIELD_NUMBER: _ClassVar[int]
    INFER_FIELD_NUMBER: _ClassVar[int]
    ENCODE_FIELD_NUMBER: _ClassVar[int]
    decode: float
    queue: float
    infer: float
    encode: float
    def __init__(self, decode: _Optional[float] = ..., queue: _Optional[float] = ..., infer: _Optional[float] = ..., encode: _Optional[float] = ...) -> None: ...

class Link(_message.Message):
    __slots__ = ("url", "content_type", "bytes", "sha256")
    URL_FIELD_NUMBER: _ClassVar[int]
    CONTENT_TYPE_FIELD_NUMBER: _ClassVar[int]
    BYTES_FIELD_NUMBER: _ClassVar[int]
    SHA256_FIELD_NUMBER: _ClassVar[int]
    url: str
    content_type: str
    bytes: int
    sha256: str
    def __init__(self, url: _Optional[str] = ..., content_type: _Optional[str] = ..., bytes: _Optional[int] = ..., sha256: _Optional[str] = ...) -> None: ...

class Problem(_message.Message):
    __slots__ = ("type", "title", "status", "detail", "code", "retryable", "instance")
    TYPE_FIELD_NUMBER: _ClassVar[int]
    TITLE_FIELD_NUMBER: _ClassVar[int]
    STATUS_FIELD_NUMBER: _ClassVar[int]
    DETAIL_FIELD_NUMBER: _ClassVar[int]
    CODE_FIELD_NUMBER: _ClassVar[int]
    RETRYABLE_FIELD_NUMBER: _ClassVar[int]
    INSTANCE_FIELD_NUMBER: _ClassVar[int]
    type: str
    title: str
    status: int
    detail: str
    code: str
    retryable: bool
    instance: str
    def __init__(self, type: _Optional[str] = ..., title: _Optional[str] = ..., status: _Optional[int] = ..., detail: _Optional[str] = ..., code: _Optional[str] = ..., retryable: _Optional[bool] = ..., instance: _Optional[str] = ...) -> None: ...
