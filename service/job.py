"""What a job is: what was asked, how far it is, what came of it; and the document that clients see of it."""

import secrets
import time
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field

UNTOLD_FRAMES = 250  # what a video is taken for whose header does not tell its length
JOB_ID_PATTERN = r"^[0-9a-f]{32}$"


class JobState(StrEnum):
    QUEUED = "queued"
    RUNNING = "running"
    CANCELLING = "cancelling"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"
    EXPIRED = "expired"

    @property
    def is_final(self) -> bool:
        return self not in {JobState.QUEUED, JobState.RUNNING, JobState.CANCELLING}


class Lane(StrEnum):
    """The few streams that work waits in; each is drained in order."""

    IMAGE_INTERACTIVE = "image.interactive"  # somebody waits on the line
    IMAGE_BATCH = "image.batch"
    VIDEO_JOIN = "video.join"  # videos whose parts are all done
    VIDEO = "video"  # whole videos: dividing them, and doing those too short to divide
    VIDEO_PART = "video.part"


ENSEMBLES = (1, 2, 4)
Scan = Literal["auto", "progressive", "interlaced"]
SCANS: tuple[Scan, ...] = get_args(Scan)
FieldOrder = Literal["top", "bottom"]  # the field of the upper lines or of the lower ones is the first in time


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")


class Options(_Frozen):
    """How a job wants to be done."""

    sigma: float | None = Field(None, description="Noise level told by the caller, 8-bit scale; null means blind.")
    strength: float = Field(1.0, description="Share of the noise that is taken out, 0 to 1.")
    ensemble: int = Field(1, description="Times it is restored, mirrored each time in another way; the mean is taken.")
    format: str = Field(
        "same", description="Container of the result; `same` keeps the input's where it can be written."
    )
    quality: int | None = Field(None, description="Of JPEG, WebP and AVIF, 1 to 100.")
    codec: str | None = Field(None, description="Video codec; null keeps the input's own where the result can have it.")
    crf: int | None = Field(None, description="Constant rate factor of the video codec.")
    scan: str = Field(
        "auto",
        description="Whether a video's frames are one moment each (`progressive`) or two fields (`interlaced`), which "
        "are then restored apart; `auto` finds out.",
    )
    estimate: bool = Field(False, description="Estimate the PSNR though there is no reference, whatever it costs.")
    side_by_side: bool = Field(False, description="The result's left half is left as it was, to compare.")


class InputFacts(_Frozen):
    """What the header of the input says."""

    content_type: str = Field(description="Media type found in the bytes, whatever the upload claimed.")
    bytes: int = Field(description="Size of the upload.")
    width: int = Field(description="Pixels, as stored.")
    height: int = Field(description="Pixels, as stored.")
    pages: int | None = Field(None, description="Pages of a TIFF that has several; its size is that of the first.")
    frames: int | None = Field(None, description="Frames of a video, as its header says; null if it does not say.")
    frame_rate: str | None = Field(None, description="Frames per second as a fraction, such as 30000/1001.")
    has_audio: bool | None = Field(None, description="Whether a video has an audio track.")
    codec: str | None = Field(None, description="Of a video's picture, such as h264, hevc or prores.")
    bit_depth: int | None = Field(None, description="Bits of a video's deepest component.")
    lost: list[str] = Field([], description="What of the input the result could not keep; told when the job is done.")


class Job(_Frozen):
    """What was asked. Pixels are not in it: inputs are names in the blob store."""

    id: str = Field(pattern=JOB_ID_PATTERN)
    kind: Literal["image", "video"]
    lane: Lane
    model: str
    options: Options
    input_blob: str
    reference_blob: str | None = None
    input: InputFacts
    name: str  # a safe stem for the result's file name
    created_at: float  # seconds since 1970
    owner: str | None = None  # holder of the API key that it came with
    webhook: str | None = None  # who is told of the end; for senders only, its path may hold a secret of the receiver's
    trace: str | None = None  # W3C traceparent of the span that put it: what a worker does for it goes under that

    @property
    def pixels(self) -> int:
        """To denoise, as far as the header tells; each of an ensemble counts."""
        return pixels_of(self.kind, self.input) * self.options.ensemble

    def pixels_in(self, frames: int) -> int:
        """To denoise in so many frames."""
        return self.input.width * self.input.height * frames * self.options.ensemble

    @property
    def compat(self) -> str:
        """Jobs that share it could share an engine call."""
        return f"{self.model}/{'told' if self.options.sigma is not None else 'blind'}"

    @property
    def blobs(self) -> list[str]:
        return [blob for blob in (self.input_blob, self.reference_blob) if blob]


class Part(_Frozen):
    """A run of a video's frames that is denoised, retried and resumed by itself."""

    index: int
    frames: int  # that it yields
    lead: int  # frames decoded before them because the network's window reaches so far; 0 only where the video begins
    trail: int  # the same behind them; 0 only where the video ends
    begin: int  # presentation time of the first frame decoded, in the video track's time base
    end: int  # of the last one
    fields: FieldOrder | None = None  # of an interlaced video


class Progress(_Frozen):
    done: int = Field(0, description="Units finished.")
    total: int | None = Field(None, description="Units in all; null while unknown.")
    unit: Literal["frames", "tiles"] = Field("frames", description="What is counted.")
    rate: float | None = Field(None, description="Units per second, lately.")
    eta_seconds: float | None = Field(None, description="Seconds left at that rate.")


class StageSeconds(_Frozen):
    decode: float = Field(0.0, description="Reading the input.")
    queue: float = Field(0.0, description="Waiting for a worker.")
    infer: float = Field(0.0, description="In the engine, and in laying a frame's neighbours over it.")
    encode: float = Field(0.0, description="Writing the result.")


class NoiseEstimate(_Frozen):
    """Noise found in a picture by itself, on the 8-bit scale: red, green and blue, or one number of a grey picture."""

    sigma: list[float] = Field(
        description="Standard deviation, root mean square over the picture (of a video: frames)."
    )
    black: list[float] = Field(
        description="Standard deviation where the picture is black. The variance runs straight from black to white: "
        "for raw light, read noise is `black` and gain (white² - black²) / 255."
    )
    white: list[float] = Field(
        description="The same where it is white; equal where noise does not depend on brightness."
    )


class Metrics(_Frozen):
    psnr_db: float | None = Field(
        None,
        description="Restored against the reference; all channels, data range 1.0; mean over frames; "
        "null also where they are equal, for then it is infinite.",
    )
    ssim: float | None = Field(
        None, description="Restored against the reference; 11x11 Gaussian window, data range 1.0."
    )
    input_psnr_db: float | None = Field(None, description="Noisy input against the reference.")
    sigma_estimate: float | None = Field(
        None,
        description="Estimated noise level of the input, 8-bit scale: the root mean square of what the denoiser "
        "took for noise.",
    )
    input_noise_estimate: NoiseEstimate | None = Field(
        None, description="Noise of the input, measured without the denoiser; of a video, in every 24th frame."
    )
    output_noise_estimate: NoiseEstimate | None = Field(None, description="The same of the result.")
    psnr_estimate_db: float | None = Field(
        None,
        description="Estimate, made without a reference, of what `psnr_db` would be; where `estimate` was asked for, "
        "and of videos where it costs little. Holds for noise that is independent from pixel to pixel.",
    )
    psnr_estimate_error_db: float | None = Field(
        None,
        description="Standard error of that estimate: on test pictures seven of ten lay within it; "
        "of video it is told too small.",
    )
    seconds: StageSeconds = Field(StageSeconds(), description="Where the time went.")


class Sampled(_Frozen):
    """What was learnt from some of a video's frames, as sums that can be added up over its parts."""

    frames: int = 0
    before: list[list[float]] = []  # squares of sigma, black and white, each colour's, on the scale [0, 1]
    after: list[list[float]] = []
    evidence: dict[str, float] = {}  # of the result's quality; fields of `models.quality_estimate.Evidence`


class FrameTableBlob(_Frozen):
    """What was measured of each frame, as CSV."""

    blob: str
    bytes: int
    sha256: str


class Result(_Frozen):
    """What came of the job."""

    blob: str
    content_type: str
    bytes: int
    sha256: str
    file_name: str


class Outcome(_Frozen):
    """What a worker hands in with its acknowledgement."""

    result: Result
    metrics: Metrics
    backend: str
    precision: str
    lost: list[str] = []  # what of the input the result could not keep
    notes: list[str] = []  # what did not go as usual
    per_frame: FrameTableBlob | None = None

    @property
    def blobs(self) -> list[str]:
        return [self.result.blob, *([self.per_frame.blob] if self.per_frame else [])]


class PartOutcome(_Frozen):
    """What a worker hands in of a part: its encoded frames, and what was learnt on the way."""

    blob: str
    frames: int
    removed_power: float  # sum of squares of what was taken out, [0, 1] scale
    values: int  # that the sum is over
    seconds: StageSeconds
    backend: str
    precision: str
    lost: list[str] = []
    notes: list[str] = []
    sampled: Sampled = Sampled()
    frame_table: str | None = None  # the blob of what was measured of each frame

    @property
    def blobs(self) -> list[str]:
        return [self.blob, *([self.frame_table] if self.frame_table else [])]


class Preview(_Frozen):
    """A picture of how the result will look."""

    blob: str
    content_type: str
    bytes: int
    sha256: str


class Record(BaseModel):
    """All that the broker keeps of a job."""

    model_config = ConfigDict(extra="ignore")

    job: Job
    state: JobState
    attempts: int = 0
    started_at: float | None = None
    finished_at: float | None = None
    expires_at: float | None = None
    progress: Progress = Progress()
    outcome: Outcome | None = None
    preview: Preview | None = None
    error: dict[str, Any] | None = None


class ProblemDocument(BaseModel):
    """RFC 9457."""

    type: str = Field(description="URN of the kind of problem.")
    title: str = Field(description="The kind of problem in words.")
    status: int = Field(description="HTTP status.")
    detail: str = Field(description="This problem: the value and the bound.")
    code: str = Field(description="Stable short name, to branch on.")
    retryable: bool = Field(False, description="Whether the same request may succeed later.")
    instance: str | None = Field(None, description="What it happened to.")
    errors: list[dict[str, Any]] | None = Field(None, description="Each field that was refused, and why.")


class ResultLink(BaseModel):
    url: str = Field(description="Where the bytes are.")
    content_type: str = Field(description="Media type of the result.")
    bytes: int = Field(description="Size of the result.")
    sha256: str = Field(description="Hash of the result, hexadecimal; also its ETag.")


class JobDocument(BaseModel):
    """What a client sees of a job."""

    id: str = Field(description="Name of the job.")
    kind: Literal["image", "video"] = Field(description="What is denoised.")
    state: JobState = Field(description="Where the job is; the last four are final.")
    model: str = Field(description="The denoiser, `auto` resolved.")
    backend: str | None = Field(None, description="What ran it; null until it is done.")
    precision: str | None = Field(None, description="What its inner layers computed in.")
    notes: list[str] = Field(
        [], description="What did not go as usual, such as a GPU that ran out of memory, and what was done about it."
    )
    attempts: int = Field(description="Times a worker took the job, this one included.")
    created_at: datetime = Field(description="When it was accepted.")
    started_at: datetime | None = Field(None, description="When a worker first took it.")
    finished_at: datetime | None = Field(None, description="When it reached a final state.")
    expires_at: datetime | None = Field(None, description="When its result is deleted.")
    progress: Progress = Field(description="How far it is.")
    input: InputFacts = Field(description="What came in.")
    options: Options = Field(description="How it was asked for.")
    metrics: Metrics | None = Field(None, description="Measured when it succeeded.")
    preview: ResultLink | None = Field(
        None, description="A video's first frame, restored; there within seconds of a worker's taking it."
    )
    per_frame: ResultLink | None = Field(
        None, description="What was measured of each frame of a video that succeeded; as CSV, JSON or a plot."
    )
    result: ResultLink | None = Field(None, description="Present when it succeeded.")
    error: ProblemDocument | None = Field(None, description="Present when it failed.")


def pixels_of(kind: Literal["image", "video"], facts: InputFacts) -> int:
    frames = facts.pages or 1 if kind == "image" else facts.frames or UNTOLD_FRAMES
    return facts.width * facts.height * frames


def new_job_id() -> str:
    """A name that sorts by birth and cannot be guessed: 48 bits of milliseconds, 80 of chance, hexadecimal."""
    return f"{time.time_ns() // 1_000_000:012x}{secrets.token_hex(10)}"


def document_of(record: Record) -> JobDocument:
    job, outcome = record.job, record.outcome
    link = None
    if outcome and record.state is JobState.SUCCEEDED:
        made = outcome.result
        link = ResultLink(
            url=f"/jobs/{job.id}/result", content_type=made.content_type, bytes=made.bytes, sha256=made.sha256
        )
    table = None
    if outcome and outcome.per_frame and record.state is JobState.SUCCEEDED:
        kept = outcome.per_frame
        table = ResultLink(
            url=f"/jobs/{job.id}/frames?format=csv", content_type="text/csv", bytes=kept.bytes, sha256=kept.sha256
        )
    still = None
    if record.preview and record.state is not JobState.EXPIRED:
        seen = record.preview
        still = ResultLink(
            url=f"/jobs/{job.id}/preview", content_type=seen.content_type, bytes=seen.bytes, sha256=seen.sha256
        )
    return JobDocument(
        id=job.id,
        kind=job.kind,
        state=record.state,
        model=job.model,
        backend=outcome.backend if outcome else None,
        precision=outcome.precision if outcome else None,
        notes=outcome.notes if outcome else [],
        attempts=record.attempts,
        created_at=_moment(job.created_at),
        started_at=_moment(record.started_at) if record.started_at else None,
        finished_at=_moment(record.finished_at) if record.finished_at else None,
        expires_at=_moment(record.expires_at) if record.expires_at else None,
        progress=record.progress,
        input=job.input.model_copy(update={"lost": outcome.lost}) if outcome else job.input,
        options=job.options,
        metrics=outcome.metrics if outcome else None,
        preview=still,
        per_frame=table,
        result=link,
        error=ProblemDocument.model_validate(record.error) if record.error else None,
    )


def _moment(seconds: float) -> datetime:
    return datetime.fromtimestamp(seconds, UTC)
